"""Plays a tape on real islands, and never takes more than the lineage can spare."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lowcomm.chaos.island import Island
from lowcomm.chaos.network import Network
from lowcomm.chaos.records import Struck
from lowcomm.chaos.swarm import START_S, Swarm
from lowcomm.chaos.tape import KILLS, MID_ROUND, STALLS, Fault, FaultKind

MOST_NEWCOMERS = 2
FAST_TICK_S = 0.002
JUMP_S = 7_200.0
AIM_S = 20.0
"""A fault in mid-round waits so long for the islands to become due at the same time; then it falls anyway."""


@dataclass(slots=True)
class _Return:
    """Something that ends a fault, at `due_s` or as soon as `ready` after that."""

    due_s: float
    ready: Callable[[], bool]
    act: Callable[[], None]


class Player:
    """Strikes the faults of a tape, each as soon as it is due and can be afforded.

    Args:
        on_fault: called with each fault when it has been struck.
        network: what partitions and slow links are made with; None where the tape has none.
    """

    def __init__(
        self,
        swarm: Swarm,
        tape: Sequence[Fault],
        on_fault: Callable[[Struck], None],
        network: Network | None = None,
    ) -> None:
        self._swarm, self._tape, self._on_fault, self._network = swarm, list(tape), on_fault, network
        self._seats = list(swarm.islands)
        self._returns: list[_Return] = []
        self._began_s = 0.0
        self._aiming_s: float | None = None

    def play(self, tick: Callable[[], None]) -> None:
        """Strike all faults, and wait until every island takes part again."""
        swarm = self._swarm
        self._began_s = swarm.now_s
        while self._tape or self._returns:
            swarm.poll(FAST_TICK_S if self._aiming_s is not None else 0.02)
            tick()
            self._bring_back()
            if (
                self._tape
                and swarm.now_s - self._began_s >= self._tape[0].at_s
                and self._strike(self._tape[0])
            ):
                self._tape.pop(0)
        self._settle(tick)

    def _settle(self, tick: Callable[[], None]) -> None:
        swarm = self._swarm
        give_up_s = swarm.now_s + START_S
        while not all(island in swarm.live and island in swarm.healthy for island in self._seats):
            swarm.poll()
            tick()
            if swarm.now_s > give_up_s:
                away = [island.name for island in self._seats if island not in swarm.healthy]
                swarm.story.hangs.append(
                    f"{', '.join(away)}: not in a round again {START_S:g} s after the last fault"
                )
                return

    def _bring_back(self) -> None:
        now_s = self._swarm.now_s
        for item in [item for item in self._returns if item.due_s <= now_s and item.ready()]:
            self._returns.remove(item)
            item.act()

    def _later(
        self, after_s: float, act: Callable[[], None], ready: Callable[[], bool] = lambda: True
    ) -> None:
        self._returns.append(_Return(self._swarm.now_s + after_s, ready, act))

    # -- striking ----------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> bool:
        """Strike a fault if it can be afforded now; whether it was."""
        swarm = self._swarm
        if fault.kind == "join":
            if sum(island.name.startswith("newcomer") for island in swarm.running) >= MOST_NEWCOMERS:
                return False
            self._tell(fault, self._join(fault))
            return True
        if fault.kind in ("loss", "slow"):
            if self._network is None or self._network.shaped:
                return False
            self._later(fault.away_s, self._network.shape(fault.kind))
            self._tell(fault, None)
            return True
        if fault.kind in MID_ROUND and not self._in_round(fault):
            return False
        victim = self._victim(fault)
        if victim is None:
            return False
        self._aiming_s = None
        self._tell(fault, victim)
        self._hit(fault, victim)
        return True

    def _tell(self, fault: Fault, island: Island | None) -> None:
        swarm = self._swarm
        struck = Struck(
            at_s=swarm.now_s,
            kind=fault.kind,
            island=island.name if island is not None else "all",
            away_s=fault.away_s,
            outer_step=swarm.outer_step,
        )
        swarm.story.faults.append(struck)
        self._on_fault(struck)

    def _victim(self, fault: Fault) -> Island | None:
        """Who is struck: the seat of the tape, or the next one that can be spared."""
        swarm, seats = self._swarm, self._seats
        leader = swarm.leads_next()
        if fault.kind == "kill_leader":
            order = [seat for seat in seats if seat is leader]
        elif fault.kind in ("kill_bootstrap", "found_again"):
            order = [seats[0]]
        else:
            order = [seats[(fault.seat + offset) % len(seats)] for offset in range(len(seats))]
            if fault.kind == "kill_reducer":
                order = [island for island in order if island is not leader]
        return next((i for i in order if i in swarm.healthy and swarm.may_spare(i)), None)

    def _in_round(self, fault: Fault) -> bool:
        """Whether the healthy islands are due now, and `jitter_s` has passed since."""
        swarm = self._swarm
        now_s, steps = swarm.now_s, swarm.plan.config.shared.schedule.inner_steps
        if self._aiming_s is None:
            self._aiming_s = now_s
        # an island writes down the inner step at which it is due after its round only
        due = bool(swarm.healthy) and all((i.inner_step + 1) % steps == 0 for i in swarm.healthy)
        since_s = now_s - max((island.heard_s for island in swarm.healthy), default=now_s)
        return (due and since_s >= fault.jitter_s) or now_s - self._aiming_s > AIM_S

    def _hit(self, fault: Fault, victim: Island) -> None:
        swarm = self._swarm
        if fault.kind in KILLS:
            daemons = victim.daemons()
            victim.kill()
            swarm.expect_end(victim, daemons)
            again = fault.kind == "found_again"
            back = partial(self._restart, victim, fresh=fault.kind == "kill_fresh", again=again)
            self._later(fault.away_s, back)
            if fault.kind == "power":
                victim.lose_power(swarm.wall_s)
        elif fault.kind == "kill_most":
            for island in [island for island in swarm.healthy if island is not victim]:
                swarm.expect_end(island, island.daemons())
                island.kill()
                self._later(fault.away_s, partial(self._restart, island, fresh=False))
        elif fault.kind == "leave":
            victim.interrupt()
            self._later(
                fault.away_s, lambda: self._restart(victim, fresh=False), lambda: victim.process is None
            )
        elif fault.kind == "p2pd":
            for daemon in victim.daemons():
                os.kill(daemon.pid, signal.SIGKILL)
            self._hinder(victim, fault.kind, swarm.plan.config.exchange.lease_s, lambda: None)
        elif fault.kind in ("freeze", "freeze_host"):
            wake = victim.freeze(host=fault.kind == "freeze_host")
            self._hinder(victim, fault.kind, fault.away_s, wake)
        elif fault.kind == "disk_full":
            self._hinder(victim, fault.kind, fault.away_s, victim.fill_disk())
        elif fault.kind == "slow_disk":
            self._hinder(victim, fault.kind, fault.away_s, victim.slow_disk())
        elif fault.kind == "clock":
            by_s = JUMP_S if fault.seat % 2 else -JUMP_S
            self._hinder(victim, fault.kind, fault.away_s, victim.set_clock(by_s))
        elif fault.kind in STALLS:
            heal = victim.stall(out=fault.kind != "stall_in", into=fault.kind != "stall_out")
            self._hinder(victim, fault.kind, fault.away_s, heal)
        elif self._network is not None:
            self._cut(self._network, fault, victim)

    def _cut(self, network: Network, fault: Fault, victim: Island) -> None:
        struck = [victim]
        if fault.kind == "halves":
            first, seats = self._seats.index(victim), self._seats * 2
            struck = [i for i in seats[first : first + len(self._seats) // 2] if i.process is not None]
        heal = network.cut([island.shard for island in struck], one_way=fault.kind == "one_way")
        if fault.kind == "blip":
            network.reset(victim.shard)
        for number, island in enumerate(struck):
            self._hinder(island, fault.kind, fault.away_s, heal if number == 0 else lambda: None)

    def _hinder(self, island: Island, why: FaultKind, seconds: float, end: Callable[[], None]) -> None:
        process = island.process
        island.hindered.append(why)

        def over() -> None:
            end()
            if island.process is process and why in island.hindered:
                island.hindered.remove(why)
                island.back(why, self._swarm.now_s)

        self._later(seconds, over)

    def _restart(self, island: Island, *, fresh: bool, again: bool = False) -> None:
        swarm = self._swarm
        if again:
            return swarm.start_again(island)
        if fresh:
            seat = self._seats.index(island)
            generation = sum(other.shard == island.shard for other in swarm.islands)
            island = swarm.add(f"island-{seat}-{generation}", island.shard)
            self._seats[seat] = island
        return swarm.start(island)

    def _join(self, fault: Fault) -> Island:
        swarm = self._swarm
        newcomer = swarm.newcomer()
        swarm.start(newcomer)

        def trains_or_gone() -> bool:
            return newcomer.process is None or newcomer.took_part > 0

        def may_leave() -> bool:
            return newcomer.process is None or swarm.may_spare(newcomer)

        def stay() -> None:
            self._later(fault.away_s, leave, may_leave)

        def leave() -> None:
            if newcomer.process is not None:
                newcomer.interrupt()
                self._later(0.0, lambda: None, lambda: newcomer.process is None)

        self._later(0.0, stay, trains_or_gone)
        return newcomer
