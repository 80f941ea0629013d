"""A swarm on one virtual clock under a fault tape, and what must hold whatever the tape says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges.base import Receiver
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import ShapedExchange
from lowcomm.ledger.chain import Standing
from lowcomm.rounds.promises import FilePromises, MemoryPromises, Promises
from lowcomm.sim.disk import Disk
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.striking import Striker
from lowcomm.sim.tapes import PeerFault, Tape, TapeShaper
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

RUN_ID = "sim"
LATE_S = 6.0
"""What a fault delays may come so long after the last fault."""
SETTLE_S = 30.0
"""After the last fault the swarm has so long, at most, to be one again."""


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
    """Islands that start together, fall, come back, and end together."""

    def __init__(
        self,
        islands: int,
        tape: Tape,
        settings: IslandSettings,
        folder: Path | None = None,
        shaper: TapeShaper | None = None,
    ) -> None:
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
        saved = self._lives[number][0].saved if number in self._lives else None
        island = SimIsland(
            number, exchange, self._settings, self._promises[number], self._folders[number], saved
        )
        task = asyncio.get_running_loop().create_task(island.live(expected, lambda: self._ends_s(number)))
        self._lives[number] = island, task
        self.outcome.lives.append(island)

    # -- what strikes it: see `Seats` ----------------------------------------------------------------

    @property
    def islands(self) -> int:
        return self._islands

    @property
    def hub(self) -> LoopbackHub:
        return self._hub

    @property
    def shaper(self) -> TapeShaper:
        return self._shaper

    def name(self, number: int) -> PeerId:
        """See `Seats`."""
        return name(number)

    def island(self, number: int) -> SimIsland:
        """See `Seats`."""
        return self._lives[number][0]

    async def kill(self, number: int) -> None:
        """See `Seats`."""
        island, task = self._lives[number]
        self._hub.kill(name(number))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await island.crash()

    async def send_off(self, number: int) -> None:
        """See `Seats`."""
        self._sent_off.add(number)
        try:
            await asyncio.wait([self._lives[number][1]])
        finally:
            self._sent_off.discard(number)

    def revive(self, number: int, *, again: bool) -> None:
        """See `Seats`."""
        self._start(number, founder=again and number == 0, expected=self._islands if again else 1)

    def cut_power(self, number: int) -> None:
        """See `Seats`."""
        folder = self._folders[number]
        assert folder is not None, "power cuts need run folders"
        self.disk.cut_power(folder)

    def _ends_s(self, number: int) -> float:
        return 0.0 if number in self._sent_off else self._until_s


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
