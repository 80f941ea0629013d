"""A peer that was put out comes back: after a while, as one that nobody follows. On a virtual clock."""

import asyncio
from collections.abc import Callable

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.peers.bans import Bans
from lowcomm.peers.terms import Terms
from lowcomm.rounds.claims import Limits
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

ANN, BOB = PeerId("ann"), PeerId("bob")
BROKEN = 2
LIES_S, BAN_S = (20.0, 40.0), 30.0


def test_each_ban_is_twice_as_long_as_the_one_before() -> None:
    bans = Bans(10.0)
    bans.add(ANN, "it lied", 0.0)
    assert ANN in bans
    assert BOB not in bans
    assert bans.reason(ANN, 4.0) == "it lied; it is out for 6 s more"
    assert bans.expire(9.9) == []
    assert bans.expire(10.0) == [ANN]
    assert ANN not in bans
    bans.add(ANN, "again", 10.0)
    assert bans.expire(29.9) == []
    assert bans.expire(30.0) == [ANN]


def test_who_comes_back_is_on_probation_until_a_round_with_it_commits() -> None:
    bans = Bans(10.0)
    bans.add(ANN, "it lied", 0.0)
    bans.expire(10.0)
    assert bans.probation == {ANN}
    bans.proven([BOB])
    assert bans.probation == {ANN}
    bans.proven([ANN, BOB])
    assert bans.probation == set()


def test_without_a_length_a_ban_is_for_good() -> None:
    bans = Bans(0.0)
    bans.add(ANN, "it lied", 0.0)
    assert bans.expire(1e12) == []
    assert bans.reason(ANN, 1e12) == "it lied; it is out until this island restarts"


def settings(step_s: float | Callable[[int, float], float] = 0.4) -> IslandSettings:
    limits = Limits(max_tokens=1_000, max_rejections=1, ban_s=BAN_S)
    return IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, limits=limits),
        layout=(TensorSpec("weights", (64,)),),
        schedule=toy_schedule(num_fragments=1),
        step_s=step_s,
    )


def test_an_island_that_was_mended_takes_part_again() -> None:
    """It claims tokens that nobody can have trained, is put out, dies, and comes back sound."""
    faults = (PeerFault("crash", (BROKEN,), LIES_S[1], BAN_S + 5.0),)
    swarm = SimSwarm(4, Tape(1, (), faults, quiet_s=100.0), settings())

    def lie(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        now_s = asyncio.get_running_loop().time()
        if sender == name(BROKEN) and message.kind == "ready" and LIES_S[0] < now_s < LIES_S[1]:
            return Message("ready", {**message.body, "tokens": 10**9}, message.payload)
        return True

    swarm._hub.filter = lie
    outcome = run_virtually(swarm.run(), 300.0)
    assert not broken(outcome)
    entries = outcome.final[0].record.entries
    with_it = [entry.tokens_of(name(BROKEN)) is not None for entry in entries]
    assert not any(with_it[20:35])
    assert all(with_it[-15:])
    assert not outcome.final[0].node.peers.banned.probation


def test_an_island_that_went_on_alone_leads_nobody_away() -> None:
    """It is put out by all others, goes on alone and gets ahead; then they link to it again."""

    def step_s(number: int, now_s: float) -> float:
        return 0.1 if number == BROKEN else 0.4  # trains more than the other three

    swarm = SimSwarm(4, Tape(1, (), (), quiet_s=100.0), settings(step_s))

    async def scenario() -> Outcome:
        running = asyncio.create_task(swarm.run())
        await asyncio.sleep(20.0)
        for island in swarm.outcome.lives:
            if island.number != BROKEN:
                island.node.peers.ban(name(BROKEN), "for the test")
        return await running

    outcome = run_virtually(scenario(), 300.0)
    assert not outcome.errors
    others = [outcome.final[number] for number in range(4) if number != BROKEN]
    assert not broken(outcome)  # it has come over to their history by then
    assert outcome.final[BROKEN].record.snapshots
    for island in others:
        entries = island.record.entries
        assert [entry.outer_step for entry in entries] == list(range(1, len(entries) + 1))
        assert all(len(entry.participants) >= 3 for entry in entries)
        assert not island.node.peers.banned.probation
        assert not island.record.snapshots


def test_who_comes_later_does_not_follow_it_either() -> None:
    """Who has put out nobody is told whom the others have, and doesn't lead them onto that history."""
    newcomer = 4
    faults = (PeerFault("crash", (newcomer,), 10.0, 35.0),)
    swarm = SimSwarm(
        5, Tape(1, (), faults, quiet_s=100.0), settings(lambda number, _: 0.1 if number == BROKEN else 0.4)
    )

    async def scenario() -> Outcome:
        running = asyncio.create_task(swarm.run())
        await asyncio.sleep(20.0)
        for island in swarm.outcome.lives:
            if island.number not in (BROKEN, newcomer):
                island.node.peers.ban(name(BROKEN), "for the test")
        return await running

    outcome = run_virtually(scenario(), 300.0)
    assert not outcome.errors
    late = outcome.final[newcomer]
    assert name(BROKEN) not in late.node.peers.banned
    assert not broken(outcome)
    entries = outcome.final[0].record.entries
    assert [entry.outer_step for entry in entries] == list(range(1, len(entries) + 1))
    assert all(entry.tokens_of(name(newcomer)) is not None for entry in entries[-15:])
    assert not any(outcome.final[number].record.snapshots for number in (0, 1, 3))


@pytest.mark.parametrize(("accusers", "believed"), [([2], False), ([2, 3], True)], ids=["one", "most"])
def test_one_accuser_alone_is_not_believed(accusers: list[int], believed: bool) -> None:
    """Though it may be all of the others that train, as here for the second of the islands."""
    count = 2 + len(accusers)
    swarm = SimSwarm(count, Tape(1, (), (), quiet_s=40.0), settings())

    def accuse(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        if sender in map(name, accusers) and message.kind == "state":
            return Message("state", {**message.body, "put_out": [name(0)]}, message.payload)
        return True

    swarm._hub.filter = accuse

    async def scenario() -> set[PeerId]:
        running = asyncio.create_task(swarm.run())
        await asyncio.sleep(20.0)
        peers = next(island for island in swarm.outcome.lives if island.number == 1).node.peers
        assert len(peers.live()) == count - 1
        untrusted = peers.roll.untrusted
        await running
        return untrusted

    assert run_virtually(scenario(), 100.0) == ({name(0)} if believed else set())


def test_peers_that_did_not_fit_ask_again() -> None:
    """After a split two of three see another model in each other for a while; then the model is right."""
    unlike = {name(0), name(1)}
    faults = (PeerFault("partition", (0,), 4.0, 7.0),)
    swarm = SimSwarm(3, Tape(1, (), faults, quiet_s=18.0), settings())

    def links(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        now_s = asyncio.get_running_loop().time()
        if not ({sender, receiver} == unlike and 4.0 < now_s < 16.0):
            return True
        other = Terms({}, (TensorSpec("other", (3,)),))
        if message.kind == "hello":
            return Message("hello", {**message.body, "layout": other.digests["layout"]})
        if message.kind == "terms":
            return Message("terms", other.page(Fields("terms?", message.body)))
        return True

    swarm._hub.filter = links
    outcome = run_virtually(swarm.run(), 100.0)
    assert not outcome.errors
    for island in outcome.final:
        assert (len(island.node.refusals) > 1) is (name(island.number) in unlike)
        assert len(island.record.entries[-2].participants) == 3
