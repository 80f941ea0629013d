"""One island is a member, and lies over the real network: in the state that it hands over."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lowcomm import OuterLoop, RoundPolicy
from lowcomm.exchanges.base import Message
from lowcomm.membership.blobs import MANIFEST
from lowcomm.membership.contributions import Limits
from lowcomm.membership.ledger import hash_bytes, hash_value
from tests.attacks.real_swarm import PATIENCE_S, RealSwarm
from tests.outer.swarm import in_parallel

LIAR = 0  # the lowest peer id: of equals it is asked first
FOUNDER = 1
STEPS = 24
PAUSE = 14
"""All are between two rounds when the newcomer comes."""


def policy(rejections: int = 3) -> RoundPolicy:
    return RoundPolicy(deadline_s=60.0, limits=Limits(max_rejections=rejections))


def other_bytes(message: Message) -> Message:
    """Honest about which state it serves; its pieces are something else."""
    if message.kind != "blob" or message.body["offset"] == MANIFEST:
        return message
    return Message("blob", message.body, b"\x55" * len(message.payload))


def another_digest(message: Message) -> Message:
    """It offers a state that its own ledger entry doesn't name."""
    if message.kind != "snapshot":
        return message
    return Message("snapshot", {**message.body, "digest": hash_bytes(b"a lie")})


def another_history(message: Message) -> Message:
    """It offers a state with an entry that fits it; only nobody else has ever heard of that."""
    if message.kind != "snapshot":
        return message
    last = message.body["last"]
    assert isinstance(last, dict)
    digest = hash_bytes(b"a lie")
    invented = {**last, "state_digest": digest}
    body = {**message.body, "digest": digest, "head": hash_value(invented), "last": invented}
    return Message("snapshot", body)


@pytest.mark.parametrize(
    ("lie", "says"),
    [(other_bytes, "sent other bytes"), (another_digest, "offers a false snapshot"), (another_history, "")],
    ids=["other-bytes", "another-digest", "another-history"],
)
def test_a_joiner_is_not_fooled_by_a_false_snapshot(
    lie: Callable[[Message], Message], says: str, tmp_path: Path
) -> None:
    swarm = RealSwarm(islands=4, expected=3, lies={LIAR: lie}, policy=policy(), folder=tmp_path)
    members, joiner = [FOUNDER, LIAR, 2], 3
    paused, arrived = threading.Barrier(len(members) + 1), threading.Event()

    def wait(inner_step: int, outer: OuterLoop) -> None:
        if inner_step == PAUSE:
            paused.wait(PATIENCE_S)
            assert arrived.wait(PATIENCE_S)

    def come() -> None:
        paused.wait(PATIENCE_S)
        try:
            swarm.train(joiner, STEPS, seed=1, expected_peers=1, founder=False, each=lambda *_: arrived.set())
        finally:
            arrived.set()

    train = [
        lambda i=i: swarm.train(i, STEPS, each=wait, founder=i == FOUNDER, gather_timeout_s=PATIENCE_S)
        for i in members
    ]
    in_parallel([*train, come], swarm.results, [*members, joiner])
    results = swarm.results
    for island in (FOUNDER, 2, joiner):
        assert results[island].error is None, results[island].error
        assert all(report.committed for report in results[island].reports)
        assert results[island].committed
    assert results[joiner].how == "snapshot"
    assert len({results[island].digest for island in (FOUNDER, 2, joiner)}) == 1
    assert len({results[island].head for island in (FOUNDER, 2, joiner)}) == 1
    named = [line for report in results[joiner].reports for line in report.rejected]
    assert not says or any(line.startswith(swarm.ids[LIAR]) and says in line for line in named), named
    assert all(line.startswith(swarm.ids[LIAR]) for line in named)
