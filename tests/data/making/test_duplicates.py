"""Which keys come again, against a set in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lowcomm.data.making import duplicates
from lowcomm.data.making.duplicates import DuplicateJob, find_later, read_bits


@pytest.mark.parametrize("sorted_bytes", [1 << 20, 1_000, 24], ids=["one bucket", "some", "many"])
def test_bits_are_those_of_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sorted_bytes: int) -> None:
    monkeypatch.setattr(duplicates, "BATCH_ROWS", 37)
    chosen = np.random.default_rng(1)
    distinct = chosen.integers(0, 2**64, (120, 2), np.uint64)
    distinct[60:, 0] = distinct[:60, 0]  # equal in their first half, so in one bucket, and unlike
    keys = distinct[chosen.integers(0, 120, 300)]
    files = []
    for number, part in enumerate(np.split(keys, [0, 5, 100, 100, 250])):
        files.append(tmp_path / f"keys-{number}")
        part.astype("<u8").tofile(files[-1])
    job = DuplicateJob(files=files, result=tmp_path / "bits", sorted_bytes=sorted_bytes)
    find_later(job)
    seen: set[bytes] = set()
    expected = []
    for key in keys:
        expected.append(key.tobytes() in seen)
        seen.add(key.tobytes())
    assert 0 < sum(expected) < 300
    assert read_bits(tmp_path / "bits", 0, 300).tolist() == expected
    for start, count in ((0, 1), (7, 9), (13, 100), (299, 1), (40, 0)):
        assert read_bits(tmp_path / "bits", start, count).tolist() == expected[start : start + count]
    assert {path.name for path in tmp_path.iterdir()} == {"bits", *(path.name for path in files)}


def test_no_documents_have_no_bits(tmp_path: Path) -> None:
    (tmp_path / "keys").touch()
    find_later(DuplicateJob(files=[tmp_path / "keys"], result=tmp_path / "bits"))
    assert read_bits(tmp_path / "bits", 0, 0).tolist() == []
