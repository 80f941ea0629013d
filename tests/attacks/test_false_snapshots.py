"""A state that too few have decided, or who may not: whoever joins passes it over, and names the donor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

JOINER = 4
LIARS = (name(0), name(1), name(2), name(3))
Change = Callable[[dict[str, Any]], dict[str, Any]]


def one_vote(body: dict[str, Any]) -> dict[str, Any]:
    """Its entry is what a single member has voted for."""
    certificate = body["last"]["certificate"]
    return {
        **body,
        "last": {**body["last"], "certificate": {**certificate, "votes": certificate["votes"][:1]}},
    }


def another_before(body: dict[str, Any]) -> dict[str, Any]:
    """Another entry before it than the one that it follows."""
    return {**body, "before": {**body["before"], "total_tokens": body["before"]["total_tokens"] + 1}}


def play(change: Change, liars: tuple[PeerId, ...]) -> Outcome:
    """The joiner has lost everything, and comes back when the others have gone on."""
    swarm = SimSwarm(
        5,
        Tape(1, (), (PeerFault("crash", (JOINER,), 10.0, 20.0),), quiet_s=60.0),
        IslandSettings(policy=RoundPolicy(deadline_s=3.0), join_timeout_s=20.0),
    )

    def lie(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        body = message.body
        if sender not in liars or message.kind != "snapshot" or not (body.get("last") and body.get("before")):
            return True
        return Message("snapshot", change(dict(body)))

    swarm.hub.filter = lie
    return run_virtually(swarm.run(), 300.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (one_vote, "island-0 have voted for it, which is no majority of those who may decide"),
        (another_before, "the entry before the snapshot's is not the one that it follows"),
    ],
    ids=["one-vote", "another-before"],
)
def test_a_state_that_too_few_have_decided_is_passed_over(
    change: Change, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = play(change, LIARS[:1])
    assert not outcome.errors
    joiner = outcome.final[JOINER]
    assert joiner.record.snapshots
    assert joiner.record.entries[-1].tokens_of(name(JOINER))
    lies = [line for line in caplog.messages if "offers a false snapshot" in line]
    assert lies
    assert all("island-0" in line.split(" offers ")[0] for line in lies)
    assert all(said in line for line in lies)


def test_nobody_joins_a_state_that_too_few_have_decided() -> None:
    outcome = play(one_vote, LIARS)
    assert ["island-4" in error for error in outcome.errors] == [True]
    assert not outcome.final[JOINER].record.snapshots
