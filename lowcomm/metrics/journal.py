"""What an island tells of its run while it trains, and what it counts over all sessions."""

from __future__ import annotations

import collections
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lowcomm.clock import Clock
from lowcomm.exchanges.base import Traffic
from lowcomm.metrics.base import Fanout
from lowcomm.metrics.jsonl import read_lines
from lowcomm.metrics.memory import device_memory_bytes, host_memory_bytes
from lowcomm.metrics.summary import (
    Counts,
    Summary,
    data_parallel_bytes,
    has_diverged,
    mean_islands,
    resumed,
    spent,
)
from lowcomm.tasks.base import LOSS, Facts
from lowcomm.types import Digest, Json, PeerId, RoundReport

logger = logging.getLogger(__name__)

LAST_STEPS = 20
"""Inner steps whose mean is the training loss at the end."""


class Group(Protocol):
    """The ranks of an island."""

    @property
    def device(self) -> torch.device: ...

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """What each rank has; collective."""
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether it holds on any of them; collective."""
        ...


class Loop(Protocol):
    """What is told of an `OuterLoop`; see there."""

    @property
    def is_lead(self) -> bool: ...
    @property
    def name(self) -> str: ...
    @property
    def names(self) -> Mapping[PeerId, str]: ...
    @property
    def peer_id(self) -> PeerId: ...
    @property
    def digest(self) -> Digest: ...
    @property
    def head(self) -> Digest: ...
    @property
    def num_peers(self) -> int: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def parameters(self) -> int: ...
    @property
    def inner_step(self) -> int: ...
    @property
    def outer_step(self) -> int: ...
    @property
    def outer_steps(self) -> tuple[int, ...]: ...
    @property
    def tokens_trained(self) -> int: ...
    @property
    def tokens_credited(self) -> int: ...
    @property
    def tokens_dropped(self) -> int: ...
    @property
    def tokens_uncommitted(self) -> int: ...
    @property
    def swarm_tokens(self) -> int: ...
    @property
    def swarm_committed(self) -> int: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def transfer_s(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Described:
    """A run, as far as its figures depend on it.

    Attributes:
        facts: of what is trained.
        expected_peers: islands at the start.
        step_tokens: of an inner step of this island, where islands take unlike numbers of them; 0 = all count
            the same steps.
        peak_flops: of all devices of the island, at their best; None = not known.
    """

    run_id: str
    facts: Facts
    expected_peers: int = 1
    step_tokens: int = 0
    peak_flops: float | None = None


class Journal:
    """Keeps the counts of one island and gives its records to the sinks; every rank has one.

    Args:
        began_s: when this process began, on `clock`.
        metrics: metrics.jsonl of earlier sessions, which may not exist; None on ranks that don't lead.

    Attributes:
        sinks: where the records go; none until they are opened.
        eval_loss, eval_metrics: of the newest evaluation, and what was told beside the loss.
    """

    def __init__(
        self,
        run: Described,
        island: Group,
        outer: Loop,
        *,
        clock: Clock,
        began_s: float,
        metrics: Path | None,
    ) -> None:
        self._run, self._island, self._outer = run, island, outer
        self._clock, self._began_s = clock, began_s
        self.sinks = Fanout([])
        self.eval_loss: float | None = None
        self.eval_metrics: dict[str, float] = {}
        self._evaluated: tuple[int, ...] | None = None
        self._counts, self._earlier = Counts(), Counts()
        self._last_losses: collections.deque[float] = collections.deque(maxlen=LAST_STEPS)
        self._logged = spent(read_lines(metrics)) if metrics is not None and metrics.exists() else Counts()
        self._earlier = resumed(self._earlier, self._logged)

    def resume(self, checkpoint: Counts) -> None:
        """Go on from the counts of a checkpoint."""
        self._earlier = resumed(checkpoint, self._logged)

    @property
    def earlier(self) -> Counts:
        """The counts that this session began with."""
        return self._earlier

    def log(self, **record: Json) -> None:
        """Give a record to the sinks, with the seconds since this process began."""
        self.sinks.log({**record, "time_s": round(self._elapsed_s(), 3)})

    # -- while it trains ---------------------------------------------------------------------------

    def computed(self, seconds: float, data_s: float = 0.0) -> None:
        """Count the time of an inner step, and how much of it was spent waiting for batches."""
        self._counts.compute_s += seconds - data_s
        self._counts.data_s += data_s

    def train(
        self, losses: Sequence[float], *, lr: float, tokens_per_s: float, grad_norms: Sequence[float] = ()
    ) -> float | None:
        """Log the inner steps since the last such line. Collective.

        Args:
            losses, grad_norms: of these steps, as far as they are known.
            tokens_per_s: of the island.

        Returns:
            On the lead the mean loss of all ranks.
        """
        outer = self._outer
        if losses:
            if self._counts.first_loss is None:
                self._counts.first_loss = losses[0]
            self._last_losses.extend(losses)
            self._counts.last_loss = statistics.fmean(self._last_losses)
        by_rank = self._island.gather(
            {
                "loss": statistics.fmean(losses) if losses else None,
                "host": host_memory_bytes(),
                "device": device_memory_bytes(self._island.device),
            }
        )
        if not outer.is_lead:
            return None
        counts, known = self.counts(), [rank["loss"] for rank in by_rank if rank["loss"] is not None]
        loss = statistics.fmean(known) if known else None
        used = [rank["device"] for rank in by_rank if rank["device"] is not None]
        flops, peak = self._run.facts.token_flops, self._run.peak_flops
        self.log(
            kind="train",
            inner_step=outer.inner_step,
            outer_step=outer.outer_step,
            tokens=outer.tokens_trained,
            swarm_tokens=outer.swarm_tokens,
            loss=loss,
            lr=lr,
            grad_norm=statistics.fmean(grad_norms) if grad_norms else None,
            grad_norm_max=max(grad_norms, default=None),
            tokens_per_s=tokens_per_s,
            mfu=None if peak is None or flops is None else tokens_per_s * flops / peak,
            host_memory_bytes=max(rank["host"] for rank in by_rank),
            device_memory_bytes=max(used, default=None),
            peers=outer.num_peers,
            compute_s=counts.compute_s,
            data_s=counts.data_s,
            wait_s=counts.wait_s,
            transfer_s=counts.transfer_s,
            bytes_sent=counts.bytes_sent,
            bytes_received=counts.bytes_received,
            wall_s=counts.wall_s,
        )
        return loss

    def round(self, report: RoundReport) -> None:
        """Count and log a round, with the names of the peers that it speaks of."""
        self._counts.round(
            len(report.participants), report.tokens, report.fragment, committed=report.committed
        )
        if self._outer.is_lead:
            told = (f"{end.reason.text} {' '.join(end.reason.peers)}" for end in report.ballots)
            spoken_of = " ".join((*report.participants, report.reason, *report.rejected, *told))
            names: dict[str, Json] = {p: name for p, name in self._outer.names.items() if p in spoken_of}
            record = {**asdict(report), "participants": list(report.participants), "names": names}
            self.log(kind="round", inner_step=self._outer.inner_step, **record)

    def is_evaluated(self) -> bool:
        """Whether the anchor as it is now has been evaluated in this session; the same on all ranks."""
        return self._evaluated == self._outer.outer_steps

    def evaluated(self, found: Mapping[str, float]) -> None:
        """Log the means of the anchor on held-out samples; `loss` is one of them."""
        outer = self._outer
        self.eval_loss, self._evaluated = found[LOSS], outer.outer_steps
        self.eval_metrics = {name: value for name, value in found.items() if name != LOSS}
        told: dict[str, Json] = {f"eval_{name}": value for name, value in found.items()}
        if outer.is_lead:
            self.log(
                kind="eval",
                inner_step=outer.inner_step,
                outer_step=outer.outer_step,
                tokens=outer.tokens_trained,
                swarm_tokens=outer.swarm_committed,
                unit=self._run.facts.loss_unit,
                **told,
                bytes_sent=self.counts().bytes_sent,
            )

    # -- what it comes to --------------------------------------------------------------------------

    def counts(self) -> Counts:
        """What the run has counted up to now, in this process and in those before it."""
        outer, mine = self._outer, self._counts
        mine.wait_s, mine.transfer_s, mine.wall_s = outer.wait_s, outer.transfer_s, self._elapsed_s()
        if outer.is_lead:
            mine.bytes_sent, mine.bytes_received = outer.traffic.sent_bytes, outer.traffic.received_bytes
        return self._earlier.plus(mine)

    def summarize(self, *, interrupted: bool) -> Summary:
        """The figures of the run, and a warning where its loss has risen. Collective."""
        outer, counts = self._outer, self.counts()
        expected = self._run.expected_peers
        islands = mean_islands(counts.round_tokens, counts.even_tokens, expected)
        first, last = self._over_ranks(counts.first_loss), self._over_ranks(counts.last_loss)
        diverged = has_diverged(
            first=first,
            last=last,
            evaluated=self.eval_loss,
            blank=self._run.facts.blank_loss,
            inner_steps=outer.inner_step,
        )
        summary = Summary(
            run_id=self._run.run_id,
            name=outer.name if outer.is_lead else "",
            peer=outer.peer_id if outer.is_lead else "",
            islands=counts.most_islands or expected,
            mean_islands=islands,
            inner_steps=outer.inner_step,
            outer_steps=outer.outer_step,
            tokens=outer.tokens_trained,
            swarm_tokens=outer.swarm_committed,
            eval_loss=self.eval_loss,
            eval_metrics=self.eval_metrics,
            first_loss=first,
            last_loss=last,
            wan_bytes_sent=counts.bytes_sent,
            wan_bytes_received=counts.bytes_received,
            data_parallel_bytes=data_parallel_bytes(islands, outer.parameters, self._even_steps(islands)),
            digest=outer.digest if outer.is_lead else "",
            head=outer.head if outer.is_lead else "",
            wall_s=counts.wall_s,
            rounds_committed=counts.rounds_committed,
            rounds_failed=counts.rounds_failed,
            tokens_credited=outer.tokens_credited,
            tokens_dropped=outer.tokens_dropped + outer.tokens_uncommitted,
            parameters=outer.parameters,
            interrupted=interrupted,
            diverged=self._island.any_rank(diverged and outer.is_lead),
            data_wait_share=counts.data_wait_share,
        )
        if summary.diverged and outer.is_lead:
            logger.warning("%s", divergence(summary))
        return summary

    def _even_steps(self, islands: float) -> int:
        """Inner steps in which all islands, at equal steps, would have trained on as many tokens."""
        run, outer = self._run, self._outer
        if not run.step_tokens:
            return outer.inner_step
        return round(outer.swarm_committed / (islands * run.step_tokens))

    def _over_ranks(self, loss: float | None) -> float | None:
        """The mean of all ranks, which the lead knows; the own one elsewhere. Collective."""
        known = [rank["loss"] for rank in self._island.gather({"loss": loss}) if rank["loss"] is not None]
        return statistics.fmean(known) if known else loss

    def _elapsed_s(self) -> float:
        return self._clock.monotonic_s() - self._began_s


def divergence(summary: Summary) -> str:
    """What to say of a run whose loss has risen: what came, and what to do."""
    losses = [
        f"{name} {loss:.4g}"
        for name, loss in (("training loss", summary.last_loss), ("held-out loss", summary.eval_loss))
        if loss is not None
    ]
    began = math.nan if summary.first_loss is None else summary.first_loss
    return (
        f"the run has DIVERGED: it began at a training loss of {began:.4g} and ends at {', '.join(losses)} "
        f"after {summary.inner_steps:,} inner steps. All is saved, but the model is worse than before "
        "training: lower shared.inner.lr or shared.outer.lr and start a new run in a new folder"
    )
