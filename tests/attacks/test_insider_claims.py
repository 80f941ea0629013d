"""One of five islands is a member and lies about everything but its contribution."""

import random
import threading
from collections.abc import Callable

import pytest

from lowcomm import OuterLoop, RoundPolicy
from lowcomm.exchanges.base import Message
from lowcomm.membership.contributions import Limits
from tests.outer.swarm import Lie, Result, Swarm, in_parallel, name

LIAR = 4
HONEST = range(4)
STEPS = 24
PATIENCE_S = 60.0
LIMITS = Limits(norm_limit=20.0, max_tokens=100)
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


def run(lie: Lie) -> dict[int, Result]:
    """Four honest islands from start to end; the liar comes when they have begun, and stays."""
    begun, arrived = threading.Barrier(5), threading.Event()

    def tell(message: Message) -> Message | list[Message]:
        said = lie(message)
        if message.kind == "state":
            arrived.set()
        return said

    swarm = Swarm(
        islands=5,
        expected=4,
        lies={LIAR: tell},
        policy=RoundPolicy(min_participants=3, deadline_s=1.5, limits=LIMITS),
    )

    def wait(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == 6:
            begun.wait(PATIENCE_S)
            assert arrived.wait(PATIENCE_S)

    def come() -> None:
        begun.wait(PATIENCE_S)
        swarm.train(LIAR, STEPS, expected_peers=1)

    calls: list[Callable[[], object]] = [lambda i=i: swarm.train(i, STEPS, each=wait) for i in HONEST]
    in_parallel([*calls, come], swarm.results, [*HONEST, LIAR])
    return swarm.results


@pytest.mark.parametrize(
    "lie",
    [far_ahead, another_head, forged_roster, endless_roster, replays({"part", "mean"}),
     replays({"ready", "roster", "vote", "abort", "state"})],
    ids=["far-ahead", "another-head", "forged-roster", "endless-roster", "old-parts", "old-control"],
)  # fmt: skip
def test_honest_islands_go_on_and_agree(lie: Lie) -> None:
    results = run(lie)
    for island in HONEST:
        result = results[island]
        assert result.error is None, result.error
        assert len(result.losses) == STEPS
        assert all(report.committed for report in result.reports)
        assert len(result.committed) >= STEPS // 4
    assert len({results[island].digest for island in HONEST}) == 1
    assert len({results[island].head for island in HONEST}) == 1
