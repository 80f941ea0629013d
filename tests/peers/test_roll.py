"""Who is here and where: what the roll keeps is what looking anew gives."""

import random

import pytest

from lowcomm.ledger.entry import Entry
from lowcomm.peers.bans import Bans
from lowcomm.peers.failure_detector import AdaptiveTimeout
from lowcomm.peers.peer import Chains, Peer, State
from lowcomm.peers.roll import Roll
from lowcomm.types import Digest, PeerId

START = Chains((0, 0), (Digest("a" * 64), Digest("b" * 64)), (0, 0))
PEERS = tuple(PeerId(f"p{number}") for number in range(12))


def entry(outer_step=1, fragment=0, total=100):
    return Entry(
        run_id="run", fragment=fragment, outer_step=outer_step, participants=((PEERS[0], 100),),
        total_tokens=total, stops=(4,), chunk_elements=4, update_hash=Digest("c" * 64), update_bytes=1,
        state_digest=Digest("d" * 64), previous=START.heads[fragment],
    )  # fmt: skip


def roll_of(states):
    roll = Roll(Bans())
    for peer, state in zip(PEERS, states, strict=False):
        silence = AdaptiveTimeout(1.0, 2.0, 0.0)
        roll.linked[peer] = Peer(peer, state, greeted=True, silence=silence, progress=silence)
    roll.version += 1
    return roll


@pytest.mark.parametrize("seed", range(5))
def test_places_hold_each_live_islands_that_trains_once(seed):
    draw = random.Random(seed)
    places = [START, START.moved(0, 1, Digest("e" * 64), 5), Chains()]
    states = [
        State(role=draw.choice(["island", "seed"]), phase=phase, chains=draw.choice(places))
        for phase in draw.choices(["training", "joining", "leaving"], [4, 1, 1], k=len(PEERS))
    ]
    roll = roll_of(states)
    for peer in draw.sample(PEERS, 2):
        roll.linked[peer].silent = True
    found = {peer.id: place for place, there in roll.places.items() for peer in there}
    assert found == {
        peer.id: peer.state.chains
        for peer in roll.linked.values()
        if (peer.state.role, peer.state.phase, peer.silent) == ("island", "training", False)
    }


def test_voters_reach_the_place_of_this_peer():
    roll = roll_of([State(phase="training", chains=START)] * 4)
    done = entry()
    own = START.moved(0, 1, done.hash, done.total_tokens)
    roll.reached(done, PEERS[:3], own, 1.0)
    assert all(roll.linked[peer].state.chains is own for peer in PEERS[:3])
    assert {place: len(there) for place, there in roll.places.items()} == {own: 3, START: 1}


def test_nobody_is_moved_back_or_without_having_told_where_it_is():
    done = entry()
    ahead = START.moved(0, 2, Digest("f" * 64), 200)
    roll = roll_of(
        [
            State(phase="training", chains=ahead),
            State(phase="joining", chains=START),
            State(phase="training", chains=Chains()),
        ]
    )
    before = {peer: known.state for peer, known in roll.linked.items()}
    roll.reached(done, PEERS, START.moved(0, 1, done.hash, 100), 1.0)
    assert {peer: known.state for peer, known in roll.linked.items()} == before


def test_equal_heads_with_other_totals_are_another_place():
    liar = Chains(START.outer_steps, START.heads, (10**9, 0))
    roll = roll_of([State(phase="training", chains=START), State(phase="training", chains=liar)])
    assert len(roll.places) == 2


def test_who_came_off_probation_is_trusted_at_once():
    roll = roll_of([State(phase="training", chains=START)] * 2)
    roll.banned.probation.add(PEERS[0])
    assert roll.untrusted == {PEERS[0]}
    roll.banned.proven([PEERS[0]])
    assert roll.untrusted == set()
