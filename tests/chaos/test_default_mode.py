"""The default mode: forks are rare, and lose nothing. And nobody stops the others, in either mode.

On a virtual clock.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken, lost
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import Outcome, SimSwarm, name, simulate
from lowcomm.sim.tapes import PEER_FAULTS, PeerFault, PeerFaultKind, Tape, make_tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId
from tests.chaos.seeds import fives

DEADLINE_S = 3.0
PERIOD_S = 2.0
"""Between two rounds of a fragment."""


def settings(partition: str = "continue", deadline_s: float = DEADLINE_S) -> IslandSettings:
    return IslandSettings(
        policy=RoundPolicy(deadline_s=deadline_s, partition=partition), schedule=toy_schedule(num_fragments=1)
    )


def forks(outcome: Outcome) -> list[tuple[int, int]]:
    """(fragment, outer step) of which several entries were committed."""
    found: dict[tuple[int, int], set[str]] = defaultdict(set)
    for life in outcome.lives:
        for entry in life.record.entries:
            found[entry.fragment, entry.outer_step].add(entry.hash)
    return [step for step, hashes in sorted(found.items()) if len(hashes) > 1]


@pytest.mark.parametrize("islands", [2, 3])
def test_links_that_break_for_a_second_fork_nothing(islands: int) -> None:
    """Fifty times, at any moment of a round."""
    blips = tuple(PeerFault("blip", (islands - 1,), 10.37 * (1 + time), 1.0) for time in range(50))
    outcome = simulate(islands, Tape(1, (), blips, quiet_s=10.37 * 51), settings())
    assert not broken(outcome)
    assert not forks(outcome)
    assert not lost(outcome)


def test_an_island_that_stands_still_for_longer_than_its_lease_loses_nothing() -> None:
    freezes = tuple(PeerFault("hold", (2,), 20.37 * (1 + time), 8.0) for time in range(20))
    outcome = simulate(3, Tape(1, (), freezes, quiet_s=20.37 * 21), settings())
    assert not broken(outcome)
    assert not lost(outcome)


def test_greetings_end_once_both_sides_have_them() -> None:
    """Each answer to a greeting that is repeated was answered in turn, as fast as the link is."""
    swarm = SimSwarm(3, Tape(1, (), (PeerFault("hold", (2,), 10.0, 8.0),), quiet_s=30.0), settings())
    greetings: list[float] = []

    def count(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        if message.kind == "hello":
            greetings.append(asyncio.get_running_loop().time())
        return True

    swarm._hub.filter = count
    assert not broken(run_virtually(swarm.run(), 200.0))
    assert any(moment > 10.0 for moment in greetings)  # links were dropped, and came back
    assert len(greetings) < 100


@pytest.mark.parametrize("apart", [(0,), (2,), (0, 1)], ids=["founder", "one", "halves"])
def test_what_both_sides_of_a_split_have_trained_is_credited_once(apart: tuple[int, ...]) -> None:
    split = PeerFault("partition", apart, 10.0, 60.0)
    outcome = simulate(4, Tape(1, (), (split,), quiet_s=71.0), settings())
    assert not broken(outcome)
    assert not lost(outcome)


@pytest.mark.parametrize("apart", [(3,), (0, 1)], ids=["one", "halves"])
@pytest.mark.parametrize("kind", ["stall", "stall_out", "stall_in"])
def test_peers_that_hear_each_other_commit_no_step_twice(kind: PeerFaultKind, apart: tuple[int, ...]) -> None:
    stall = PeerFault(kind, apart, 10.0, 60.0)
    outcome = simulate(4, Tape(1, (), (stall,), quiet_s=71.0), settings())
    assert not broken(outcome)
    assert not forks(outcome)
    assert not lost(outcome)


@pytest.mark.parametrize("partition", ["majority", "continue"])
@pytest.mark.parametrize("kind", ["stall", "stall_out", "stall_in", "hold"])
def test_one_island_that_is_stuck_costs_the_others_few_deadlines(kind: PeerFaultKind, partition: str) -> None:
    begun_s, stuck_s = 10.0, 120.0
    outcome = simulate(
        4,
        Tape(1, (), (PeerFault(kind, (3,), begun_s, stuck_s),), quiet_s=begun_s + stuck_s + 1.0),
        settings(partition, deadline_s=10.0),
    )
    assert not broken(outcome)
    heights = outcome.standings_when_quiet
    # who leads when is drawn by the hashes of the heads, and is worth a round or two
    assert heights[0][0].outer_step >= 0.45 * (begun_s + stuck_s) / PERIOD_S, (name(0), heights)


@pytest.mark.parametrize("first", fives(15, 30))
def test_random_tapes_with_all_faults_lose_nothing(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 5):
        islands, folder = 3 + seed % 2, tmp_path / str(seed)
        folder.mkdir()
        tape = make_tape(seed, islands, faulty_s=15.0, deadline_s=DEADLINE_S, more=tuple(PEER_FAULTS))
        outcome = simulate(islands, tape, settings(), folder)
        problems = [*broken(outcome), *lost(outcome)]
        assert not problems, (seed, problems)
