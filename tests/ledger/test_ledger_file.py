"""What the ledger file keeps, and what a killed process leaves in it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import Entry, hash_bytes
from lowcomm.ledger.file import LedgerFile
from lowcomm.ledger.recorder import MOST_WAITING, Recorder
from lowcomm.ledger.update import Update
from lowcomm.types import Digest, PeerId


def entry(outer_step: int) -> Entry:
    return Entry(
        run_id="run",
        fragment=0,
        outer_step=outer_step,
        participants=((PeerId("a"), 10),),
        total_tokens=10 * outer_step,
        stops=(4,),
        chunk_elements=4,
        update_hash=hash_bytes(b"update"),
        update_bytes=6,
        state_digest=hash_bytes(b"state"),
        previous=Digest("0" * 64),
    )


def test_only_the_newest_updates_are_kept(tmp_path: Path) -> None:
    file = LedgerFile(tmp_path / "ledger.jsonl", keep_updates=2)
    for outer_step in range(1, 12):
        file.append(Certified(entry(outer_step), None), Update([b"update"]))
    assert sorted(path.name for path in (tmp_path / "updates").iterdir()) == [
        "0-000000010.update",
        "0-000000011.update",
    ]
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 11


def test_a_half_written_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    LedgerFile(path).append(Certified(entry(1), None), None)
    whole = path.read_text()
    path.write_text(whole + whole[:40])
    LedgerFile(path).append(Certified(entry(2), None), None)
    assert [line[:1] + line[-1:] for line in path.read_text().splitlines()] == ["{}", "{}"]
    assert not (tmp_path / "updates").exists()


def test_a_slow_disk_holds_few_updates_in_memory_and_no_entry_is_lost() -> None:
    """Each update is as large as a quarter of a fragment; an entry is a line."""
    stuck, given = threading.Event(), []

    class Slow:
        def append(self, certified: Certified, update: Update | None) -> None:
            assert stuck.wait(20.0)
            given.append((certified.entry.outer_step, update is not None))

        def note_snapshot(
            self, fragment: int, outer_step: int, head: Digest, state_digest: Digest, tip: Certified | None
        ) -> None:
            given.append((outer_step, False))

    with ThreadPoolExecutor(2) as pool:
        recorder = Recorder(Slow(), pool)
        for outer_step in range(1, 9):
            recorder.committed(Certified(entry(outer_step), None), Update([b"update"]))
        recorder.snapshot(0, 9, Digest("0" * 64), Digest("0" * 64), None)
        stuck.set()
        recorder.written().result(timeout=20.0)
        recorder.committed(Certified(entry(10), None), Update([b"update"]))
        recorder.written().result(timeout=20.0)
    assert [step for step, _ in given] == list(range(1, 11))
    assert [step for step, kept in given if kept] == [*range(1, MOST_WAITING + 1), 10]
