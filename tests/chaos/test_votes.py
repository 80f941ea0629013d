"""Votes that a crash would forget, and votes that lie: neither makes two histories. Virtual clock."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

import pytest

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.ledger.certificate import Ballot
from lowcomm.ledger.entry import hash_bytes
from lowcomm.ledger.update import Update
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.promises import FilePromises
from lowcomm.rounds.values import Record
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import Outcome, SimSwarm, name, simulate
from lowcomm.sim.tapes import PeerFault, Tape, make_tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId


class Forgetful(MemoryPromises):
    """What an island without a run folder remembers."""

    def load(self, fragment: int) -> Record | None:
        return None


def settings(partition: str) -> IslandSettings:
    return IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition=partition), schedule=toy_schedule(num_fragments=1)
    )


def crash_after_the_vote(swarm: SimSwarm) -> Outcome:
    """Island 1 votes, 0 commits with that vote; 1 dies, comes back, and hears 2 only, which has not voted."""
    groups = [[{0, 1, 2}]]

    def together(one: PeerId, other: PeerId) -> bool:
        pair = {int(one[-1]), int(other[-1])}
        return any(pair <= group for group in groups[-1])

    def tape(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        loop = asyncio.get_running_loop()
        if len(groups) == 1 and loop.time() > 8.0:
            groups.append([{0, 1}, {2}])
        if not together(sender, receiver):
            return False
        # by now the two form rounds without the third
        if (
            len(groups) == 2
            and loop.time() > 16.0
            and message.kind == "vote"
            and (sender, receiver) == (name(1), name(0))
        ):
            groups.append([{0}, {1}, {2}])
            fault = PeerFault("crash", (1,), 0.3, 1.0)  # 0 has committed by then
            swarm.strikes = [loop.create_task(swarm.strike(fault))]  # type: ignore[attr-defined]
            loop.call_later(0.5, groups.append, [{0}, {1, 2}])  # not before, or 2 would catch up with 1
            loop.call_later(20.0, groups.append, [{0, 1, 2}])
        return True

    swarm._hub.filter = tape
    outcome = run_virtually(swarm.run(), 120.0)
    assert len(groups) == 5
    return outcome


@pytest.mark.parametrize("kept", ["memory", "file"])
def test_a_vote_outlives_the_voter(kept: str, tmp_path: Path) -> None:
    folder = tmp_path if kept == "file" else None
    swarm = SimSwarm(3, Tape(1, (), (), quiet_s=50.0), settings("majority"), folder)
    outcome = crash_after_the_vote(swarm)
    assert not broken(outcome)


def test_a_forgotten_vote_would_make_two_histories() -> None:
    swarm = SimSwarm(3, Tape(1, (), (), quiet_s=50.0), settings("majority"))
    swarm._promises = [Forgetful() for _ in range(3)]
    problems = broken(crash_after_the_vote(swarm))
    assert any("2 different entries were committed" in problem for problem in problems)


@pytest.mark.parametrize("seed", [110, 119])
def test_random_crashes_with_votes_on_disk(seed: int, tmp_path: Path) -> None:
    for offset in (0, 200):
        folder = tmp_path / str(offset)
        folder.mkdir()
        assert not broken(simulate(4, make_tape(seed + offset, 4), settings("majority"), folder))


def test_an_update_that_is_not_whole_on_disk_voids_no_vote(tmp_path: Path) -> None:
    outcome = simulate(2, Tape(1, (), (), quiet_s=10.0), settings("majority"), tmp_path)
    assert not broken(outcome)
    promises = FilePromises(tmp_path / name(0))
    record = promises.load(0)
    assert record is not None
    assert record.accepted is not None
    entry = record.accepted[1]
    assert entry == outcome.final[0].node.state.chains[0].last
    assert promises.load_update(entry) is not None
    files = list((tmp_path / name(0) / "promises").glob("*.update"))
    assert len(files) == 1
    files[0].write_bytes(b"torn")
    assert promises.load(0) == record
    assert promises.load_update(entry) is None
    promises.save(record, Update([b"whole"]))  # what is torn is written again, also in the same ballot
    assert files[0].read_bytes() == b"whole"


def test_an_older_record_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    """Two threads may save in another order than that in which they were told to."""
    promises = FilePromises(tmp_path)
    older, newer = (
        Record(
            fragment=0, outer_step=3, previous=hash_bytes(b"head"), promised=Ballot(attempt, "a"),
            peers=(name(0),), accepted=None,
        )
        for attempt in (1, 2)
    )  # fmt: skip
    promises.save(newer, None)
    promises.save(older, None)
    assert promises.load(0) == newer
    promises.forget(0)
    assert promises.load(0) is None


def test_a_record_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "promises").mkdir()
    (tmp_path / "promises" / "0.json").write_text("{")
    with pytest.raises(ProtocolError, match="what this island has promised in its last round can't be read"):
        FilePromises(tmp_path).load(0)


@pytest.mark.parametrize("partition", ["continue", "majority"])
def test_an_insider_that_votes_falsely_forks_nobody_away(partition: str) -> None:
    """Island 3 votes truly to 0 alone, which commits; 1 and 2 hear neither 0 nor 3 say so."""
    swarm = SimSwarm(4, Tape(1, (), (), quiet_s=30.0), settings(partition))
    struck: list[int] = []

    def lie(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        loop = asyncio.get_running_loop()
        deceived = receiver in (name(1), name(2))
        if message.kind == "vote" and sender == name(3) and deceived and loop.time() > 6.0:
            step = message.body["outer_step"]
            assert isinstance(step, int)
            if not struck:
                struck.append(step)
                loop.call_later(6.0, struck.append, -1)
            if step == struck[0]:
                return Message("vote", {**message.body, "state": hash_bytes(b"a lie")})
        if struck and struck[-1] != -1 and sender in (name(0), name(3)) and deceived:
            return message.kind not in ("state", "ready", "entries", "roster")
        return True

    swarm._hub.filter = lie
    outcome = run_virtually(swarm.run(), 120.0)
    assert struck
    entries: dict[int, set[str]] = defaultdict(set)
    for life in outcome.lives:
        for entry in life.record.entries:
            entries[entry.outer_step].add(entry.hash)
    assert len(entries[struck[0]]) == 1
    assert not broken(outcome)  # later steps of a network that stays split may fork with `continue`
