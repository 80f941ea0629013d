"""What one island's run comes to: the figures of summary.json, and how they are counted."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from lowcomm.types import Json

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
FP32_BYTES = 4
SHORT_STEPS = 50
"""A run of fewer inner steps is called diverged only where its loss has risen by half."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of one island's run over all its sessions; summary.json holds the same.

    Attributes:
        islands: most participants of a committed round.
        mean_islands: see `mean_islands`.
        inner_steps, outer_steps, tokens: of this island.
        swarm_tokens: of all islands, as the ledger credits them.
        eval_loss: of the anchor on what is held out; of text in nats per token.
        eval_metrics: what the task tells beside it, e.g. `accuracy`.
        first_loss, last_loss: training loss of the first inner step, and the mean of the last ones.
        data_parallel_bytes: see `data_parallel_bytes`.
        diverged: whether the loss ended clearly above where it began.
        wall_s: seconds that its processes ran.
        data_wait_share: part of the time of training in which inner steps waited for their batches.
    """

    run_id: str
    name: str
    peer: str
    islands: int
    mean_islands: float
    inner_steps: int
    outer_steps: int
    tokens: int
    swarm_tokens: int
    eval_loss: float | None
    first_loss: float | None
    last_loss: float | None
    wan_bytes_sent: int
    wan_bytes_received: int
    data_parallel_bytes: int
    digest: str
    head: str
    wall_s: float
    rounds_committed: int
    rounds_failed: int
    tokens_credited: int
    tokens_dropped: int
    parameters: int
    interrupted: bool
    diverged: bool
    eval_metrics: dict[str, float] = field(default_factory=dict)
    data_wait_share: float = 0.0

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON; `eval_metrics` where there are any."""
        return {name: value for name, value in asdict(self).items() if name != "eval_metrics" or value}

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The summary of an earlier session; None if there is none, or another version's."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


@dataclass(slots=True)
class Counts:
    """What a run counts over all its sessions.

    Attributes:
        compute_s, data_s, wait_s, transfer_s, bytes_sent, bytes_received, wall_s: what was spent: inner steps
            computed, waited for their batches, stood still for rounds, ...; steps done twice, after a kill,
            cost twice.
        rounds_committed, rounds_failed: of the history that the run goes on from.
        first_loss, last_loss: see `Summary`.
        round_tokens: of this island in committed rounds.
        even_tokens: the same, each round's divided by its participants.
        most_islands: participants of the largest committed round.
    """

    compute_s: float = 0.0
    data_s: float = 0.0
    wait_s: float = 0.0
    transfer_s: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    wall_s: float = 0.0
    rounds_committed: int = 0
    rounds_failed: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    round_tokens: int = 0
    even_tokens: float = 0.0
    most_islands: int = 0

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Self:
        """What a checkpoint holds, perhaps another version's: counters that this one lacks are named."""
        mine = {each.name for each in fields(cls)}
        if unknown := sorted(saved.keys() - mine):
            logger.warning("the checkpoint counts what this version does not: %s", ", ".join(unknown))
        return cls(**{name: value for name, value in saved.items() if name in mine})

    def plus(self, later: Counts) -> Counts:
        """These and those of a later session."""
        sums = {name: getattr(self, name) + getattr(later, name) for name in (*SPENT, *HELD)}
        return Counts(
            **sums,
            first_loss=later.first_loss if self.first_loss is None else self.first_loss,
            last_loss=self.last_loss if later.last_loss is None else later.last_loss,
            most_islands=max(self.most_islands, later.most_islands),
        )

    @property
    def data_wait_share(self) -> float:
        """See `Summary`; 0 before anything was trained."""
        return data_wait_share(self.compute_s, self.data_s, self.wait_s)

    def round(self, participants: int, tokens: int, fragment: int, *, committed: bool) -> None:
        """Count a round, with this island's tokens in it; fragment 0 stands for the model."""
        self.rounds_committed += committed
        self.rounds_failed += not committed
        if committed:
            self.most_islands = max(self.most_islands, participants)
        if committed and fragment == 0 and participants:
            self.round_tokens += tokens
            self.even_tokens += tokens / participants


SPENT = ("compute_s", "data_s", "wait_s", "transfer_s", "bytes_sent", "bytes_received", "wall_s")
"""What can't be taken back: it was spent, whatever the run resumes from."""
HELD = ("rounds_committed", "rounds_failed", "round_tokens", "even_tokens")
IN_SUMMARY = {"bytes_sent": "wan_bytes_sent", "bytes_received": "wan_bytes_received"}
"""The names that summary.json has for counters of metrics.jsonl."""


def spent(records: Iterable[Mapping[str, Any]]) -> Counts:
    """The most that the lines of a metrics.jsonl have counted.

    After a kill they are newer than the checkpoint, whose counts don't know what was spent since.
    """
    highest = Counts()
    for record in records:
        kind = record.get("kind")
        inside = {"start": "counts", "end": "summary"}.get(str(kind))
        found = record.get(inside) if inside else record if kind == "train" else None
        if not isinstance(found, Mapping):
            continue
        for name in SPENT:
            value = found.get(IN_SUMMARY[name] if kind == "end" and name in IN_SUMMARY else name)
            if isinstance(value, (int, float)) and math.isfinite(value):
                setattr(highest, name, max(getattr(highest, name), value))
    return highest


def resumed(checkpoint: Counts, logged: Counts) -> Counts:
    """The counts that a session begins with: those of its checkpoint, and all that was spent since."""
    highest = {name: max(getattr(checkpoint, name), getattr(logged, name)) for name in SPENT}
    return Counts(**{**asdict(checkpoint), **highest})


def mean_islands(round_tokens: float, even_tokens: float, otherwise: int) -> float:
    """How many islands shared the work: the harmonic mean of the participants, weighted by the own tokens.

    With it, 1 - 1/N is the mean over the rounds, which is what a ring all-reduce's bytes follow.

    Args:
        round_tokens, even_tokens: see `Counts`.
        otherwise: before the first committed round.
    """
    return round_tokens / even_tokens if even_tokens > 0 else float(otherwise)


def data_wait_share(compute_s: float, data_s: float, wait_s: float) -> float:
    """Part of the time of training in which inner steps waited for their batches; see `Counts`."""
    whole_s = compute_s + data_s + wait_s
    return data_s / whole_s if whole_s > 0 else 0.0


def data_parallel_bytes(islands: float, parameters: int, inner_steps: int) -> int:
    """What a ring all-reduce of fp32 gradients at each inner step would have sent, per island.

    Each of N sends 2 (N-1)/N of the buffer: reduce-scatter and all-gather, N-1 pieces of 1/N each
    (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    Args:
        islands: N; see `mean_islands` where it has changed.
    """
    return round(2 * FP32_BYTES * parameters * inner_steps * (1 - 1 / max(1.0, islands)))


def has_diverged(
    *, first: float | None, last: float | None, evaluated: float | None, blank: float | None, inner_steps: int
) -> bool:
    """Whether a run's loss ended clearly above where it began.

    The training loss and that of the anchor must both say so: an anchor that fits its text too well loses
    on held-out text alone, and a noisy last batch is none of the anchor's.

    Args:
        first, last: see `Summary`; None = not known.
        evaluated: the loss of the anchor at the end; None = no held-out text.
        blank: the loss of a model that knows nothing, of text ln(vocabulary); None = not known.
        inner_steps: of the run; few of them must show more.
    """
    known = [loss for loss in (last, evaluated) if loss is not None]
    if first is None or not known:
        return False

    def clearly_above(loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if inner_steps < SHORT_STEPS:
            return loss > max(1.5 * first, first + 1, 1.1 * (blank or 0.0))
        knows_less = blank is not None and loss > 1.1 * blank
        return loss > first + 0.5 and (knows_less or loss > 1.5 * first + 0.5)

    return all(map(clearly_above, known))
