"""Lines that outlive a full disk."""

import errno
import os
import resource
from pathlib import Path

import pytest

from lowcomm import lines
from lowcomm.lines import LineFile


@pytest.fixture
def full_disk():
    """While it is on, this process can't make any file longer than so many bytes; Python ignores SIGXFSZ."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(size_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room_bytes", [8, 10], ids=["at-a-line-end", "in-mid-line"])
def test_what_a_full_disk_refuses_is_written_when_there_is_room(tmp_path, full_disk, room_bytes):
    path = tmp_path / "lines"
    file = LineFile(path, torn="cut")
    file.append("first 1")
    full_disk(room_bytes)
    for line in ("second", "third"):
        with pytest.raises(OSError, match=r"too large|No space"):
            file.append(line)
        assert path.read_text() == "first 1\n"  # never a part of a line
    assert file.waiting == 2
    full_disk(resource.RLIM_INFINITY)
    file.append("fourth")
    assert path.read_text() == "first 1\nsecond\nthird\nfourth\n"
    assert (file.waiting, file.lost) == (0, 0)


def test_memory_is_bounded_and_what_is_lost_is_counted(monkeypatch):
    monkeypatch.setattr(lines, "KEPT_LINES", 3)
    file = LineFile(Path("/dev/full"), torn="cut")
    for number in range(5):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            file.append(str(number))
    assert (file.waiting, file.lost) == (3, 2)


@pytest.mark.parametrize(("torn", "text"), [("cut", "a\nb\n"), ("close", "a\nhal\nb\n")])
def test_half_a_line_does_not_swallow_the_next(tmp_path, torn, text):
    path = tmp_path / "lines"
    path.write_text("a\nhal")
    LineFile(path, torn=torn).append("b")
    assert path.read_text() == text
