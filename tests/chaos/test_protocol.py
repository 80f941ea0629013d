"""Executions that were looked for on purpose, each of which broke a promise once. On a virtual clock.

See docs/design/0019-rounds.md: what an acceptor forgets, who may decide, and what one member can keep others
from.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.loopback import LoopbackExchange
from lowcomm.exchanges.shaped import ShapedExchange
from lowcomm.ledger.entry import Entry
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.roster import leader_order
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

WIDE = (TensorSpec("weights", (1920,)),)
"""So that every island reduces a part."""
Filter = Callable[[PeerId, PeerId, Message], bool]


def swarm_of(
    islands: int,
    partition: str,
    *,
    quiet_s: float,
    deadline_s: float = 2.0,
    layout: tuple[TensorSpec, ...] = WIDE,
    faults: tuple[PeerFault, ...] = (),
    folder: Path | None = None,
) -> SimSwarm:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=deadline_s, partition=partition),
        layout=layout,
        schedule=toy_schedule(num_fragments=1),
    )
    return SimSwarm(islands, Tape(1, (), faults, quiet_s=quiet_s), settings, folder)


def run(swarm: SimSwarm, passes: Filter | None = None) -> Outcome:
    swarm._hub.filter = passes
    return run_virtually(swarm.run(), 900.0)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def entries_of(outcome: Outcome) -> list[Entry]:
    """All that was ever committed, where nothing was decided twice; the first to leave lack the last."""
    return list({entry.hash: entry for life in outcome.lives for entry in life.record.entries}.values())


def decided_twice(outcome: Outcome) -> list[int]:
    """Outer steps with several entries."""
    by_step: dict[int, set[str]] = defaultdict(set)
    for life in outcome.lives:
        for entry in life.record.entries:
            by_step[entry.outer_step].add(entry.hash)
    return [step for step, heads in by_step.items() if len(heads) > 1]


def test_a_ballot_that_was_joined_binds_after_a_crash() -> None:
    """1 joins a ballot, 2 accepts its data, and 1 is killed before it votes; back, it must not vote below."""
    names = [name(number) for number in range(3)]
    step = next(t for t in range(5, 99) if leader_order(names, "sim", 0, t) == names)
    swarm = swarm_of(
        3, "majority", quiet_s=60.0, layout=(TensorSpec("first", (40,)), TensorSpec("second", (24,)))
    )
    stages = ["start"]

    def tape(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        pair, kind, loop = {sender, receiver}, message.kind, asyncio.get_running_loop()
        mine = message.body.get("outer_step") == step
        if stages[-1] == "start" and kind == "ready" and mine:
            stages.append("0 is cut off")
        if stages[-1] == "0 is cut off":
            if name(0) in pair or (kind == "mean" and sender == name(2) and mine):
                return False
            if kind == "vote" and sender == name(2) and mine:
                stages.append("2 is cut off")
                fault = PeerFault("crash", (1,), 0.05, 1.0)
                swarm.strikes = [loop.create_task(swarm._strike(fault))]  # type: ignore[attr-defined]
                return False
            return True
        if stages[-1] == "2 is cut off":
            if name(2) in pair:
                return False
            if kind == "decided" and mine and sender == name(0):
                stages.append("0 alone has all votes")
                loop.call_later(0.3, stages.append, "0 is cut off again")
                return False
            return True
        if stages[-1] == "0 alone has all votes":
            return name(2) not in pair and sender != name(0)
        return stages[-1] != "0 is cut off again" or name(0) not in pair

    outcome = run(swarm, tape)
    assert stages[-1] == "0 is cut off again"
    assert decided_twice(outcome) == []


def test_what_a_power_cut_leaves_of_an_update_does_not_void_the_vote(tmp_path: Path) -> None:
    swarm = swarm_of(3, "majority", quiet_s=50.0, folder=tmp_path)
    groups = [[{0, 1, 2}]]

    async def power_cut() -> None:
        strike = asyncio.ensure_future(swarm._strike(PeerFault("crash", (1,), 0.3, 1.0)))
        await asyncio.sleep(0.4)
        for file in (tmp_path / name(1) / "promises").glob("*.update"):
            file.write_bytes(b"")
        await strike

    def tape(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        loop, pair = asyncio.get_running_loop(), {int(sender[-1]), int(receiver[-1])}
        if len(groups) == 1 and loop.time() > 8.0:
            groups.append([{0, 1}, {2}])
        if not any(pair <= group for group in groups[-1]):
            return False
        late = len(groups) == 2 and loop.time() > 16.0
        if late and message.kind == "vote" and (sender, receiver) == (name(1), name(0)):
            groups.append([{0}, {1, 2}])
            swarm.strikes = [loop.create_task(power_cut())]  # type: ignore[attr-defined]
            loop.call_later(20.0, groups.append, [{0, 1, 2}])
        return True

    outcome = run(swarm, tape)
    assert len(groups) == 4
    assert decided_twice(outcome) == []


class _OneByOne(SimSwarm):
    def _start(self, number: int, *, founder: bool, expected: int) -> None:
        super()._start(number, founder=founder, expected=1)


def test_who_may_decide_the_first_outer_step_is_the_same_for_all() -> None:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority"), schedule=toy_schedule(num_fragments=1)
    )
    fault = PeerFault("partition", (0,), 1.5, 15.0)
    swarm = _OneByOne(3, Tape(1, (), (fault,), quiet_s=20.0), settings)
    outcome = run(swarm)
    assert decided_twice(outcome) == []
    assert len({life.node.context.founders for life in outcome.lives}) == 1


@pytest.mark.parametrize("islands", [2, 3])
def test_a_link_that_breaks_for_a_second_costs_no_work(islands: int) -> None:
    swarm, last = swarm_of(islands, "continue", quiet_s=70.0), islands - 1

    async def scenario() -> Outcome:
        running = asyncio.create_task(swarm.run())
        for _ in range(6):
            await asyncio.sleep(10.37)
            for other in range(last):
                swarm._hub.cut(name(last), name(other))
        return await running

    outcome = run_virtually(scenario(), 300.0)
    assert not broken(outcome)
    assert decided_twice(outcome) == []
    for life in outcome.final:
        ledger = sum(entry.tokens_of(name(life.number)) or 0 for entry in entries_of(outcome))
        assert ledger == life.credited[0] + life.node.submissions.late_tokens(0)
        assert all(len(entry.participants) > 1 for entry in life.record.entries)


@pytest.mark.parametrize(
    ("sides", "one_way"),
    [(({0, 1}, {2, 3}), False), (({0, 1, 2}, {3}), False), (({0, 1, 2}, {3}), True)],
    ids=["halves", "one-of-four", "one-direction"],
)
@pytest.mark.parametrize("partition", ["continue", "majority"])
def test_where_bulk_stalls_nobody_decides_twice(
    partition: str, sides: tuple[set[int], set[int]], one_way: bool
) -> None:
    """Control messages pass between all, so all hear each other."""
    swarm = swarm_of(4, partition, quiet_s=70.0)

    def tape(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        one, other = int(sender[-1]), int(receiver[-1])
        apart = any(one in side for side in sides if other not in side)
        if one_way:
            apart = one in sides[0] and other in sides[1]
        within = 10.0 < now_s() < 50.0
        return not (within and apart and message.kind in ("part", "mean", "blob"))

    outcome = run(swarm, tape)
    assert not broken(outcome)
    assert decided_twice(outcome) == []
    for life in outcome.final:
        ledger = sum(entry.tokens_of(name(life.number)) or 0 for entry in entries_of(outcome))
        assert ledger == life.credited[0] + life.node.submissions.late_tokens(0)


@pytest.mark.parametrize(
    "stalls",
    [
        pytest.param(lambda s, r, kind: kind == "vote" and name(3) in (s, r), id="its-vote"),
        pytest.param(lambda s, r, kind: kind in ("mean", "blob") and r == name(3), id="what-it-is-sent"),
        pytest.param(
            lambda s, r, kind: kind in ("part", "mean", "blob") and (s == name(3)) != (r == name(3)),
            id="all-its-data",
        ),
        pytest.param(lambda s, r, kind: kind in ("part", "mean") and s == name(3), id="what-it-sends"),
    ],
)
@pytest.mark.parametrize(
    ("partition", "deadline_s"), [("continue", 60.0), ("majority", 60.0), ("majority", 5.0)]
)
def test_one_member_does_not_stop_the_others(
    stalls: Callable[[PeerId, PeerId, str], bool], partition: str, deadline_s: float
) -> None:
    """Whatever of one island does not pass costs a stall now and then, ever less often; it is named."""
    begins_s, ends_s = 30.0, 90.0
    swarm = swarm_of(4, partition, quiet_s=100.0, deadline_s=deadline_s)
    commits: dict[int, float] = {}

    def tape(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        if message.kind == "state" and sender == name(0) and message.body.get("outer_steps"):
            (step,) = message.body.get("outer_steps")
            commits.setdefault(step, now_s())
        return not (begins_s < now_s() < ends_s and stalls(sender, receiver, message.kind))

    outcome = run(swarm, tape)
    assert decided_twice(outcome) == []
    within = [at_s for at_s in commits.values() if begins_s < at_s < ends_s]
    assert len(within) > 12  # of 30 without a fault
    assert max(late - early for early, late in pairwise([begins_s, *within, ends_s])) < 16.0
    ends = [end for report in outcome.final[0].reports for end in report.ballots]
    assert any(name(3) in end.reason.peers for end in ends)


def test_who_decides_alone_leads_nobody_away() -> None:
    """An insider with a policy of its own commits alone and fast; its entries have votes of no quorum."""
    honest = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority", min_participants=3),
        schedule=toy_schedule(num_fragments=1, delay=0),
    )
    lax = IslandSettings(
        policy=RoundPolicy(deadline_s=0.05), schedule=toy_schedule(num_fragments=1, delay=0), step_s=0.35
    )
    swarm = SimSwarm(4, Tape(1, (), (), quiet_s=40.0), honest)
    ends = LoopbackExchange(swarm._hub, "sim", name(4), founder=False)
    insider = SimIsland(4, ShapedExchange(ends, swarm._shaper), lax, MemoryPromises())

    async def scenario() -> Outcome:
        async def come() -> None:
            await asyncio.sleep(6.0)
            await insider.live(1, lambda: 35.0)

        coming = asyncio.create_task(come())
        try:
            return await swarm.run()
        finally:
            coming.cancel()

    outcome = run_virtually(scenario(), 400.0)
    entries = outcome.final[0].record.entries
    assert len(entries) > 15
    assert all(len(entry.participants) >= 3 for entry in entries)
    assert decided_twice(outcome) == []


@pytest.mark.parametrize("partition", ["continue", "majority"])
def test_what_a_vote_has_committed_is_recognised_beside_a_state_that_is_taken_over(partition: str) -> None:
    """2 votes, hears no other vote, is cut off, and comes back when the updates since are not kept."""
    swarm = swarm_of(3, partition, quiet_s=90.0)
    cut: list[float] = []

    def tape(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        pair = {sender, receiver}
        if message.kind == "vote" and sender == name(2) and now_s() > 10.0 and not cut:
            cut.append(now_s())
        if not cut or name(2) not in pair or now_s() > cut[0] + 60.0:
            return True
        return sender == name(2) and message.kind == "vote" and now_s() < cut[0] + 0.5

    outcome = run(swarm, tape)
    assert cut
    assert not broken(outcome)
    assert outcome.final[2].record.snapshots
    entries = {entry.hash: entry for life in outcome.lives for entry in life.record.entries}
    head = max((life.node.state.chains[0] for life in outcome.final), key=lambda chain: chain.standing).head
    credited = dict.fromkeys(map(name, range(3)), 0)
    while head in entries:
        for peer, tokens in entries[head].participants:
            credited[peer] += tokens
        head = entries[head].previous
    for life in outcome.final:
        me = name(life.number)
        assert credited[me] == life.credited[0] + life.node.submissions.late_tokens(0)
        assert credited[me] <= life.progress.tokens_trained
