"""What strikes the islands of a simulated swarm, one fault at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.sim.island import SimIsland
from lowcomm.sim.tapes import PeerFault, TapeShaper, Way
from lowcomm.types import PeerId

BREAKS_EVERY_S = 0.3
"""Links that are made again during a blip break again."""
SLOW_S = 1.0


class Seats(Protocol):
    """The islands of a swarm, by number, as far as faults need them."""

    @property
    def islands(self) -> int: ...

    @property
    def hub(self) -> LoopbackHub: ...

    @property
    def shaper(self) -> TapeShaper: ...

    def name(self, number: int) -> PeerId:
        """The peer id of an island."""
        ...

    def island(self, number: int) -> SimIsland:
        """The present life of an island."""
        ...

    async def kill(self, number: int) -> None:
        """End its life at once."""
        ...

    async def send_off(self, number: int) -> None:
        """Let it leave in order."""
        ...

    def revive(self, number: int, *, again: bool) -> None:
        """Start its next life; `again`: as its first one was."""
        ...

    def cut_power(self, number: int) -> None:
        """What it had not synced is lost."""
        ...


class Striker:
    """Strikes the faults of a tape."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats

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
                self._until(self._seats.shaper.stalled, ways, fault.away_s)
            case "hold":
                self._until(self._seats.shaper.held, self._ways(fault, out=True, into=True), fault.away_s)
            case "blip":
                await self._break_links(fault)
            case "slow_disk":
                await self._slow_down(fault)

    async def _take_away(self, fault: PeerFault) -> None:
        seats = self._seats
        living = [number for number in range(seats.islands) if seats.island(number).phase == "training"]
        gone = [number for number in fault.peers if seats.island(number).phase not in ("dead", "left")]
        if not set(living) - set(gone) and not any(seats.island(number).saved for number in gone):
            gone = gone[1:]  # nobody would have the state any more
        for number in gone:
            await (seats.send_off if fault.kind == "leave" else seats.kill)(number)
            if fault.kind == "power":
                seats.cut_power(number)
        await asyncio.sleep(fault.away_s)
        for number in gone:
            if seats.island(number).phase in ("dead", "left"):
                seats.revive(number, again=fault.kind == "again")

    def _ways(self, fault: PeerFault, *, out: bool, into: bool) -> list[Way]:
        """Between those that are struck and all others."""
        name, inside = self._seats.name, set(fault.peers)
        pairs = [
            (name(one), name(other))
            for one in inside
            for other in range(self._seats.islands)
            if other not in inside
        ]
        return [*(pairs if out else ()), *((other, one) for one, other in pairs if into)]

    async def _part(self, ways: list[Way], seconds: float) -> None:
        self._seats.shaper.apart |= set(ways)
        await asyncio.sleep(seconds)
        self._seats.shaper.apart -= set(ways)

    @staticmethod
    def _until(table: dict[Way, float], ways: list[Way], seconds: float) -> None:
        until_s = asyncio.get_running_loop().time() + seconds
        table.update({way: max(table.get(way, 0.0), until_s) for way in ways})

    async def _break_links(self, fault: PeerFault) -> None:
        ways = self._ways(fault, out=True, into=False)

        def cut() -> None:
            for one, other in ways:
                self._seats.hub.cut(one, other)

        await self._repeat(cut, fault.away_s)

    @staticmethod
    async def _repeat(act: Callable[[], None], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            act()
            await asyncio.sleep(min(BREAKS_EVERY_S, until_s - loop.time()))

    async def _slow_down(self, fault: PeerFault) -> None:
        pools = [self._seats.island(number).pool for number in fault.peers]
        for pool in pools:
            pool.delay_s = SLOW_S
        await asyncio.sleep(fault.away_s)
        for pool in pools:
            pool.delay_s = 0.0
