"""One simulated island: what ships, around a toy model, in the virtual loop.

The island's side (`lowcomm.outer.island_side`), the node and its rounds are those of an `OuterLoop`; here is
who answers the side's requests, and a model that is drawn to a point of the island's own. What matters of it
is that every inner step leaves a mark and a token count, so that work that is lost or counted twice shows.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.codecs import int8
from lowcomm.exchanges.base import Exchange
from lowcomm.islands.vectors import Vector
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import OuterState
from lowcomm.ledger.update import Update
from lowcomm.outer.island_side import IslandSide, Look, Request, Restore, Send, Steps, Tell, Wait
from lowcomm.outer.node import Node, NodeSettings
from lowcomm.outer.outcome import Outcome
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.promises import Promises
from lowcomm.sim.disk import SimExecutor
from lowcomm.spans import Spans, beginning, flat, joined, parse_spans, size, without
from lowcomm.types import Digest, Json, Layout, RoundReport, TensorSpec

T = TypeVar("T")

LAYOUT = (TensorSpec("first", (40,)), TensorSpec("second", (24,)))
INNER_LR = 0.1
STAND_BY_S = 0.2
"""Virtual seconds between looks at what others are ready for, while a round is waited for."""
SCHEDULE = Schedule(inner_steps=5, num_fragments=2, delay=1, merge_alpha=0.5)


def toy_schedule(**changes: Any) -> Schedule:
    """Fragments that are due one after the other, with a delay, and a merge that keeps half."""
    return replace(SCHEDULE, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandSettings:
    """What all islands of a simulation have in common.

    Attributes:
        layout: of the toy model.
        chunk_bytes: fp32 bytes of one separately encoded piece.
        step_s: virtual seconds of an inner step, also as a function of the island and the time.
        error_feedback: whether the int8 codec keeps a residual.
        snapshot_mbit_s: upload rate for states handed to others; 0 = unlimited.
        join_timeout_s: silence after which whoever joins gives up.
        save_every: inner steps between two checkpoints, which outlive crashes; 0 = none.
        finishes: whether an island ends with last rounds, as after its last inner step, or breaks off.
        unit_samples: of what islands lease, a sample counts one token; 0 = they lease nothing.
    """

    policy: RoundPolicy = field(default_factory=lambda: RoundPolicy(deadline_s=2.0))
    layout: Layout = LAYOUT
    chunk_bytes: int = 64
    schedule: Schedule = SCHEDULE
    step_s: float | Callable[[int, float], float] = 0.4
    heartbeat_s: float = 1.0
    lease_s: float = 4.0
    error_feedback: bool = True
    snapshot_mbit_s: float = 0.0
    join_timeout_s: float = 60.0
    save_every: int = 0
    finishes: bool = False
    unit_samples: int = 7


@dataclass(slots=True)
class Record:
    """Takes the place of the ledger file: what was committed here, and states taken over."""

    entries: list[Entry] = field(default_factory=list)
    snapshots: list[tuple[int, int, Digest]] = field(default_factory=list)

    def append(self, certified: Certified, update: Update | None) -> None:
        """See `LedgerFile`."""
        self.entries.append(certified.entry)

    def note_snapshot(
        self, fragment: int, outer_step: int, head: Digest, state_digest: Digest, tip: Certified | None
    ) -> None:
        """See `LedgerFile`."""
        self.snapshots.append((fragment, outer_step, head))


def spans_of(numbers: list[int]) -> Spans:
    """What `Units` hands out."""
    return parse_spans("leased", numbers, len(numbers))


class LoopClock:
    """The time of the running loop."""

    def monotonic_s(self) -> float:
        """Virtual seconds."""
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        """The same; there is no calendar."""
        return self.monotonic_s()


class ToyModel:
    """Parameters of one rank, see `Parameters`, as one vector; an inner step draws them to `target`."""

    def __init__(self, layout: Layout, number: int) -> None:
        self.layout, self.world_size = layout, 1
        sizes = [spec.elements for spec in layout]
        generator = torch.Generator().manual_seed(number)
        self._target = torch.randn(sum(sizes), generator=generator, dtype=torch.float32, device="cpu")
        self.values = torch.zeros_like(self._target)
        stops = list(accumulate(sizes))
        self._parts = [self.values[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]

    def train(self) -> None:
        """One inner step."""
        self.values += INNER_LR * (self._target - self.values)

    def read(self, indices: Sequence[int]) -> Tensor:
        """See `Parameters`."""
        return torch.cat([self._parts[index] for index in indices])

    def write(self, indices: Sequence[int], values: Tensor | None) -> None:
        """See `Parameters`."""
        assert values is not None
        start = 0
        for part in [self._parts[index] for index in indices]:
            part.copy_(values[start : start + len(part)])
            start += len(part)

    def add(self, indices: Sequence[int], values: Vector | None) -> None:
        """See `Parameters`."""
        assert values is not None
        self.write(indices, self.read(indices) + values.load())

    def broadcast(self, value: T | None) -> T:
        """One rank agrees with itself."""
        return cast(T, value)

    def any_rank(self, flag: bool) -> bool:
        """One rank agrees with itself."""
        return flag


class SimIsland:
    """One life of one island, from its start to its end or crash.

    Args:
        promises: what survives a crash, besides what others know.
        folder: the run folder, which survives it, too; None = none.
        saved: the checkpoint of an earlier life.

    Attributes:
        saved: the newest checkpoint.
        reports: of its rounds, in order.
        credited: tokens of each fragment, those of the life that left `saved` included.
        dropped: tokens of each fragment that a history credited which does not stand.
        goes_on: whether it has something of an earlier life.
        joined_s, left_s: between them it trained, in virtual time.
        intervals: inner steps of each contribution, with the fragment and when it was made.
    """

    def __init__(
        self,
        number: int,
        exchange: Exchange,
        settings: IslandSettings,
        promises: Promises,
        folder: Path | None = None,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.number, self._settings, self.saved = number, settings, saved
        self.record = Record()
        self.model = ToyModel(settings.layout, number)
        schedule = settings.schedule
        fragments = make_fragments(settings.layout, schedule.num_fragments, schedule.fragmenting)
        self.pool = SimExecutor()
        optimizer = nesterov(0.7, 0.6)
        state = OuterState(
            exchange.run_id,
            fragments,
            [self.model.read(fragment.tensors) for fragment in fragments],
            optimizer,
            int8(error_feedback=settings.error_feedback),
        )
        self.node = Node(
            exchange,
            state,
            NodeSettings(
                policy=settings.policy,
                shared={"shared.sim": 1},
                layout=settings.layout,
                heartbeat_s=settings.heartbeat_s,
                lease_s=settings.lease_s,
                chunk_bytes=settings.chunk_bytes,
                snapshot_mbit_s=settings.snapshot_mbit_s,
                unit_samples=settings.unit_samples,
            ),
            ledger_file=self.record,
            folder=folder,
            promises=promises if settings.policy.partition == "majority" else None,
            pool=self.pool,
        )
        state.data = "toy samples"
        self._ahead: Spans = ()
        standing = [state.position(fragment.index) for fragment in fragments]
        self.side = IslandSide(self.model, fragments, schedule, optimizer, LoopClock(), standing)
        self.progress = self.side.progress
        self.credited = [0] * len(fragments)
        self.dropped = [0] * len(fragments)
        self.goes_on = False
        self.reports: list[RoundReport] = []
        self.joined_s = self.left_s = -1.0
        self.intervals: list[tuple[int, float, int]] = []
        self._sent: dict[int, asyncio.Task[Outcome]] = {}
        self._began_s: dict[int, float] = {}
        self.phase = "starting"

    @property
    def waited_s(self) -> float:
        """Virtual seconds for which training stood still."""
        return self.progress.wait_s

    async def live(self, expected: int, until_s: Callable[[], float]) -> None:
        """Join, train until the virtual time is what `until_s` says by then, and leave."""
        loop, node, settings = asyncio.get_running_loop(), self.node, self._settings
        await node.start()
        self.phase = "gathering"
        await node.joining.gather(expected, 5.0)
        if self.saved is not None:
            self.model.values.copy_(self.saved["model"])
            self.credited = list(self.saved["credited"])
            await self._run(self.side.load_state_dict(self.saved))
            await node.units.load(self.saved["samples"])
        self.phase = "joining"
        await self._run(self.side.joins())
        fresh, timeout_s = not self.side.resumes, settings.join_timeout_s
        joined = await node.joining.join(fresh=fresh, num_shards=0, timeout_s=timeout_s)
        report = await self._run(self.side.joined(joined))
        self.credited = [sum(pair) for pair in zip(self.credited, report.credits, strict=True)]
        self.goes_on = self.side.resumes or any(report.credits)
        if report.skipped[0] and self.side.resumes:
            await node.units.forget()
        if self.saved is not None:
            self._ahead = spans_of(await node.units.retake(flat(self.saved["ahead"])))
        self.phase = "training"
        self.joined_s = loop.time()
        while loop.time() < until_s():
            await asyncio.sleep(self._step_s(loop.time()))
            tokens = 10 + self.number
            samples = await self._draw(tokens)
            self._train()
            if samples:
                node.units.trained(samples, tokens)
            self._landed(await self._run(self.side.step(tokens)))
            if settings.save_every and self.progress.inner_step % settings.save_every == 0:
                self._save(await node.units.state(self.progress.outer_steps[0]))
        last = self.side.finish() if settings.finishes else self.side.land(everything=True)
        self._landed(await self._run(last))
        self.phase = "leaving"
        self.left_s = loop.time()
        await node.close()
        self.phase = "left"

    async def crash(self) -> None:
        """Stop everything at once, after the exchange has been killed."""
        self.phase = "dead"
        self.pool.shutdown()
        for task in self._sent.values():
            task.cancel()
        for fragment_round in self.node.rounds:
            await fragment_round.close()
        await self.node.mandates.stop()
        await self.node.peers.stop()
        self.node.state.updates.close()

    def _step_s(self, now_s: float) -> float:
        step_s = self._settings.step_s
        return step_s(self.number, now_s) if callable(step_s) else step_s

    def _train(self) -> None:
        self.model.train()

    def _landed(self, reports: Sequence[RoundReport]) -> None:
        self.reports += reports
        for report in reports:
            index = report.fragment
            self.intervals.append((index, self._began_s[index], report.inner_steps))

    async def _draw(self, count: int) -> Spans:
        """The samples of an inner step."""
        if not self._settings.unit_samples:
            return ()
        while size(self._ahead) < count:
            leased = await self.node.units.lease(count - size(self._ahead))
            self._ahead = joined((*self._ahead, *spans_of(leased)))
        drawn = beginning(self._ahead, count)
        self._ahead = without(self._ahead, drawn)
        return drawn

    def _save(self, samples: list[Json]) -> None:
        """Keep what a checkpoint has."""
        fragments = [self.side.fragment_state(index) for index in range(len(self.credited))]
        self.saved = copy.deepcopy(
            {
                **self.side.state_dict(),
                "fragments": fragments,
                "model": self.model.values,
                "credited": self.credited,
                "samples": samples,
                "ahead": self._ahead,
            }
        )

    # -- answering the island's side -----------------------------------------------------------------

    async def _run(self, steps: Steps[T]) -> T:
        """See `Network.run`."""
        try:
            request = next(steps)
            while True:
                request = steps.send(await self._answer(request))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    async def _answer(self, request: Request) -> Any:
        """See `lowcomm.outer.island_side`."""
        loop, node = asyncio.get_running_loop(), self.node
        match request:
            case Tell(posted):
                node.peers.progressed(posted)
            case Look():
                return node.calls()
            case Send(fragment, contribution, standing, last):
                sent = node.submissions.contribute(fragment, contribution, standing, last=last)
                self._sent[fragment], self._began_s[fragment] = loop.create_task(sent), loop.time()
            case Wait(fragment, others):
                return await self._wait(fragment, others)
            case Restore(fragment, saved):
                return await node.restore(fragment, saved)

    async def _wait(self, fragment: int, others: Sequence[int]) -> Outcome | int:
        task = self._sent[fragment]
        while others and not task.done():
            calls = self.node.calls()
            if called := [index for index in others if calls[index].ready]:
                return called[0]
            await asyncio.wait([task], timeout=STAND_BY_S)
        outcome = await task
        del self._sent[fragment]
        self.credited[fragment] += outcome.landing.report.tokens  # a crash may be the next thing
        self.dropped[fragment] += outcome.landing.dropped
        return outcome
