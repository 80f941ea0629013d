"""Joining by a state that takes long: many rounds are committed meanwhile. Virtual clock."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.shaped import Fate
from lowcomm.ledger.fetching import WINDOW
from lowcomm.ledger.pieces import PIECE_BYTES
from lowcomm.recovery.donor import FOLLOWING_SHARE, MAX_PINNED
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape, TapeShaper
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import Digest, PeerId, TensorSpec

ELEMENTS = 780_000
STATE_BYTES = 8 * ELEMENTS  # six pieces
PIECE_S, STATE_S = 30.0, 60.0
"""A donor sends its first piece at once, then one in so many seconds; two donors need so long for a state."""
ROUND_S = 2.0
LATE = 2
"""The island that joins late."""


class Counting(TapeShaper):
    """Counts the bytes of states and updates that come to the late island, by their names."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.came: Counter[Digest] = Counter()

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        fate = super().fate(sender, receiver, message, now_s)
        if message.kind == "blob" and receiver == name(LATE) and fate.delays_s:
            self.came[Digest(str(message.body["hash"]))] += len(message.payload)
        return fate


def settings(fragments: int = 1, join_timeout_s: float = 300.0, round_s: float = ROUND_S) -> IslandSettings:
    return IslandSettings(
        policy=RoundPolicy(deadline_s=60.0, partition="majority"),
        layout=tuple(TensorSpec(f"weights-{n}", (ELEMENTS // fragments,)) for n in range(fragments)),
        chunk_bytes=1 << 20,
        lease_s=5.0,
        schedule=toy_schedule(inner_steps=int(round_s / 0.4) * fragments, num_fragments=fragments),
        snapshot_mbit_s=PIECE_BYTES * 8 / 1e6 / PIECE_S,
        join_timeout_s=join_timeout_s,
    )


def join_late(
    *faults: PeerFault,
    chosen: IslandSettings,
    islands: int = 3,
    folder: Path | None = None,
    joining_s: float = 2 * STATE_S,
) -> tuple[Outcome, Counting]:
    """The late island dies in its second round, and is back when most updates since then have gone."""
    away_s = 12 * ROUND_S * chosen.schedule.num_fragments
    away = PeerFault("crash", (LATE,), 1.5 * ROUND_S, away_s)
    tape = Tape(1, (), (away, *faults), quiet_s=away_s + 2 * ROUND_S + joining_s)
    swarm = SimSwarm(islands, tape, chosen, folder)
    swarm._shaper = shaper = Counting(tape)
    return run_virtually(swarm.run(), tape.quiet_s + 200.0), shaper


def updates_missed(life: SimIsland) -> int:
    """Bytes of what the late island replayed after its state."""
    return sum(e.update_bytes for e in life.record.entries if e.tokens_of(name(LATE)) is None)


@pytest.mark.parametrize("join_timeout_s", [1.5 * PIECE_S, 5 * STATE_S], ids=["shorter", "longer"])
def test_a_state_that_takes_many_rounds_is_taken_once(join_timeout_s: float) -> None:
    outcome, shaper = join_late(chosen=settings(join_timeout_s=join_timeout_s))
    assert not broken(outcome)
    late = outcome.final[LATE]
    (_, _, digest), missed = late.record.snapshots[0], updates_missed(late)
    assert len(late.record.snapshots) == 1
    assert missed > 2 * STATE_BYTES  # twice what is kept for anybody
    assert shaper.came[digest] < STATE_BYTES + WINDOW * PIECE_BYTES


def test_silence_ends_a_join_that_time_does_not() -> None:
    silent = PeerFault("partition", (LATE,), 18 * ROUND_S, 40.0)
    outcome, _ = join_late(silent, chosen=settings(join_timeout_s=30.0))
    assert any("nothing came for 30 s" in error for error in outcome.errors), outcome.errors


def test_several_fragments_are_kept_up_with_until_the_last_one_has_come() -> None:
    outcome, _ = join_late(chosen=settings(fragments=3), joining_s=4 * STATE_S)
    assert not broken(outcome)
    late = outcome.final[LATE]
    assert sorted(fragment for fragment, _, _ in late.record.snapshots) == [0, 1, 2]


def test_a_donor_that_dies_costs_what_was_under_way_only() -> None:
    dies = PeerFault("crash", (1,), 18 * ROUND_S, 40.0)
    outcome, shaper = join_late(dies, chosen=settings(), islands=4, joining_s=3 * STATE_S)
    assert not broken(outcome)
    late = outcome.final[LATE]
    assert len(late.record.snapshots) == 1
    assert shaper.came[late.record.snapshots[0][2]] < STATE_BYTES + WINDOW * PIECE_BYTES


def test_a_joiner_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    killed = PeerFault("crash", (LATE,), 15 * ROUND_S + STATE_S / 2, 10.0)
    outcome, _ = join_late(killed, chosen=settings(), folder=tmp_path, joining_s=3 * STATE_S)
    assert not broken(outcome)
    states = [digest for life in outcome.lives for _, _, digest in life.record.snapshots]
    assert len(states) == 1
    assert not list((tmp_path / name(LATE) / "incoming").iterdir())


def test_what_is_kept_for_joiners_is_bounded(tmp_path: Path) -> None:
    """Cut off in the middle for longer than updates are kept, it is given another state, and comes in."""
    round_s = 2 * ROUND_S
    rounds = 1.3 * FOLLOWING_SHARE * STATE_BYTES / ELEMENTS
    away = PeerFault("crash", (LATE,), 1.5 * round_s, 12 * round_s)
    cut = PeerFault("partition", (LATE,), 18 * round_s, rounds * round_s)
    tape = Tape(1, (), (away, cut), quiet_s=cut.start_s + cut.away_s + 2 * STATE_S)
    swarm = SimSwarm(3, tape, settings(round_s=round_s), tmp_path)
    swarm._shaper = shaper = Weighing(tape, tmp_path / name(0))
    outcome = run_virtually(swarm.run(), 2 * tape.quiet_s)
    assert not broken(outcome)
    assert len(outcome.final[LATE].record.snapshots) == 1
    assert shaper.most_bytes > FOLLOWING_SHARE * STATE_BYTES
    assert shaper.most_bytes <= (1 + MAX_PINNED + FOLLOWING_SHARE) * STATE_BYTES


class Weighing(TapeShaper):
    """Notes how large the files without a name in a folder are together, at most."""

    def __init__(self, tape: Tape, folder: Path) -> None:
        super().__init__(tape)
        self._folder, self.most_bytes = folder, 0

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        if message.kind == "vote":
            self.most_bytes = max(self.most_bytes, self._open_bytes())
        return super().fate(sender, receiver, message, now_s)

    def _open_bytes(self) -> int:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(link.stat().st_size for link in links if os.readlink(link).startswith(f"{self._folder}/"))
