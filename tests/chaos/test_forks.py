"""Both sides of a split commit: of their chains the one with more committed tokens is kept. Virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.ledger.chain import Standing
from lowcomm.rounds.decision import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

SPLIT_S, HEALED_S = 6.0, 30.0
POLICY = RoundPolicy(deadline_s=2.0, partition="continue")


def split(
    big: set[int], small: set[int], *, hampered_until_s: float
) -> tuple[Outcome, dict[int, Standing], set[str]]:
    """One run; where each island stood when the links came back, and the heads that the small side had then.

    Args:
        hampered_until_s: so long the big side forms no round, and takes fewer outer steps than the small one.
    """
    swarm = SimSwarm(
        len(big | small), Tape(1, (), (), quiet_s=50.0), IslandSettings(policy=POLICY, num_fragments=1)
    )
    members = {name(number) for number in big}
    before: dict[int, Standing] = {}
    lost: set[str] = set()

    def note() -> None:
        before.update({number: standing for number, (standing,) in swarm._standings().items()})
        lost.update(swarm._lives[number][0].node.state.chains[0].head for number in small)

    def links(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        now_s = asyncio.get_running_loop().time()
        if not before and now_s >= HEALED_S:
            note()
        if not SPLIT_S <= now_s < HEALED_S:
            return True
        if (sender in members) != (receiver in members):
            return False
        return not (message.kind == "roster" and sender in members and now_s < hampered_until_s)

    swarm._hub.filter = links
    return run_virtually(swarm.run(), 120.0), before, lost


@pytest.mark.parametrize(
    ("small", "hampered_until_s", "fewer_steps"),
    [({3}, SPLIT_S, False), ({3}, 10.0, True), ({3, 4}, 10.0, True)],
    ids=["one-left-alone", "fewer-steps-with-more-tokens", "two-against-three"],
)
def test_the_side_that_has_trained_more_wins(
    small: set[int], hampered_until_s: float, fewer_steps: bool
) -> None:
    big = {0, 1, 2}
    outcome, before, lost = split(big, small, hampered_until_s=hampered_until_s)
    winner, loser = before[min(big)], before[min(small)]
    assert winner.total_tokens > loser.total_tokens
    assert (winner.outer_step < loser.outer_step) is fewer_steps
    assert not broken(outcome)  # one history at the end, all of them in its rounds, each token accounted for
    for life in outcome.lives:
        replayed = {entry.hash for entry in life.record.entries}
        assert replayed.isdisjoint(lost) is (life.number in big)
