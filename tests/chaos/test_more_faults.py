"""Faults of links, disks and processes beside those of messages: on a virtual clock, with run folders."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.shaped import Fate
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.disk import Disk, SimExecutor
from lowcomm.sim.invariants import broken, lost
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import Outcome, SimSwarm, name, simulate
from lowcomm.sim.tapes import BULK, MORTAL, PEER_FAULTS, PeerFault, PeerFaultKind, Tape, TapeShaper, make_tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.storage.files import sync_folder
from lowcomm.types import PeerId
from tests.chaos.seeds import fives
from tests.chaos.test_island_side import SCHEDULES

DEADLINE_S = 3.0
QUICK_SEEDS, SEEDS = 10, 20
BEGUN_S, AWAY_S = 8.0, 6.0


def settings(partition: str, **changes: object) -> IslandSettings:
    policy = RoundPolicy(deadline_s=DEADLINE_S, partition=partition)
    return IslandSettings(**{"policy": policy, **changes})  # type: ignore[arg-type]


def forks(outcome: Outcome) -> list[tuple[int, int]]:
    """(fragment, outer step) of which several entries were committed."""
    found: dict[tuple[int, int], set[str]] = defaultdict(set)
    for life in outcome.lives:
        for entry in life.record.entries:
            found[entry.fragment, entry.outer_step].add(entry.hash)
    return [step for step, hashes in sorted(found.items()) if len(hashes) > 1]


@pytest.mark.parametrize("partition", ["majority", "continue"])
@pytest.mark.parametrize("first", fives(QUICK_SEEDS, SEEDS))
def test_random_tapes_with_all_faults_break_nothing(partition: str, first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 5):
        islands, folder = 3 + seed % 2, tmp_path / str(seed)
        folder.mkdir()
        tape = make_tape(seed, islands, faulty_s=15.0, deadline_s=DEADLINE_S, more=tuple(PEER_FAULTS))
        problems = broken(simulate(islands, tape, settings(partition), folder))
        assert not problems, (seed, problems)


def test_tapes_from_before_these_faults_are_what_they_were() -> None:
    few, more = make_tape(5, 4), make_tape(5, 4, more=("blip",))
    assert few.messages == more.messages
    assert set(few.peers) < set(more.peers)


class Watching(TapeShaper):
    """Counts what came through to, and from, the island that is struck, while it is."""

    def __init__(self, tape: Tape, struck: PeerId) -> None:
        super().__init__(tape)
        self._struck = struck
        self.passed: Counter[str] = Counter()

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        fate = super().fate(sender, receiver, message, now_s)
        way = "out" if sender == self._struck else "in" if receiver == self._struck else ""
        if now_s >= BEGUN_S and any(now_s + delay_s < BEGUN_S + AWAY_S for delay_s in fate.delays_s):
            self.passed[way + (" bulk" if message.kind in BULK else " control")] += 1
        return fate


NOTHING = frozenset[str]()
ALL = frozenset({"in bulk", "in control", "out bulk", "out control"})
PASSES: dict[PeerFaultKind, frozenset[str]] = {
    "partition": NOTHING,
    "one_way": frozenset({"in control", "in bulk"}),
    "hold": NOTHING,
    "stall": frozenset({"in control", "out control"}),
    "stall_out": frozenset({"in control", "out control", "in bulk"}),
    "stall_in": frozenset({"in control", "out control", "out bulk"}),
    "slow_disk": ALL,
}


@pytest.mark.parametrize("kind", sorted(PASSES))
def test_what_passes_while_a_peer_is_struck(kind: PeerFaultKind, tmp_path: Path) -> None:
    tape = Tape(1, (), (PeerFault(kind, (2,), BEGUN_S, AWAY_S),), quiet_s=BEGUN_S + AWAY_S + 1.0)
    swarm = SimSwarm(4, tape, settings("majority"), tmp_path)
    swarm._shaper = shaper = Watching(tape, name(2))
    outcome = run_virtually(swarm.run(), 200.0)
    assert not broken(outcome)
    assert set(shaper.passed) - {" bulk", " control"} <= PASSES[kind]
    assert {way for way in PASSES[kind] if "control" in way} <= set(shaper.passed)


def lives_of(outcome: Outcome, number: int) -> int:
    return sum(life.number == number for life in outcome.lives)


@pytest.mark.parametrize("kind", ["crash", "again", "power", "leave"])
def test_who_is_gone_comes_back(kind: PeerFaultKind, tmp_path: Path) -> None:
    tape = Tape(1, (), (PeerFault(kind, (0,), BEGUN_S, AWAY_S),), quiet_s=BEGUN_S + AWAY_S + 1.0)
    outcome = simulate(3, tape, settings("continue"), tmp_path)
    assert not broken(outcome)
    assert not forks(outcome)
    assert lives_of(outcome, 0) == 2


def test_goodbyes_arrive() -> None:
    """As they do on a socket that is closed: the others know who has left in order, and who has died."""

    async def scenario() -> tuple[set[PeerId], set[PeerId]]:
        faults = (PeerFault("leave", (2,), BEGUN_S, 20.0), PeerFault("crash", (1,), BEGUN_S, 20.0))
        swarm = SimSwarm(4, Tape(1, (), faults, quiet_s=50.0), settings("continue"))
        running = asyncio.ensure_future(swarm.run())
        await asyncio.sleep(BEGUN_S + 10.0)
        away = set(swarm.island(0).node.peers.departed)
        await asyncio.sleep(30.0)
        back = set(swarm.island(0).node.peers.departed)
        await running
        return away, back

    assert run_virtually(scenario(), 300.0) == ({name(2)}, set())


def test_links_that_break_are_made_again(tmp_path: Path) -> None:
    broke = 0

    async def scenario() -> Outcome:
        nonlocal broke
        tape = Tape(1, (), (PeerFault("blip", (2,), BEGUN_S, 1.0),), quiet_s=BEGUN_S + 2.0)
        swarm = SimSwarm(3, tape, settings("majority"), tmp_path)
        running = asyncio.ensure_future(swarm.run())
        await asyncio.sleep(BEGUN_S + 0.9)
        broke = 2 - len(swarm.island(2).node.links.connected())
        return await running

    assert not broken(run_virtually(scenario(), 200.0))
    assert broke


@pytest.mark.parametrize("partition", ["majority", "continue"])
def test_a_founder_that_is_started_again_and_again_founds_one_run(partition: str, tmp_path: Path) -> None:
    times = 20
    faults = tuple(PeerFault("again", (0,), BEGUN_S * (1 + time), 1.0) for time in range(times))
    outcome = simulate(3, Tape(1, (), faults, quiet_s=BEGUN_S * (times + 1)), settings(partition), tmp_path)
    assert not broken(outcome)
    assert not forks(outcome)
    assert not lost(outcome)
    assert lives_of(outcome, 0) == times + 1


@pytest.mark.parametrize("partition", ["majority", "continue"])
def test_a_swarm_is_one_again_after_an_outage_longer_than_every_timeout(partition: str) -> None:
    apart = PeerFault("partition", (2, 3), BEGUN_S, 1_000.0)
    chosen = settings(partition, step_s=4.0)
    assert not broken(simulate(4, Tape(1, (), (apart,), quiet_s=1_020.0), chosen))


@pytest.mark.parametrize("partition", ["majority", "continue"])
@pytest.mark.parametrize("kind", ["crash", "power"])
def test_one_that_is_left_takes_the_others_in_again(
    partition: str, kind: PeerFaultKind, tmp_path: Path
) -> None:
    gone = PeerFault(kind, (0, 1, 3), BEGUN_S, AWAY_S)
    outcome = simulate(4, Tape(1, (), (gone,), quiet_s=BEGUN_S + AWAY_S + 1.0), settings(partition), tmp_path)
    assert not broken(outcome)
    assert not forks(outcome)


def tape_of_power_cuts(seed: int) -> Tape:
    """One, two or all islands lose power, besides crashes and messages that fail."""
    rng = random.Random(f"power {seed}")
    tape = make_tape(seed, 3, faulty_s=15.0, peer_faults=0, more=MORTAL)
    struck = tuple(sorted(rng.sample(range(3), rng.choice([1, 2, 3, 3]))))
    cut = PeerFault("power", struck, rng.uniform(3.0, 12.0), rng.uniform(0.5, 4.0))
    peers = tuple(sorted((*tape.peers, cut), key=lambda fault: fault.start_s))
    return replace(tape, peers=peers, messages=tape.messages[: rng.choice([0, 2])])


@pytest.mark.parametrize("partition", ["majority", "continue"])
@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(100, 400))]
)
def test_power_cuts_of_any_islands_with_checkpoints_void_nothing(
    partition: str, seed: int, tmp_path: Path
) -> None:
    schedule = list(SCHEDULES.values())[seed % len(SCHEDULES)]
    chosen = settings(partition, schedule=schedule, save_every=3 + seed % 3)
    assert not broken(simulate(3, tape_of_power_cuts(seed), chosen, tmp_path))


LOST_ONE_AFTER_THE_OTHER = (
    PeerFault("power", (1, 2), 5.67, 2.6),
    PeerFault("power", (1, 2), 9.16, 1.68),
    PeerFault("crash", (0,), 10.31, 4.29),
)
BACK_AMONG_THOSE_WHO_MISSED_IT = (
    PeerFault("power", (2,), 3.03, 0.89),
    PeerFault("power", (0, 1), 4.53, 1.9),
    PeerFault("power", (1,), 7.24, 5.68),
)


@pytest.mark.parametrize(
    ("schedule", "cuts"),
    [("eager-auto", LOST_ONE_AFTER_THE_OTHER), ("matched-auto", BACK_AMONG_THOSE_WHO_MISSED_IT)],
    ids=["lost one after the other", "back among those who missed it"],
)
def test_what_was_committed_stands_where_checkpoints_lack_it(
    schedule: str, cuts: tuple[PeerFault, ...], tmp_path: Path
) -> None:
    chosen = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority"),
        schedule=SCHEDULES[schedule],
        save_every=3,
        step_s=lambda number, now_s: 0.3 + 0.1 * number,
    )
    outcome = simulate(3, Tape(54, (), cuts, quiet_s=15.0), chosen, tmp_path)
    assert not broken(outcome)
    last = outcome.lives[-1]
    assert last.side.resumes
    assert not last.record.snapshots


def write(path: Path, data: bytes, *, synced: bool) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def test_a_power_cut_takes_what_was_not_synced(tmp_path: Path) -> None:
    disk = Disk()
    with disk.noting():
        write(tmp_path / "whole", b"abc", synced=True)
        write(tmp_path / "named", b"abc", synced=False)
        write(tmp_path / "tail", b"abc", synced=True)
        sync_folder(tmp_path)
        write(tmp_path / "never", b"abc", synced=False)
        with (tmp_path / "tail").open("ab") as file:
            file.write(b"def")
    disk.cut_power(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "whole": b"abc",
        "named": b"",
        "tail": b"abc",
    }


def test_a_slow_disk_keeps_work_waiting_and_forgets_it_when_the_island_dies() -> None:
    async def scenario() -> list[tuple[str, float]]:
        loop, done = asyncio.get_running_loop(), []
        pool = SimExecutor()
        await loop.run_in_executor(pool, lambda: done.append(("at once", loop.time())))
        pool.delay_s = 2.0
        await loop.run_in_executor(pool, lambda: done.append(("slow", loop.time())))
        dropped = loop.run_in_executor(pool, lambda: done.append(("never", loop.time())))
        pool.shutdown()
        await asyncio.sleep(5.0)
        assert not dropped.done()
        dropped.cancel()
        return done

    assert run_virtually(scenario(), 20.0) == [("at once", 0.0), ("slow", 2.0)]
