"""What the control plane costs as a swarm grows: messages, bytes and processor time, on the virtual clock.

All islands run in this process, as in `lowcomm simulate`, with the node that ships, over links that take no
time. Messages and bytes are those that an island sends, the mean over all islands; `part`, `mean` and `blob`
are data, and not counted. Processor time is of this machine, and has two figures: what a network thread does
for control (handling messages, heartbeats, looking at rounds), and all that a simulated island does
(reducing, hashing, frames and the toy model as well).
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import ScaleBench
from lowcomm.clock import thread_cpu_s
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.frames import encode_frame
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import RUN_ID, SimExchange, name
from lowcomm.sim.tapes import BULK
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

WARM_ROUNDS = 2
LOOK_S = 0.05
START_S = 600.0
"""Virtual seconds that the first rounds may take."""
ELEMENTS = 64
"""Of a fragment, for each island."""
HEADINGS = ("islands", "fragments", "messages", "kB", "control ms", "all ms", "ms/s training", "ms/s idle")


@dataclass(frozen=True, kw_only=True)
class ScaleFigures:
    """Of one swarm; the mean over its islands.

    Attributes:
        rounds: of each fragment, while it was measured.
        seconds: virtual ones, in which these were.
        messages, bytes, control_ms, all_ms: per round of all fragments.
        training_ms_s, idle_ms_s: milliseconds of processor time for control in a second, with rounds and
            without.
        kinds: messages per round, by kind.
        kind_bytes: bytes per round, by kind.
    """

    islands: int
    fragments: int
    rounds: int
    seconds: float
    messages: float
    bytes: float
    control_ms: float
    all_ms: float
    training_ms_s: float
    idle_ms_s: float
    kinds: dict[str, float]
    kind_bytes: dict[str, float]

    @property
    def row(self) -> tuple[str, ...]:
        """For the table."""
        return (
            str(self.islands),
            str(self.fragments),
            f"{self.messages:.1f}",
            f"{self.bytes / 1e3:.2f}",
            f"{self.control_ms:.2f}",
            f"{self.all_ms:.1f}",
            f"{self.training_ms_s:.2f}",
            f"{self.idle_ms_s:.2f}",
        )


def run(bench: ScaleBench, tell: Tell) -> Outcome:
    """For `lowcomm bench scale`."""
    found = []
    for fragments in bench.fragments:
        for islands in bench.islands:
            tell(f"{islands} islands, {fragments} fragment{'s' if fragments > 1 else ''}")
            found.append(measure(islands, fragments, bench))
    return Outcome(
        log={"settings": bench.to_dict(), "scale": [asdict(figures) for figures in found]},
        headings=HEADINGS,
        rows=[figures.row for figures in found],
        notes=[f"per island, and per round of all fragments every {bench.round_s:g} s", *_growth(found)],
    )


def _growth(found: list[ScaleFigures]) -> list[str]:
    """How much more it is for each doubling of the islands, at most."""
    worst: dict[str, tuple[float, int]] = {}
    for before, after in itertools.pairwise(found):
        if after.fragments == before.fragments and after.islands == 2 * before.islands:
            for what in ("messages", "bytes", "control_ms"):
                times = getattr(after, what) / getattr(before, what)
                worst[what] = max(worst.get(what, (0.0, 0)), (times, after.islands))
    said = [
        f"{what.removesuffix('_ms')} {times:.2f}x (to {islands})" for what, (times, islands) in worst.items()
    ]
    return [f"most for a doubling of the islands: {', '.join(said)}"] if said else []


def measure(islands: int, fragments: int, bench: ScaleBench) -> ScaleFigures:
    """Run a swarm of so many islands until it has made the rounds that are measured, and idled."""
    return run_virtually(
        _Swarm(islands, fragments, bench).run(), START_S + (bench.rounds + WARM_ROUNDS) * 2 * bench.round_s
    )


@dataclass(slots=True)
class _Reading:
    """What has been counted until now."""

    at_s: float
    control_s: float
    all_s: float
    rounds: int
    messages: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)


class _Swarm:
    def __init__(self, islands: int, fragments: int, bench: ScaleBench) -> None:
        steps = max(5, fragments)
        self._islands, self._fragments, self._bench = islands, fragments, bench
        self._idle_from_s = float("inf")
        self._messages: Counter[str] = Counter()
        self._sizes: Counter[str] = Counter()
        self._control_s = self._counting_s = 0.0
        self._timing = False
        self._over = False
        self._settings = IslandSettings(
            policy=RoundPolicy(deadline_s=60.0, partition=bench.partition),
            layout=tuple(TensorSpec(f"t{i}", (ELEMENTS * max(islands, 8),)) for i in range(fragments)),
            chunk_bytes=1 << 20,
            schedule=toy_schedule(inner_steps=steps, num_fragments=fragments),
            step_s=lambda number, now_s: (
                bench.round_s / steps if now_s < self._idle_from_s else bench.round_s
            ),
            lease_s=bench.lease_s,
            error_feedback=False,
            unit_samples=0,
        )

    async def run(self) -> ScaleFigures:
        """Start, measure, end."""
        hub = LoopbackHub()
        hub.filter = self._count
        swarm = [
            SimIsland(
                number,
                SimExchange(hub, RUN_ID, name(number), founder=number == 0),
                self._settings,
                MemoryPromises(),
            )
            for number in range(self._islands)
        ]
        for island in swarm:
            self._meter(island)
        loop = asyncio.get_running_loop()
        lives = [
            loop.create_task(island.live(self._islands, lambda: 0.0 if self._over else float("inf")))
            for island in swarm
        ]
        before = await self._after_rounds(swarm, WARM_ROUNDS)
        gc.collect()
        gc.freeze()  # collecting garbage looks at one island's objects in a process of its own, not at all
        after = await self._after_rounds(swarm, before.rounds + self._bench.rounds)
        self._idle_from_s = 0.0
        await asyncio.sleep(2 * self._bench.round_s)
        rest = self._read(swarm)
        await asyncio.sleep(2 * self._bench.round_s)
        idle = self._read(swarm)
        self._over = True
        for island, life in zip(swarm, lives, strict=True):
            hub.kill(name(island.number))
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
        for island in swarm:
            await island.crash()
        gc.unfreeze()
        return self._figures(before, after, rest, idle)

    async def _after_rounds(self, swarm: list[SimIsland], rounds: int) -> _Reading:
        """Once all have committed so many of each fragment."""
        while min(island.node.state.chains[-1].outer_step for island in swarm) < rounds:
            await asyncio.sleep(LOOK_S)
        return self._read(swarm)

    def _read(self, swarm: list[SimIsland]) -> _Reading:
        rounds = min(island.node.state.chains[-1].outer_step for island in swarm)
        all_s = thread_cpu_s() - self._counting_s
        now_s = asyncio.get_running_loop().time()
        return _Reading(now_s, self._control_s, all_s, rounds, self._messages.copy(), self._sizes.copy())

    def _figures(self, before: _Reading, after: _Reading, rest: _Reading, idle: _Reading) -> ScaleFigures:
        rounds = after.rounds - before.rounds
        share = 1 / (self._islands * rounds)
        messages, sizes = after.messages - before.messages, after.sizes - before.sizes
        control_ms = 1e3 * (after.control_s - before.control_s)
        idle_ms = 1e3 * (idle.control_s - rest.control_s)
        seconds = after.at_s - before.at_s
        return ScaleFigures(
            islands=self._islands,
            fragments=self._fragments,
            rounds=rounds,
            seconds=seconds,
            messages=messages.total() * share,
            bytes=sizes.total() * share,
            control_ms=control_ms * share,
            all_ms=1e3 * (after.all_s - before.all_s) * share,
            training_ms_s=control_ms / (self._islands * seconds),
            idle_ms_s=idle_ms / (self._islands * (idle.at_s - rest.at_s)),
            kinds={kind: count * share for kind, count in messages.most_common()},
            kind_bytes={kind: size * share for kind, size in sizes.most_common()},
        )

    def _count(self, sender: PeerId, receiver: PeerId, message: Message) -> bool:
        began_s = thread_cpu_s()
        if message.kind not in BULK:
            head, payload = encode_frame(message)
            self._messages[message.kind] += 1
            self._sizes[message.kind] += len(head) + payload.nbytes
        self._counting_s += thread_cpu_s() - began_s
        return True

    def _meter(self, island: SimIsland) -> None:
        """Time what a network thread does for control."""
        node = island.node
        node.on_message = self._timed(node.on_message)  # type: ignore[method-assign]
        node.peers.beat = self._timed(node.peers.beat)  # type: ignore[method-assign]
        node.peers.listen = self._timed(node.peers.listen)  # type: ignore[method-assign]
        for fragment_round in node.rounds:
            fragment_round.look = self._timed(fragment_round.look)  # type: ignore[method-assign]

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            if self._timing:
                return work(*args)
            self._timing, began_s, counted_s = True, thread_cpu_s(), self._counting_s
            try:
                return work(*args)
            finally:
                self._timing = False
                self._control_s += thread_cpu_s() - began_s - (self._counting_s - counted_s)

        return timed
