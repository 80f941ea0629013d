"""The redo log keeps all that was committed at once, the newest where room is short, and what is whole."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.ledger import redo
from lowcomm.ledger.certificate import Ballot, Certificate
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.redo import MOST_UNWRITTEN, RedoLog
from lowcomm.ledger.update import Update
from lowcomm.types import PeerId
from tests.fuzz.decoders import ENTRY

UPDATE = Update([b"an encoded ", b"mean"])


def certified(fragment: int, outer_step: int) -> Certified:
    entry = replace(
        ENTRY,
        fragment=fragment,
        outer_step=outer_step,
        update_hash=UPDATE.digest,
        update_bytes=UPDATE.size_bytes,
    )
    return Certified(entry, Certificate(Ballot(1, "a"), (), ((PeerId("a"), bytes(64)),)))


def steps(log: RedoLog, fragment: int = 0) -> list[int]:
    return [one.entry.outer_step for one in log.entries(fragment)]


def test_entries_of_many_fragments_are_written_that_were_committed_in_one_moment(tmp_path: Path) -> None:
    log = RedoLog(tmp_path, (1_000,) * 24)
    for fragment in range(24):
        log.note(certified(fragment, 1), UPDATE)
    log.flush()
    again = RedoLog(tmp_path, (1_000,) * 24)
    assert [again.entries(fragment) for fragment in range(24)] == [[certified(f, 1)] for f in range(24)]
    found = again.update(certified(7, 1).entry)
    assert found is not None
    assert bytes(found.whole) == b"an encoded mean"


def test_the_oldest_make_room_and_the_newest_stays(tmp_path: Path) -> None:
    log = RedoLog(tmp_path, (3 * UPDATE.size_bytes,))
    for step in range(1, 9):
        log.note(certified(0, step), UPDATE)
        log.flush()
    assert steps(log) == [6, 7, 8]
    small = RedoLog(tmp_path, (1,))
    small.note(certified(0, 9), UPDATE)
    small.flush()
    assert steps(small) == [9]
    assert sorted(path.name for path in (tmp_path / "redo" / "0").iterdir()) == ["9.json", "9.update"]


def test_what_a_crash_has_left_in_part_is_no_entry(tmp_path: Path) -> None:
    log = RedoLog(tmp_path, (1_000,))
    for step in (1, 2, 3):
        log.note(certified(0, step), UPDATE)
    log.flush()
    (tmp_path / "redo" / "0" / "2.update").write_bytes(b"torn")
    (tmp_path / "redo" / "0" / "3.json").unlink()
    again = RedoLog(tmp_path, (1_000,))
    assert steps(again) == [1, 2]
    assert again.update(certified(0, 2).entry) is None
    again.note(certified(0, 4), UPDATE)
    again.flush()  # nothing of that is in the way of what comes next


def test_a_disk_that_takes_nothing_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *parts: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = RedoLog(tmp_path, (1_000,))
    with monkeypatch.context() as patch:
        patch.setattr(redo, "write_atomically", full)
        for step in range(1, 11):
            log.note(certified(0, step), UPDATE)
            with pytest.raises(OSError, match="No space left"):
                log.flush()
    log.flush()
    assert steps(log) == list(range(11 - MOST_UNWRITTEN, 11))
