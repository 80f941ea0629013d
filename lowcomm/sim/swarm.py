"""A swarm on one virtual clock under a fault tape, and what must hold whatever the tape says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges.base import Receiver
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import ShapedExchange
from lowcomm.ledger.chain import Standing
from lowcomm.rounds.promises import FilePromises, Promises
from lowcomm.sim.disk import Disk
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.tapes import PeerFault, Tape, TapeShaper, Way
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

RUN_ID = "sim"
LATE_S = 6.0
"""What a fault delays may come so long after the last fault."""
SETTLE_S = 30.0
"""After the last fault the swarm has so long, at most, to be one again."""
BREAKS_EVERY_S = 0.3
"""Links that are made again during a blip break again."""
SLOW_S = 1.0


def name(number: int) -> PeerId:
    """The peer id of an island."""
    return PeerId(f"island-{number}")


@dataclass(slots=True)
class Outcome:
    """What a simulated run came to.

    Attributes:
        lives: every life of every island, in order of birth.
        heads_when_quiet: outer steps of each live island when the faults ceased.
        struck: messages that met each (action, kind).
    """

    tape: Tape
    settings: IslandSettings
    lives: list[SimIsland] = field(default_factory=list)
    final: list[SimIsland] = field(default_factory=list)
    standings_when_quiet: dict[int, tuple[Standing, ...]] = field(default_factory=dict)
    final_standings: dict[int, tuple[Standing, ...]] = field(default_factory=dict)
    final_heads: dict[int, tuple[str, ...]] = field(default_factory=dict)
    struck: dict[tuple[str, str], int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class SimSwarm:
    """Islands that start together, fall, come back, and end together.

    Args:
        kinds: of islands that are not like all others, by number.
    """

    def __init__(
        self,
        islands: int,
        tape: Tape,
        settings: IslandSettings,
        folder: Path | None = None,
        shaper: TapeShaper | None = None,
        kinds: Mapping[int, type[SimIsland]] | None = None,
    ) -> None:
        self._kinds = kinds or {}
        self._islands, self._tape, self._settings = islands, tape, settings
        self._hub = LoopbackHub()
        self._shaper = shaper or TapeShaper(tape)
        self._folders = [_made(folder / name(number)) if folder else None for number in range(islands)]
        self._promises: list[Promises] = [
            FilePromises(own) if own else MemoryPromises() for own in self._folders
        ]
        self._until_s = tape.quiet_s + SETTLE_S
        self._lives: dict[int, tuple[SimIsland, asyncio.Task[None]]] = {}
        self._sent_off: set[int] = set()
        self.disk = Disk()
        self.outcome = Outcome(tape, settings)

    async def run(self) -> Outcome:
        """From the first start to the last end."""
        loop = asyncio.get_running_loop()
        for number in range(self._islands):
            self._start(number, founder=number == 0, expected=self._islands)
        faults = [loop.create_task(self.strike(fault)) for fault in self._tape.peers]
        await asyncio.sleep(self._tape.quiet_s)
        for fault in faults:
            await fault
        for table in (self._shaper.apart, self._shaper.held, self._shaper.stalled):
            table.clear()
        self.outcome.standings_when_quiet = self._standings()
        await asyncio.sleep(LATE_S)
        while loop.time() < self._until_s - 1.0 and not self._one_again():
            await asyncio.sleep(0.5)
        self._until_s = min(self._until_s, loop.time() + 1.0)
        self.outcome.final_standings = self._standings()
        self.outcome.final_heads = {
            number: tuple(chain.head for chain in island.node.state.chains)
            for number, (island, _) in self._lives.items()
        }
        for number, (island, task) in sorted(self._lives.items()):
            self.outcome.final.append(island)
            try:
                await task
            except Exception as error:  # whatever ended an island is a finding, and named as such
                self.outcome.errors.append(f"{name(number)} ended with {error!r}")
        self.outcome.struck = dict(self._shaper.struck)
        return self.outcome

    async def strike(self, fault: PeerFault) -> None:
        """From the fault's beginning, `start_s` from now, to its end."""
        await Striker(self).strike(fault)

    def _one_again(self) -> bool:
        """Whether each island's last commit of each fragment is one of all islands, after the faults."""
        lives = [island for island, _ in self._lives.values()]
        if any(island.phase != "training" for island in lives):
            return False
        for fragment, standings in enumerate(zip(*self._standings().values(), strict=True)):
            before = max(then[fragment] for then in self.outcome.standings_when_quiet.values())
            steps = [standing.outer_step for standing in standings]
            if min(standings) <= before or max(steps) - min(steps) > 1:
                return False
            for island in lives:
                committed = [r for r in island.reports if r.fragment == fragment and r.committed]
                if not committed or len(committed[-1].participants) < len(lives):
                    return False
        return True

    def _standings(self) -> dict[int, tuple[Standing, ...]]:
        return {
            number: tuple(chain.standing for chain in island.node.state.chains)
            for number, (island, _) in self._lives.items()
        }

    def _start(self, number: int, *, founder: bool, expected: int) -> None:
        inner = SimExchange(self._hub, RUN_ID, name(number), founder=founder)
        exchange = ShapedExchange(inner, self._shaper)
        kind = self._kinds.get(number, SimIsland)
        saved = self._lives[number][0].saved if number in self._lives else None
        island = kind(number, exchange, self._settings, self._promises[number], self._folders[number], saved)
        task = asyncio.get_running_loop().create_task(island.live(expected, lambda: self._ends_s(number)))
        self._lives[number] = island, task
        self.outcome.lives.append(island)

    # -- what strikes it ---------------------------------------------------------------------------

    @property
    def hub(self) -> LoopbackHub:
        """What connects the islands."""
        return self._hub

    def island(self, number: int) -> SimIsland:
        """The present life of an island."""
        return self._lives[number][0]

    async def kill(self, number: int) -> None:
        """End its life at once."""
        island, task = self._lives[number]
        self._hub.kill(name(number))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await island.crash()

    async def send_off(self, number: int) -> None:
        """Let it leave in order."""
        self._sent_off.add(number)
        try:
            await asyncio.wait([self._lives[number][1]])
        finally:
            self._sent_off.discard(number)

    def revive(self, number: int, *, again: bool) -> None:
        """Start its next life; `again`: as its first one was."""
        self._start(number, founder=again and number == 0, expected=self._islands if again else 1)

    def cut_power(self, number: int) -> None:
        """What it had not synced is lost."""
        folder = self._folders[number]
        assert folder is not None, "power cuts need run folders"
        self.disk.cut_power(folder)

    def _ends_s(self, number: int) -> float:
        return 0.0 if number in self._sent_off else self._until_s


class Striker:
    """Strikes the faults of a tape."""

    def __init__(self, swarm: SimSwarm) -> None:
        self._swarm = swarm

    async def strike(self, fault: PeerFault) -> None:
        """From the fault's beginning to its end."""
        await asyncio.sleep(fault.start_s)
        match fault.kind:
            case "crash" | "again" | "power" | "leave":
                await self._take_away(fault)
            case "partition" | "one_way":
                await self._part(self._ways(fault, out=True, into=fault.kind == "partition"), fault.away_s)
            case "stall" | "stall_out" | "stall_in":
                ways = self._ways(fault, out=fault.kind != "stall_in", into=fault.kind != "stall_out")
                self._until(self._swarm._shaper.stalled, ways, fault.away_s)
            case "hold":
                self._until(self._swarm._shaper.held, self._ways(fault, out=True, into=True), fault.away_s)
            case "blip":
                await self._break_links(fault)
            case "slow_disk":
                await self._slow_down(fault)

    async def _take_away(self, fault: PeerFault) -> None:
        swarm = self._swarm
        living = [number for number in range(swarm._islands) if swarm.island(number).phase == "training"]
        gone = [number for number in fault.peers if swarm.island(number).phase not in ("dead", "left")]
        kept = any(swarm.island(number).saved for number in gone)
        if gone and not kept and not set(living) - set(gone):
            # nobody would have the state any more
            gone.remove(next(number for number in [*living, *gone] if number in gone))
        for number in gone:
            await (swarm.send_off if fault.kind == "leave" else swarm.kill)(number)
            if fault.kind == "power":
                swarm.cut_power(number)
        await asyncio.sleep(fault.away_s)
        for number in gone:
            if swarm.island(number).phase in ("dead", "left"):
                swarm.revive(number, again=fault.kind == "again")

    def _ways(self, fault: PeerFault, *, out: bool, into: bool) -> list[Way]:
        """Between those that are struck and all others."""
        inside = set(fault.peers)
        pairs = [
            (name(one), name(other))
            for one in inside
            for other in range(self._swarm._islands)
            if other not in inside
        ]
        return [*(pairs if out else ()), *((other, one) for one, other in pairs if into)]

    async def _part(self, ways: list[Way], seconds: float) -> None:
        self._swarm._shaper.apart |= set(ways)
        await asyncio.sleep(seconds)
        self._swarm._shaper.apart -= set(ways)

    @staticmethod
    def _until(table: dict[Way, float], ways: list[Way], seconds: float) -> None:
        until_s = asyncio.get_running_loop().time() + seconds
        table.update({way: max(table.get(way, 0.0), until_s) for way in ways})

    async def _break_links(self, fault: PeerFault) -> None:
        ways = self._ways(fault, out=True, into=False)

        def cut() -> None:
            for one, other in ways:
                self._swarm._hub.cut(one, other)

        await self._repeat(cut, fault.away_s)

    @staticmethod
    async def _repeat(act: Callable[[], None], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            act()
            await asyncio.sleep(min(BREAKS_EVERY_S, until_s - loop.time()))

    async def _slow_down(self, fault: PeerFault) -> None:
        pools = [self._swarm.island(number).pool for number in fault.peers]
        for pool in pools:
            pool.delay_s = SLOW_S
        await asyncio.sleep(fault.away_s)
        for pool in pools:
            pool.delay_s = 0.0


class SimExchange(LoopbackExchange):
    """A peer of the hub with an address, so that others remember it, and reach it again."""

    @property
    def addresses(self) -> Sequence[str]:
        host = int(self.peer_id.rpartition("-")[2]) + 1
        return (f"/ip4/203.0.113.{host}/tcp/31337/p2p/{self.peer_id}",)

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        """See `Exchange`; those that it has met are dialled as well."""
        await super().start(receiver, met)
        for text in met:
            with contextlib.suppress(PeerUnreachableError):
                await self.connect(PeerId(text.rpartition("/")[2]), ())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def simulate(islands: int, tape: Tape, settings: IslandSettings, folder: Path | None = None) -> Outcome:
    """Run a tape to its end.

    Args:
        folder: where the islands' run folders are, which outlive their crashes; None = they have none, and
            their votes outlive crashes in memory.

    Raises:
        HungError: somebody waits for ever.
    """
    limit_s = tape.quiet_s + SETTLE_S + 60.0
    swarm = SimSwarm(islands, tape, settings, folder)
    with swarm.disk.noting():
        return run_virtually(swarm.run(), limit_s)
