"""Every document is in one place only, the same on all islands."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.data.shards import SEPARATOR, divide, load_text
from lowcomm.errors import DataError


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=60),
    shards=st.integers(1, 12),
    fraction=st.floats(0.0, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_document_is_in_exactly_one_place(
    sizes: list[int], shards: int, fraction: float, seed: int
) -> None:
    array = np.array(sizes)
    try:
        division = divide(array, shards=shards, holdout_fraction=fraction, seed=seed)
    except DataError:
        held = min(len(sizes) - 1, max(1, round(fraction * len(sizes)))) if fraction > 0 else 0
        assert len(sizes) - held < shards
        return
    everything = [*division.holdout.tolist(), *(i for shard in division.shards for i in shard.tolist())]
    assert sorted(everything) == list(range(len(sizes)))
    assert all(len(shard) for shard in division.shards)
    assert bool(len(division.holdout)) == (fraction > 0 and len(sizes) >= 2)
    loads = [int(array[shard].sum()) for shard in division.shards]
    assert max(loads) - min(loads) <= max(sizes)


def test_division_never_changes() -> None:
    # frozen: islands of different versions must agree, or they train on each other's text
    division = divide(np.arange(1, 13), shards=3, holdout_fraction=0.2, seed=7)
    assert division.holdout.tolist() == [0, 7]
    assert [shard.tolist() for shard in division.shards] == [[2, 3, 5, 10], [4, 8, 9], [1, 6, 11]]


def test_seed_decides() -> None:
    sizes = np.full(200, 10)
    one, same, other = (
        divide(sizes, shards=4, holdout_fraction=0.1, seed=seed).shards[0].tolist() for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_holdout_is_a_part_of_the_documents() -> None:
    assert len(divide(np.ones(200, int), shards=2, holdout_fraction=0.05, seed=0).holdout) == 10


def test_more_islands_than_documents(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    with pytest.raises(DataError) as caught:
        load_text(str(tmp_path), shards=3, holdout_fraction=0.1, seed=0)
    assert str(caught.value) == (
        f"data.source {tmp_path}: expected at least 3 documents for training, one for each of "
        "shared.data.shards, got 2 (3 in all, 1 held out for evaluation); more islands than documents "
        "can't train: lower shared.data.shards or give more documents"
    )


def test_text_of_shards_and_holdout(tmp_path: Path) -> None:
    words = [f"word{i:02}" for i in range(20)]
    for word in words:
        (tmp_path / word).write_text(word)
    text = load_text(str(tmp_path), shards=4, holdout_fraction=0.1, seed=0)
    parts = [text.holdout(), *(text.shard(index) for index in range(4))]
    found = [part.tobytes().decode().split(chr(SEPARATOR)) for part in parts]
    assert len(found[0]) == 2
    assert sorted(word for part in found for word in part) == words
    assert all(part == sorted(part) for part in found)
    assert text.training().tobytes().decode().split("\0") == sorted(set(words) - set(found[0]))
    assert (text.documents, text.num_shards) == (20, 4)


@pytest.mark.parametrize("index", [-1, 4])
def test_shard_that_is_not_there(tmp_path: Path, index: int) -> None:
    for number in range(8):
        (tmp_path / str(number)).write_text("x")
    text = load_text(str(tmp_path), shards=4, holdout_fraction=0.0, seed=0)
    assert len(text.holdout()) == 0
    with pytest.raises(DataError, match="expected 0 to 3"):
        text.shard(index)
