"""What catching up costs, counted message by message, and that it survives its donors. Virtual clock."""

from __future__ import annotations

from collections import Counter

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.frames import encode_frame
from lowcomm.exchanges.shaped import Fate
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape, TapeShaper
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

LAYOUT = (TensorSpec("first", (150_000,)), TensorSpec("second", (150_000,)))
CATCHING_UP = ("entries?", "entries", "snapshot?", "snapshot", "blob?", "blob")


class Counting(TapeShaper):
    """Counts the bytes of catching up to and from each peer."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.moved: Counter[PeerId] = Counter()
        self.kinds: Counter[str] = Counter()

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        if message.kind in CATCHING_UP:
            head, payload = encode_frame(message)
            self.kinds[message.kind] += 1
            for peer in (sender, receiver):
                self.moved[peer] += len(head) + payload.nbytes
        return super().fate(sender, receiver, message, now_s)


def run(tape: Tape, islands: int = 3) -> tuple[Outcome, Counting]:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority"), layout=LAYOUT, chunk_bytes=1 << 16
    )
    swarm = SimSwarm(islands, tape, settings)
    swarm._shaper = Counting(tape)
    return run_virtually(swarm.run(), 120.0), swarm._shaper


@pytest.mark.parametrize("away_s", [5.0, 10.0])
def test_catching_up_moves_hardly_more_than_the_missed_updates(away_s: float) -> None:
    tape = Tape(1, (), (PeerFault("partition", (2,), 8.0, away_s),), quiet_s=20.0)
    outcome, shaper = run(tape)
    assert not broken(outcome)
    late = next(life for life in outcome.lives if life.number == 2)
    own = name(2)
    missed = [entry for entry in late.record.entries if entry.tokens_of(own) is None]
    assert len(missed) >= 2
    assert not late.record.snapshots
    assert shaper.moved[own] <= 1.1 * sum(entry.update_bytes for entry in missed)


def test_a_returning_island_takes_one_state_where_that_is_less() -> None:
    tape = Tape(1, (), (PeerFault("crash", (2,), 4.0, 26.0),), quiet_s=31.0)
    outcome, shaper = run(tape)
    assert not broken(outcome)
    late = outcome.final[2]
    assert late.record.snapshots
    replayed = [entry for entry in late.record.entries if entry.tokens_of(name(2)) is None]
    state_bytes = sum(8 * fragment.elements for fragment in late.node.state.fragments)
    assert shaper.moved[name(2)] <= 1.1 * (state_bytes + sum(entry.update_bytes for entry in replayed))


def test_a_donor_may_die_while_a_snapshot_is_taken() -> None:
    tape = Tape(
        1,
        (),
        (PeerFault("crash", (3,), 4.0, 26.0), PeerFault("crash", (0,), 30.05, 3.0)),
        quiet_s=40.0,
    )
    outcome, _ = run(tape, islands=4)
    assert not broken(outcome)
    assert outcome.final[3].record.snapshots
