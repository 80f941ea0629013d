"""One simulated island: the production node and round around a toy model, in the virtual loop.

The model is a vector that is drawn to a point of the island's own; what matters is that every inner
step leaves a mark and a token count, so that work that is lost or counted twice shows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.codecs import int8
from lowcomm.exchanges.base import Exchange
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import OuterState
from lowcomm.ledger.update import Update
from lowcomm.outer.node import Node
from lowcomm.outer.outcome import Movement, RoundOutcome
from lowcomm.outer.pacing import Pacing
from lowcomm.outer.progress import Progress
from lowcomm.rounds.contribution import Contribution
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.promises import Promises
from lowcomm.sim.disk import SimExecutor
from lowcomm.types import Digest, Layout, TensorSpec

LAYOUT = (TensorSpec("first", (40,)), TensorSpec("second", (24,)))
MERGE_ALPHA = 0.5
INNER_LR = 0.1
STAND_BY_S = 0.2
"""Virtual seconds between looks at what others are ready for, while a round is waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandSettings:
    """What all islands of a simulation have in common.

    Attributes:
        layout: of the toy model.
        chunk_bytes: fp32 bytes of one separately encoded piece.
        inner_steps, num_fragments, delay: the schedule; fragments are due one after the other.
        step_s: virtual seconds of an inner step, also as a function of the island and the time.
        pace: the schedule where islands are unlike in speed; its inner steps, fragments and delay are to be
            those above. None = a fixed one.
        error_feedback: whether the int8 codec keeps a residual.
        snapshot_mbit_s: upload rate for states handed to others; 0 = unlimited.
        join_timeout_s: silence after which whoever joins gives up.
    """

    policy: RoundPolicy = field(default_factory=lambda: RoundPolicy(deadline_s=2.0))
    layout: Layout = LAYOUT
    chunk_bytes: int = 64
    inner_steps: int = 5
    num_fragments: int = 2
    delay: int = 1
    step_s: float | Callable[[int, float], float] = 0.4
    pace: Schedule | None = None
    heartbeat_s: float = 1.0
    lease_s: float = 4.0
    error_feedback: bool = True
    snapshot_mbit_s: float = 0.0
    join_timeout_s: float = 60.0


@dataclass(slots=True)
class Record:
    """Takes the place of the ledger file: what was committed here, and states taken over."""

    entries: list[Entry] = field(default_factory=list)
    snapshots: list[tuple[int, int, Digest]] = field(default_factory=list)

    def append(self, certified: Certified, update: Update | None) -> None:
        """See `LedgerFile`."""
        self.entries.append(certified.entry)

    def note_snapshot(self, fragment: int, outer_step: int, head: Digest, state_digest: Digest) -> None:
        """See `LedgerFile`."""
        self.snapshots.append((fragment, outer_step, head))


class LoopClock:
    """The time of the running loop."""

    def monotonic_s(self) -> float:
        """Virtual seconds."""
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        """The same; there is no calendar."""
        return self.monotonic_s()


@dataclass(frozen=True, slots=True)
class _Flight:
    """A round under way; its result is used after so many inner steps."""

    task: asyncio.Task[RoundOutcome]
    began_step: int
    use_at_step: int


class SimIsland:
    """One life of one island, from its start to its end or crash.

    Args:
        promises: what survives a crash, besides what others know.
        folder: the run folder, which survives it, too; None = none.

    Attributes:
        rounds: outcomes, in order, with the fragment.
        joined_s, left_s: between them it trained, in virtual time.
        waited_s: virtual seconds for which training stood still.
        intervals: inner steps of each contribution, with the fragment and when it was made.
    """

    def __init__(
        self,
        number: int,
        exchange: Exchange,
        settings: IslandSettings,
        promises: Promises,
        folder: Path | None = None,
    ) -> None:
        self.number, self._settings = number, settings
        self.record = Record()
        self._fragments = make_fragments(settings.layout, settings.num_fragments, "balanced")
        sizes = [fragment.elements for fragment in self._fragments]
        self.local = [torch.zeros(size, dtype=torch.float32, device="cpu") for size in sizes]
        generator = torch.Generator().manual_seed(number)
        self._targets = [
            torch.randn(size, generator=generator, dtype=torch.float32, device="cpu") for size in sizes
        ]
        codec = int8(error_feedback=settings.error_feedback)
        self.pool = SimExecutor()
        state = OuterState(
            exchange.run_id, self._fragments, [v.clone() for v in self.local], nesterov(0.7, 0.6), codec
        )
        self.node = Node(
            exchange,
            state,
            policy=settings.policy,
            shared={"shared.sim": 1},
            layout=settings.layout,
            heartbeat_s=settings.heartbeat_s,
            lease_s=settings.lease_s,
            chunk_bytes=settings.chunk_bytes,
            ledger_file=self.record,
            folder=folder,
            snapshot_mbit_s=settings.snapshot_mbit_s,
            promises=promises if settings.policy.partition == "majority" else None,
            pool=self.pool,
        )
        self.progress = Progress(len(sizes))
        self.credited = [0] * len(sizes)
        self.rounds: list[tuple[int, RoundOutcome]] = []
        self.joined_s = self.left_s = -1.0
        self.waited_s = 0.0
        self.intervals: list[tuple[int, float, int]] = []
        schedule = settings.pace or Schedule(
            inner_steps=settings.inner_steps, num_fragments=settings.num_fragments, delay=settings.delay
        )
        self._pacing = Pacing(schedule, len(sizes), 1, LoopClock())
        self._flights: dict[int, _Flight] = {}
        self.phase = "starting"

    async def live(self, expected: int, until_s: Callable[[], float]) -> None:
        """Join, train until the virtual time is what `until_s` says by then, and leave."""
        loop, node = asyncio.get_running_loop(), self.node
        await node.start()
        self.phase = "gathering"
        await node.joining.gather(expected, 5.0)
        if expected > 1:
            node.joining.expect_company()
        self.phase = "joining"
        await node.joining.look_for_others()
        report = await node.joining.join(
            fresh=True, alone_ok=node.directory.founder, num_shards=0, timeout_s=self._settings.join_timeout_s
        )
        self.phase = "training"
        self.joined_s = loop.time()
        self.progress.inner_step = report.inner_step
        self.local = [state.anchor.load().clone() for state in node.state.states]
        self.progress.realign = [report.out_of_step] * len(self._fragments)
        while loop.time() < until_s():
            self._pacing.step_begins()
            await asyncio.sleep(self._step_s(loop.time()))
            self._train()
            for fragment, fragment_round in enumerate(node.rounds):
                called = self.progress.realign[fragment] and fragment_round.is_called()
                due = self._due(fragment) or called or fragment_round.ahead()
                if fragment not in self._flights and due:
                    self._begin(fragment)
            for fragment, flight in list(self._flights.items()):
                if flight.use_at_step <= self.progress.inner_step:
                    began_s = loop.time()
                    await self._stand_by(flight)
                    self._land(fragment)
                    self.waited_s += loop.time() - began_s
        for fragment, flight in list(self._flights.items()):
            await flight.task
            self._land(fragment)
        self.phase = "leaving"
        self.left_s = loop.time()
        await node.close()
        self.phase = "left"

    async def crash(self) -> None:
        """Stop everything at once, after the exchange has been killed."""
        self.phase = "dead"
        self.pool.shutdown()
        for flight in self._flights.values():
            flight.task.cancel()
        for fragment_round in self.node.rounds:
            await fragment_round.close()
        await self.node.mandates.stop()
        await self.node.peers.stop()
        self.node.state.updates.close()

    def _step_s(self, now_s: float) -> float:
        step_s = self._settings.step_s
        return step_s(self.number, now_s) if callable(step_s) else step_s

    def _due(self, fragment: int) -> bool:
        step = self.progress.inner_step
        called = self.node.rounds[fragment].is_called
        return fragment in self._pacing.due(step) or self._pacing.early(fragment, called)

    def _train(self) -> None:
        for local, target in zip(self.local, self._targets, strict=True):
            local += INNER_LR * (target - local)
        self.progress.trained(10 + self.number)
        self._pacing.step_ends(10 + self.number)
        self.node.peers.state.inner_step = self.progress.inner_step

    def _begin(self, fragment: int) -> None:
        loop, node, progress = asyncio.get_running_loop(), self.node, self.progress
        values = node.submissions.bases[fragment].load() - self.local[fragment]
        steps = self._pacing.begin(fragment, progress.inner_step)
        self.intervals.append((fragment, loop.time(), steps))
        contribution = Contribution.of(
            values,
            start=max(0, progress.tokens_trained - progress.tokens[fragment]),
            tokens=progress.tokens[fragment],
            norm=float(values.norm()),
            inner_step=progress.inner_step,
            speed=self._pacing.speed(steps),
        )
        task = loop.create_task(node.submissions.contribute(fragment, contribution))
        use_at_step = progress.inner_step + self._settings.delay
        self._flights[fragment] = _Flight(task, progress.inner_step, use_at_step)

    async def _stand_by(self, flight: _Flight) -> None:
        """See `Flights`: wait for a round, and begin what others are ready for meanwhile."""
        while not flight.task.done():
            if not self._pacing.fixed or any(self.progress.realign):
                for fragment, fragment_round in enumerate(self.node.rounds):
                    if fragment not in self._flights and fragment_round.is_called():
                        self._begin(fragment)
            await asyncio.wait([flight.task], timeout=STAND_BY_S)
        await flight.task

    def _land(self, fragment: int) -> None:
        flight = self._flights.pop(fragment)
        outcome, began_step = flight.task.result(), flight.began_step
        self.rounds.append((fragment, outcome))
        self.credited[fragment] += outcome.tokens
        self.progress.credit(fragment, outcome.tokens)
        interval = self._pacing.plan(outcome.speeds, self.node.signer.peer_id)
        if interval is not None:
            self._pacing.take(fragment, interval)
            step_s = outcome.speeds[self.node.signer.peer_id].step_s
            late_steps = self._pacing.late_steps(fragment, outcome.late_s, step_s)
            self._pacing.put_off(late_steps, fragment)
        self._pacing.shift(
            self.progress.fall_in(
                fragment,
                began_step,
                0 if interval is not None else outcome.swarm_step,
                self._settings.inner_steps,
                out_of_step=outcome.out_of_step,
                committed=outcome.entry is not None,
            )
        )
        if outcome.moves:
            self.local[fragment].add_(Movement(outcome, MERGE_ALPHA).load())
