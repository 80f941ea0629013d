"""The seam between training and what is trained.

The trainer knows neither models nor text. A `Task` makes the model, says the loss of a batch, opens the data,
evaluates, and writes the export. `lowcomm.tasks.METHODS` has the kinds that come with lowcomm; a recipe may
name a function of its own instead (own.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lowcomm.types import Json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lowcomm.data.items import Stream
    from lowcomm.data.samples import Batch, HeldOut, Samples


LOSS = "loss"
"""What `Task.evaluate` tells at least."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a task knows of itself before anything is made or read.

    Attributes:
        sample: the word for one sample, in the singular.
        sample_tokens: what one sample counts where tokens are counted: its tokens, or 1.
        parameters: of the model; None = not known before it is made, so a host too small for it shows late.
        token_flops: FLOPs of forward and backward pass per token, for `mfu`; None = not known.
        blank_loss: of a model that knows nothing; None = not known. It tells divergence from a bad start.
        loss_unit: "nats per token", for example.
        agreed: what has to be equal on all islands beside their settings, by name: compared when they meet.
        loaded: the weights that training begins with were read from somewhere, so islands compare them, too.
    """

    sample: str = "sample"
    sample_tokens: int = 1
    parameters: int | None = None
    token_flops: float | None = None
    blank_loss: float | None = None
    loss_unit: str = ""
    agreed: Mapping[str, Json] = field(default_factory=dict)
    loaded: bool = False

    def samples(self, count: int) -> str:
        """So many of them in words."""
        return f"{count:,} {self.sample}{'' if count == 1 else 's'}"


class Data(Protocol):
    """The data of a task, opened.

    Attributes:
        source: what errors call it.
        digest: of all of it; islands with another one don't share the division into shards.
        num_shards: parts it is divided into, one for each island.
        facts: for the start line of metrics.jsonl.

    It may have a `manifest`, bytes that name all of it; they are kept in the run folder, for `lowcomm
    provenance`. With `unit_samples` islands lease units of so many of its `samples` (all of the training
    part, the same on all islands) instead of having a shard each.
    """

    source: str
    digest: str
    num_shards: int

    @property
    def facts(self) -> Mapping[str, Json]: ...

    def training(self, shard: int) -> Samples | Stream:
        """What is in one shard; a stream where samples have no numbers.

        Raises:
            DataError: there is no such shard, or too little in it.
        """
        ...

    def evaluation(self, samples: int, batch_size: int) -> Iterable[Batch | HeldOut]:
        """Batches of about `samples` fixed samples that no island trains on; nothing if none are kept.

        A `HeldOut` says of its batch which source it is of, and how many bytes of text a token stands for.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """What is trained. Every rank of every island makes one, from equal arguments."""

    @property
    def facts(self) -> Facts: ...

    def make_model(self) -> nn.Module:
        """The model on the host, with the same bits on every island; in fp32, if nothing asks for less.

        torch's random numbers are those of `shared.seed` while this runs.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss of a batch: a scalar to go backward from.

        Args:
            model: what `make_model` gave, perhaps wrapped by an engine; call it, reach not into it.
            batch: on the model's device.
        """
        ...

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Means over the samples of a batch: `loss`, and whatever else is told beside it, e.g. `accuracy`.

        Args:
            model: in evaluation mode, without gradients.
        """
        ...

    def data(self, *, say: bool = True) -> Data:
        """Open the data.

        Args:
            say: log what is left out; one rank of an island is enough.

        Raises:
            DataError: it can't be read.
        """
        ...

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        """Write the trained weights into an empty folder, with what others need to use them.

        Args:
            anchor: by parameter name, fp32 on the host.
            step: inner step at which they were saved.

        Raises:
            CheckpointError: they are not of this task's model.
        """
        ...
