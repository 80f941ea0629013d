"""One of five islands is a member and lies about everything but its contribution. On a virtual clock."""

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.shaped import ShapedExchange
from lowcomm.outer.island_side import Request, Send
from lowcomm.rounds.claims import Limits
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.roster import leader_order
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import RUN_ID, Outcome, SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import Json, PeerId, RoundReport
from tests.outer.swarm import Lie, LyingExchange

LIAR = 4
HONEST = range(4)
COMES_S, QUIET_S = 6.0, 12.0
DEADLINE_S = 2.0
DIGITS = random.Random(1)


def digest() -> str:
    return DIGITS.randbytes(32).hex()


def with_state(message: Message, change: Callable[[dict], dict]) -> Message:  # type: ignore[type-arg]
    """A message with the `state` that it is, or that it holds, changed."""
    body = dict(message.body)
    if message.kind == "state":
        return Message("state", change(body), message.payload)
    if message.kind == "hello":
        return Message("hello", {**body, "state": change(dict(body["state"]))}, message.payload)  # type: ignore[arg-type, call-overload]
    return message


def far_ahead(message: Message) -> Message:
    """A heartbeat of somebody who has been training for years."""
    return with_state(
        message,
        lambda state: {
            **state, "phase": "training", "inner_step": 10**15, "outer_steps": [10**9], "heads": [digest()],
            "total_tokens": [10**15],
        },
    )  # fmt: skip


def another_head(message: Message) -> Message:
    """A heartbeat of somebody on another history of the same length."""
    return with_state(message, lambda state: {**state, "heads": [digest() for _ in state["heads"]]})


def replays(kinds: set[str]) -> Lie:
    """Sends every message of these kinds again, behind each later one."""
    kept: list[Message] = []

    def lie(message: Message) -> list[Message]:
        if message.kind not in kinds:
            return [message]
        kept.append(Message(message.kind, message.body, bytes(message.payload)))
        return [message, *kept[-9:-1]]

    return lie


def forged_roster(message: Message) -> list[Message]:
    """With each announcement a roster in which it alone decides, signed by nobody."""
    if message.kind != "ready":
        return [message]
    roster = {
        "fragment": 0, "outer_step": message.body["outer_step"], "ballot": [1, name(0)],
        "previous": message.body["previous"], "participants": [[name(LIAR), 8, 1.0, 4]], "stops": [600],
        "chunk_elements": 64, "entry": None, "accepted_in": [0, ""],
    }  # fmt: skip
    return [
        message,
        Message("roster", {"fragment": 0, "outer_step": 1, "roster": roster, "signature": "00" * 64}),
    ]


def endless_roster(message: Message) -> list[Message]:
    """Its announcements promise the highest ballot there is, so that nobody could go above it."""
    if message.kind != "ready":
        return [message]
    return [Message("ready", {**message.body, "promised": [1 << 62, name(LIAR)]})]


def breach_and_roster(message: Message) -> list[Message]:
    """Where it leads it breaks the protocol first, so that who joins its ballot waits for nobody."""
    if message.kind != "roster":
        return [message]
    return [Message("nonsense", {}), message]


LIMITS = Limits(norm_limit=20.0, max_tokens=100)
POLICY = RoundPolicy(min_participants=3, deadline_s=DEADLINE_S, limits=LIMITS)
SETTINGS = IslandSettings(policy=POLICY, schedule=toy_schedule(inner_steps=2, num_fragments=1, delay=0))


class Boaster(SimIsland):
    """Trains as the others do, and says that it was on more than anybody can have."""

    async def _answer(self, request: Request) -> Any:
        if isinstance(request, Send):
            offer = request.contribution.offer
            counted = replace(offer, id=replace(offer.id, tokens=offer.tokens + (1 << 58)))
            request = replace(request, contribution=replace(request.contribution, offer=counted))
        return await super()._answer(request)


def run(
    lie: Lie,
    honest: IslandSettings = SETTINGS,
    dishonest: IslandSettings = SETTINGS,
    *,
    boasts: bool = False,
) -> Outcome:
    """Four honest islands from start to end; the liar comes when they have begun, and stays."""
    swarm = SimSwarm(len(HONEST), Tape(1, (), (), quiet_s=QUIET_S), honest)
    exchange = LyingExchange(swarm._hub, RUN_ID, name(LIAR), founder=False, lie=lie)
    kind = Boaster if boasts else SimIsland
    liar = kind(LIAR, ShapedExchange(exchange, swarm._shaper), dishonest, MemoryPromises())

    async def come() -> None:
        await asyncio.sleep(COMES_S)
        await liar.live(1, lambda: swarm._until_s)

    async def scenario() -> Outcome:
        coming = asyncio.get_running_loop().create_task(come())
        outcome = await swarm.run()
        if coming.done():
            coming.result()  # a liar that ended by a mistake of ours told no lies
        coming.cancel()
        return outcome

    return run_virtually(scenario(), 100.0)


def rounds(outcome: Outcome) -> Iterator[RoundReport]:
    """All rounds of honest islands but their last ones, from which the others may have left."""
    for life in outcome.final:
        yield from life.reports[:-1]


@pytest.mark.parametrize(
    "lie",
    [far_ahead, another_head, forged_roster, endless_roster,
     replays({"part", "mean"}), replays({"ready", "roster", "vote", "abort", "state"})],
    ids=["far-ahead", "another-head", "forged-roster", "endless-roster", "old-parts", "old-control"],
)  # fmt: skip
def test_honest_islands_go_on_and_agree(lie: Lie) -> None:
    outcome = run(lie)
    assert not broken(outcome)
    honest = {name(number) for number in HONEST}
    for ended in rounds(outcome):
        assert ended.committed, ended.reason
        assert honest <= set(ended.participants)
        assert ended.round_s < DEADLINE_S + 1.0
        assert all(line.startswith(f"{name(LIAR)}: ") for line in ended.rejected), ended.rejected


def test_a_promise_for_the_step_after_is_checked_as_well() -> None:
    """The liar has committed before the next leader, and tells it of a ballot that nobody can go above."""
    outer_step = 8
    leader, *_ = leader_order([name(number) for number in range(5)], RUN_ID, 0, outer_step)
    swarm = SimSwarm(5, Tape(1, (), (), quiet_s=QUIET_S), SETTINGS)
    ready: dict[str, Json] = {}
    told: list[Message] = []

    def lie(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        if receiver != leader:
            return True
        if message.kind == "vote":
            return message.body["outer_step"] != outer_step - 1
        if message.kind == "ready" and sender == name(LIAR):
            ready.update(message.body)
            return message.body["outer_step"] != outer_step
        if message.kind != "state" or told or message.body.get("outer_steps") != [outer_step - 1]:
            return True
        if sender != name(LIAR):
            return False
        (head,) = message.body["heads"]  # type: ignore[misc, union-attr]
        lies = {"outer_step": outer_step, "previous": head, "promised": [1 << 62, name(LIAR)]}
        told.append(Message("ready", {**ready, **lies}))
        return told[0]

    swarm._hub.filter = lie
    outcome = run_virtually(swarm.run(), 100.0)
    assert told
    assert not broken(outcome)
    blamed = {
        line.split(": ")[0] for life in outcome.final for ended in life.reports for line in ended.rejected
    }
    assert blamed == {name(LIAR)}


def test_what_follows_a_breach_is_not_heard() -> None:
    assert max(ended.attempts for ended in rounds(run(breach_and_roster))) == 1


@pytest.mark.parametrize("partition", ["continue", "majority"])
def test_tokens_that_nobody_can_have_are_refused_by_name_and_counted_by_nobody(partition: str) -> None:
    """A total beyond what a message holds would make each honest heartbeat a breach, for ever."""
    policy = replace(POLICY, partition=partition, limits=Limits(norm_limit=20.0))
    outcome = run(lambda message: message, replace(SETTINGS, policy=policy), boasts=True)
    assert not broken(outcome)
    honest = {name(number) for number in HONEST}
    named: list[str] = []
    for ended in rounds(outcome):
        assert ended.committed, ended.reason
        assert set(ended.participants) == honest
        named += ended.rejected
    assert named
    for line in named:
        said = f"{name(LIAR)}: broke the protocol: (ready|roster).tokens: expected a whole number in "
        assert re.match(said, line)


@pytest.mark.parametrize(
    "policy", [POLICY, replace(POLICY, min_participants=1, partition="majority")], ids=["three", "majority"]
)
def test_who_does_not_wait_gets_nobody_to_commit_with_too_few(policy: RoundPolicy) -> None:
    """Its rosters hold the two that are ready first; the others would find that they were missed."""
    honest = replace(SETTINGS, policy=policy, step_s=lambda number, now_s: 0.3 + 0.1 * number)
    impatient = replace(honest, policy=RoundPolicy(min_participants=2, deadline_s=0.05))
    outcome = run(lambda message: message, honest, impatient)
    assert not broken(outcome)
    for life in outcome.final:
        entries = life.record.entries[:-2]  # in the last ones they leave, one after the other
        assert all(len(entry.participants) >= 3 for entry in entries)
