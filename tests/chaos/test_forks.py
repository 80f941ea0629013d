"""Both sides of a split commit: one history stands, and nobody's work is lost. On a virtual clock."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.ledger.entry import Entry
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

SPLIT_S, HEALED_S = 10.0, 45.0
"""Longer than a grace of three leases of 4 s, so that the smaller side goes on, too."""
POLICY = RoundPolicy(deadline_s=2.0)


def split(
    islands: int, apart: set[int], step_s: float | Callable[[int, float], float] = 0.4, fragments: int = 1
) -> Outcome:
    """A run in which some islands are cut off from the others for a while."""
    settings = IslandSettings(policy=POLICY, schedule=toy_schedule(num_fragments=fragments), step_s=step_s)
    swarm = SimSwarm(islands, Tape(1, (), (), quiet_s=80.0), settings)
    inside = {name(number) for number in apart}

    def links(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        within = SPLIT_S < asyncio.get_running_loop().time() < HEALED_S
        return not (within and (sender in inside) != (receiver in inside))

    swarm._hub.filter = links
    return run_virtually(swarm.run(), 300.0)


def history(outcome: Outcome, fragment: int = 0) -> list[Entry]:
    """The entries that lead to the head that all have at the end, the newest first."""
    entries = {entry.hash: entry for life in outcome.lives for entry in life.record.entries}
    head = max(
        (life.node.state.chains[fragment] for life in outcome.final), key=lambda chain: chain.standing
    ).head
    found = []
    while head in entries:
        found.append(entries[head])
        head = entries[head].previous
    return found


def twice(outcome: Outcome) -> int:
    """How many outer steps have several entries."""
    by_step: dict[tuple[int, int], set[str]] = defaultdict(set)
    for life in outcome.lives:
        for entry in life.record.entries:
            by_step[entry.fragment, entry.outer_step].add(entry.hash)
    return sum(len(heads) > 1 for heads in by_step.values())


def assert_credited_once(outcome: Outcome) -> None:
    """What each island counts as credited is what the history that stands credits it."""
    for fragment in range(outcome.settings.schedule.num_fragments):
        entries = history(outcome, fragment)
        for life in outcome.final:
            me = name(life.number)
            ledger = sum(entry.tokens_of(me) or 0 for entry in entries)
            assert ledger == life.credited[fragment] + life.node.submissions.late_tokens(fragment)


@pytest.mark.parametrize(
    ("islands", "apart", "fragments"),
    [(2, {1}, 1), (3, {2}, 1), (3, {2}, 2), (4, {2, 3}, 1), (5, {3, 4}, 1), (5, {0, 1}, 2)],
    ids=["two", "one-of-three", "two-fragments", "halves", "two-of-five", "the-founders-side"],
)
def test_what_the_losers_did_is_brought_in_once(islands: int, apart: set[int], fragments: int) -> None:
    outcome = split(islands, apart, fragments=fragments)
    assert twice(outcome) > 5
    assert not broken(outcome)
    assert_credited_once(outcome)


def test_more_than_half_of_those_who_may_decide_stand_whatever_the_others_have_trained() -> None:
    outcome = split(5, {3, 4}, step_s=lambda number, _: 0.1 if number > 2 else 0.4)
    assert not broken(outcome)
    assert_credited_once(outcome)
    for life in outcome.final:
        assert bool(life.record.snapshots) is (life.number > 2)  # only the two have changed sides


def test_a_split_shorter_than_the_grace_forks_nothing() -> None:
    settings = IslandSettings(policy=POLICY, schedule=toy_schedule(num_fragments=1))
    for islands in (2, 3):
        swarm = SimSwarm(islands, Tape(1, (), (), quiet_s=60.0), settings)

        def links(sender: PeerId, receiver: PeerId, message: Message, last: int = islands - 1) -> bool:
            within = SPLIT_S < asyncio.get_running_loop().time() < SPLIT_S + 8.0
            return not (within and name(last) in (sender, receiver))

        swarm._hub.filter = links
        outcome = run_virtually(swarm.run(), 200.0)
        assert twice(outcome) == 0
        assert not broken(outcome)
        assert_credited_once(outcome)
