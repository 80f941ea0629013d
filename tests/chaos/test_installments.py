"""What a side of a split has done for long comes in little by little, so that the anchor stays in place."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from lowcomm.exchanges.base import Message
from lowcomm.outer.progress import INSTALLMENT, WHOLE
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken, lost
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.swarm import SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, RoundReport

SPLIT_S, HEALED_S, END_S = 10.0, 110.0, 200.0
STEP_S, INNER_STEPS, ISLANDS = 0.4, 5, 3
PACE = 0.02
"""Of what all are drawn to: as in training there is always further to go."""


class Watched(SimIsland):
    """Notes how far the anchor is from what all islands are drawn to, after each of its rounds."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.model._target.fill_(0.0)
        self.loss: list[tuple[float, float]] = []

    def _train(self) -> None:
        self.model._target.fill_(PACE * asyncio.get_running_loop().time() / STEP_S)
        super()._train()

    def _landed(self, reports: Sequence[RoundReport]) -> None:
        super()._landed(reports)
        far = self.node.state.states[0].anchor.load() - self.model._target
        loss = float(far.square().mean())
        self.loss += [(asyncio.get_running_loop().time(), loss) for report in reports if report.committed]


def test_a_long_split_does_not_throw_the_anchor_off() -> None:
    schedule = toy_schedule(num_fragments=1, inner_steps=INNER_STEPS, merge_alpha=0.0)
    settings = IslandSettings(policy=RoundPolicy(deadline_s=2.0), schedule=schedule, step_s=STEP_S)
    kinds: dict[int, type[SimIsland]] = dict.fromkeys(range(ISLANDS), Watched)
    swarm = SimSwarm(ISLANDS, Tape(1, (), (), quiet_s=END_S), settings, kinds=kinds)

    def links(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        within = SPLIT_S < asyncio.get_running_loop().time() < HEALED_S
        return not (within and name(ISLANDS - 1) in (sender, receiver))

    swarm._hub.filter = links
    outcome = run_virtually(swarm.run(), END_S + 100.0)
    assert not broken(outcome)
    assert not lost(outcome)

    for life in outcome.final:
        assert isinstance(life, Watched)
        before = max(loss for at_s, loss in life.loss if HEALED_S / 2 < at_s < HEALED_S)
        after = [loss for at_s, loss in life.loss if at_s > HEALED_S]
        assert max(after) < 10.0 * before  # at once it would be 700 times
        assert after[-1] < 1.5 * before
    loser = outcome.final[-1]
    ((_, taken, _),) = loser.record.snapshots
    credited = [
        entry.tokens_of(name(loser.number)) or 0 for entry in loser.record.entries if entry.outer_step > taken
    ]
    interval = INNER_STEPS * (10 + loser.number)
    assert max(credited) <= WHOLE * interval
    assert credited.count(INSTALLMENT * interval) > 10
