"""A model and data that a Python program made, and gave to `Trainer`.

A recipe can't make them: what is left of such a run without its program are the weights, by parameter name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from lowcomm.arguments import show
from lowcomm.data.items import Collate, Items, Stream, collated, sampled_digest
from lowcomm.data.order import permutation
from lowcomm.data.samples import Batch, Samples
from lowcomm.errors import ArgumentError, ConfigError, DataError, ModelError
from lowcomm.methods import Spec
from lowcomm.tasks.base import Facts
from lowcomm.tasks.weights import save_weights
from lowcomm.types import Json

Loss = Callable[[Any, Batch], Tensor]
Evaluate = Callable[[Any, Batch], Mapping[str, Tensor]]


class GivenData:
    """Data sets as the `Data` of a task.

    Args:
        data: what is trained on: map-style, whose samples are dealt into shards, or iterable, of which each
            island has its own.
        eval_data: what nobody trains on; None = nothing is evaluated.
    """

    source = "data"

    def __init__(
        self, data: Any, eval_data: Any, *, collate: Collate, shards: int, seed: int, sample_tokens: int
    ) -> None:
        self._data, self._eval_data, self._collate = data, eval_data, collate
        self._seed, self._sample_tokens = seed, sample_tokens
        self._by_number = is_map_style(data)
        self.num_shards = shards if self._by_number else 1
        self.digest = ""
        if self._by_number:
            if len(data) < shards:
                raise DataError(
                    f"data: expected at least {shards} samples, one for each of shared.data.shards, got "
                    f"{len(data)}; set shared.data.shards to at most that, or give more"
                )
            self.digest = blake3(sampled_digest(data, collate).encode()).hexdigest()

    @property
    def facts(self) -> Mapping[str, Json]:
        if not self._by_number:
            return {}
        return {"samples": len(self._data), "all_epoch_tokens": len(self._data) * self._sample_tokens}

    def training(self, shard: int) -> Samples | Stream:
        if not self._by_number:
            return Stream(
                self._data, collate=self._collate, sample_tokens=self._sample_tokens, name=self.source
            )
        if not 0 <= shard < self.num_shards:
            raise DataError(f"data.shard: expected 0 to {self.num_shards - 1}, got {shard}")
        order = permutation(len(self._data), "dealt items", self._seed)
        return Items(
            self._data,
            np.sort(order[shard :: self.num_shards]),
            collate=self._collate,
            seed=self._seed,
            sample_tokens=self._sample_tokens,
            identity={"digest": self.digest},
            name=f"{self.source}, shard {shard}" if self.num_shards > 1 else self.source,
        )

    def evaluation(self, samples: int, batch_size: int) -> Iterable[Batch]:
        held = self._eval_data
        if held is None:
            return
        if is_map_style(held):
            count = min(samples, len(held))
            places = [index * len(held) // max(1, count) for index in range(count)]
            for start in range(0, count, batch_size):
                yield collated(held, places[start : start + batch_size], self._collate)
            return
        part: list[Any] = []
        for number, sample in enumerate(held):
            if number >= samples:
                break
            part.append(sample)
            if len(part) == batch_size:
                yield self._collate(part)
                part = []
        if part:
            yield self._collate(part)


class GivenTask:
    """A `Task` around a model and data.

    Args:
        model: as it begins, with the same weights on all islands; None where only its weights are exported.
        data, eval_data: see `GivenData`.
        loss: of (model, batch), a mean over its samples; None = what the model's output calls its loss.
        evaluate: of (model, batch), means by name, `loss` among them; None = the loss alone.
        collate: makes a batch of a list of samples; None = torch's default.
        sample_tokens: what a sample counts, where tokens are counted.
        shards: parts that map-style data are dealt into, at least one for each island.

    Raises:
        ArgumentError: an argument is of another type.
    """

    def __init__(
        self,
        model: nn.Module | None,
        data: Any = None,
        *,
        eval_data: Any = None,
        loss: Loss | None = None,
        evaluate: Evaluate | None = None,
        collate: Collate | None = None,
        sample_tokens: int = 1,
        shards: int = 1,
        seed: int = 0,
    ) -> None:
        for name, function in (("loss", loss), ("evaluate", evaluate), ("collate", collate)):
            if function is not None and not callable(function):
                raise ArgumentError(f"Trainer: {name}: expected a function, got {show(function)}")
        if model is not None:
            _require_data("data", data)
        if eval_data is not None:
            _require_data("eval_data", eval_data)
        self._model, self._data, self._eval_data = model, data, eval_data
        self._loss, self._evaluate = loss or loss_of_output, evaluate
        self._collate = collate or default_collate
        self._shards, self._seed = shards, seed
        parameters = None if model is None else sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.facts = Facts(sample_tokens=sample_tokens, parameters=parameters)

    def make_model(self) -> nn.Module:
        return self._require_model()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._loss(model, batch)

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self._loss(model, batch)} if self._evaluate is None else self._evaluate(model, batch)

    def data(self, *, say: bool = True) -> GivenData:
        self._require_model()
        return GivenData(
            self._data,
            self._eval_data,
            collate=self._collate,
            shards=self._shards,
            seed=self._seed,
            sample_tokens=self.facts.sample_tokens,
        )

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        save_weights(anchor, folder)
        words = (
            f"# {run_id}, inner step {step:,}\n\n"
            "Weights of a model that a Python program gave to lowcomm, fp32, by parameter name.\n"
            "Parameters that were not trained, and buffers, are not among them.\n\n"
            "```python\nfrom safetensors.torch import load_file\n\n"
            'model.load_state_dict(load_file("model.safetensors"), strict=False)\n```\n'
        )
        (folder / "README.md").write_text(words, encoding="utf-8")

    def _require_model(self) -> nn.Module:
        if self._model is None:
            raise ConfigError(
                "shared.task.kind = given: the model and the data of this run were made by a Python program, "
                "which gave them to Trainer; run that program"
            )
        return self._model


def loss_of_output(model: Any, batch: Batch) -> Tensor:
    """What the output of a model calls its loss, as models of transformers do.

    Raises:
        ModelError: it has none.
    """
    if isinstance(batch, Mapping):
        output = model(**batch)
    else:
        output = model(*batch) if isinstance(batch, (tuple, list)) else model(batch)
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor):
        raise ModelError(
            f"Trainer: expected a model whose output has a `loss`, got {type(output).__name__} without one; "
            "pass loss=lambda model, batch: ..., a scalar to go backward from"
        )
    return loss


def is_map_style(data: Any) -> bool:
    """Whether samples can be had by their numbers."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def _require_data(name: str, data: Any) -> None:
    if isinstance(data, DataLoader):
        raise ArgumentError(
            f"Trainer: {name}: expected a data set, got a DataLoader, whose order can't be resumed or dealt; "
            f"pass {name}=loader.dataset, batch_size=... and collate=loader.collate_fn"
        )
    if isinstance(data, (str, bytes, Mapping)) or not (is_map_style(data) or isinstance(data, Iterable)):
        raise ArgumentError(
            f"Trainer: {name}: expected a map-style or an iterable data set of samples, got {show(data)}"
        )


SPEC = Spec(
    name="given",
    make=lambda: GivenTask(None),
    about="a model and data that a Python program gives to `Trainer(model, data)`; no recipe can name them",
)
