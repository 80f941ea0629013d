from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.errors import StorageError
from lowcomm.storage.run_folder import RunFolder

HOLDER = """
import sys
from pathlib import Path
from lowcomm.storage.run_folder import RunFolder
with RunFolder.open(Path(sys.argv[1]), run_id="demo", shared_digest="d" * 64, version="1"):
    print("held", flush=True)
    sys.stdin.read()
"""


def claim(path: Path, run_id: str = "demo", shared_digest: str = "d" * 64) -> RunFolder:
    return RunFolder.open(path, run_id=run_id, shared_digest=shared_digest, version="1")


def content(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.iterdir() if item.is_file()}


def test_a_new_folder_is_claimed_and_can_be_reopened(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "demo"
    with claim(path) as folder:
        assert folder.path == path
        assert (path / "pid").read_text() == f"{os.getpid()}\n"
        facts = json.loads((path / "run.json").read_text())
        assert facts == {"run_id": "demo", "shared_digest": "d" * 64, "version": "1"}
        folder.write("config.toml", "a = 1\n")
    assert not (path / "pid").exists()
    with claim(path):
        assert (path / "config.toml").read_text() == "a = 1\n"


def test_a_folder_whose_text_has_changed_is_refused(tmp_path: Path) -> None:
    one, two = "1" * 64, "2" * 64
    with claim(tmp_path) as folder:
        folder.check_data(one)
        folder.check_data(two)  # nothing was trained on yet
        folder.note_data(one)
    with claim(tmp_path) as folder:
        folder.check_data(one)
        message = "this run has trained on other text .digest 111111111111, now 222222222222.*another --out"
        with pytest.raises(StorageError, match=message):
            folder.check_data(two)


@pytest.mark.parametrize(
    ("run_id", "digest", "message"),
    [
        ("other", "d" * 64, "belongs to run 'demo', not to 'other'"),
        ("demo", "e" * 64, r"other \[shared\] settings \(digest dddddddddddd, now eeeeeeeeeeee\)"),
    ],
    ids=["run", "settings"],
)
def test_the_folder_of_another_run_is_refused(tmp_path: Path, run_id: str, digest: str, message: str) -> None:
    claim(tmp_path / "a").close()
    before = content(tmp_path / "a")
    with pytest.raises(StorageError, match=message):
        claim(tmp_path / "a", run_id, digest)
    assert content(tmp_path / "a") == before
    claim(tmp_path / "a").close()  # the refused one holds no lock


def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"found 'thesis\.txt' and no run\.json"):
        claim(tmp_path)
    assert content(tmp_path) == {"thesis.txt": b"mine"}


def test_a_launchers_log_may_be_there_before(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("starting")
    claim(tmp_path).close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": "demo"}'])
def test_a_damaged_mark_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(StorageError, match=r"run\.json: expected the mark of a lowcomm run"):
        claim(tmp_path)


def test_two_live_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match="another live process trains in this folder"):
            claim(path)
        assert (path / "pid").read_text() == f"{holder.pid}\n"
        holder.kill()
        holder.wait(timeout=60)
    with claim(path):  # a killed process holds nothing
        assert (path / "pid").read_text() == f"{os.getpid()}\n"


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(StorageError, match="the run folder can't be used") as caught:
            claim(path)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_stays(tmp_path: Path) -> None:
    with claim(tmp_path / "run") as folder:
        (folder.path / "config.toml").mkdir()
        with pytest.raises(StorageError, match=r"config\.toml: the file can't be written"):
            folder.write("config.toml", "a = 1")
        assert not list(folder.path.glob("*.new"))
