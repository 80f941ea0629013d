"""The stream of windows: complete, disjoint between ranks, resumable to the window."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowcomm.data.loader import Loader
from lowcomm.data.samples import Windows, eval_batches
from lowcomm.errors import DataError

CONTEXT = 8


def text(size: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 255, size, dtype=np.uint8)


def loader(size: int = 1_000, *, rank: int = 0, world_size: int = 1, seed: int = 0, batch: int = 4) -> Loader:
    windows = Windows(text(size), context=CONTEXT, seed=seed)
    return Loader(windows, batch_size=batch, rank=rank, world_size=world_size)


def draw(stream: Loader, batches: int) -> list[list[int]]:
    return [window for _ in range(batches) for window in stream.next_batch()[0].tolist()]


def test_batches_are_int64_windows_and_the_next_tokens() -> None:
    inputs, targets = loader().next_batch()
    assert inputs.shape == targets.shape == (4, CONTEXT)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous()
    assert targets.is_contiguous()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    whole = text(1_000).tobytes()
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        assert bytes([*row, target[-1]]) in whole


def test_an_epoch_predicts_every_token_once() -> None:
    numbers = np.arange(255, dtype=np.uint8)
    stream = Loader(Windows(numbers, context=CONTEXT, seed=1), batch_size=1)
    predicted: Counter[int] = Counter()
    while stream.epoch == 0:
        predicted.update(stream.next_batch()[1].flatten().tolist())
    assert set(predicted.values()) == {1}
    assert len(predicted) >= len(numbers) - 2 * CONTEXT


def test_epochs_differ_in_order_and_offset() -> None:
    stream = loader(200, batch=1)
    epochs: list[list[list[int]]] = [[], [], []]
    while stream.epoch < 3:
        epochs[stream.epoch] += draw(stream, 1)
    assert len({tuple(map(tuple, epoch)) for epoch in epochs}) == 3
    assert len({frozenset(map(tuple, epoch)) for epoch in epochs}) > 1


@pytest.mark.parametrize("size", [9, 10, 16, 17, 40, 1_000], ids=lambda size: f"{size}-bytes")
def test_ranks_share_the_stream_of_one(size: int) -> None:
    alone = loader(size, batch=6)
    ranks = [loader(size, batch=2, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(50):
        together = [window for rank in ranks for window in draw(rank, 1)]
        assert together == draw(alone, 1)
    assert [rank.state_dict() for rank in ranks] == [alone.state_dict()] * 3


def test_ranks_draw_different_windows_of_an_epoch() -> None:
    ranks = [loader(5_000, batch=2, rank=rank, world_size=4) for rank in range(4)]
    windows = [tuple(window) for rank in ranks for window in draw(rank, 70)]
    assert ranks[0].epoch == 0
    assert len(set(windows)) == len(windows) == 4 * 2 * 70


@pytest.mark.parametrize("batches", [0, 1, 30, 31, 200], ids=lambda count: f"after-{count}")
def test_resumed_equals_uninterrupted(batches: int) -> None:
    uninterrupted, resumed = loader(), loader()
    draw(uninterrupted, batches)
    resumed.load_state_dict(uninterrupted.state_dict())
    assert resumed.tokens == batches * uninterrupted.batch_tokens
    assert draw(resumed, 70) == draw(uninterrupted, 70)
    assert resumed.state_dict() == uninterrupted.state_dict()


def test_resume_with_another_batch_and_world_size() -> None:
    before = loader(batch=4)
    draw(before, 10)
    after = loader(batch=3, rank=1, world_size=2)
    after.load_state_dict(before.state_dict())
    assert draw(after, 1) == draw(before, 2)[3:6]


@given(batches=st.integers(0, 300), start=st.integers(0, 40))
def test_skip_equals_drawing(batches: int, start: int) -> None:
    drawn, skipped = loader(700), loader(700)
    draw(drawn, start)
    draw(skipped, start)
    draw(drawn, batches)
    skipped.skip(batches * skipped.batch_tokens)
    assert skipped.state_dict() == drawn.state_dict()
    assert draw(skipped, 3) == draw(drawn, 3)


@pytest.mark.parametrize("tokens", [-CONTEXT, 1, CONTEXT + 1])
def test_skip_takes_whole_windows_only(tokens: int) -> None:
    with pytest.raises(DataError, match="expected whole samples of 8 tokens"):
        loader().skip(tokens)


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (loader(999), "text_digest"),
        (loader(seed=1), "seed"),
        (Loader(Windows(text(1_000), context=9, seed=0), batch_size=4), "context"),
    ],
    ids=["text", "seed", "context"],
)
def test_state_of_another_stream_is_refused(other: Loader, key: str) -> None:
    stream = loader()
    draw(stream, 3)
    before = stream.state_dict()
    with pytest.raises(DataError, match=f"made with {key}"):
        stream.load_state_dict(other.state_dict())
    assert stream.state_dict() == before


def test_seed_decides_the_order() -> None:
    assert draw(loader(seed=1), 5) == draw(loader(seed=1), 5)
    assert draw(loader(seed=1), 5) != draw(loader(seed=2), 5)


@pytest.mark.parametrize("size", [0, CONTEXT])
def test_too_little_text(size: int) -> None:
    with pytest.raises(DataError, match=rf"shard 3: expected at least 9 bytes of text.*got {size};"):
        Windows(text(size), context=CONTEXT, seed=0, name="shard 3")
    with pytest.raises(DataError, match=f"the held-out text: .*got {size};"):
        eval_batches(text(size), context=CONTEXT, num_windows=1, batch_size=1)


def test_rank_outside_the_world() -> None:
    with pytest.raises(DataError, match="world size = 2, got rank 2"):
        loader(rank=2, world_size=2)


def windows(size: int, **options: int) -> list[list[int]]:
    batches = eval_batches((np.arange(size) % 251).astype(np.uint8), context=CONTEXT, **options)
    return [window for inputs, _ in batches for window in inputs.tolist()]


def test_eval_windows_are_fixed_and_evenly_spread() -> None:
    found = windows(10 * CONTEXT + 1, num_windows=5, batch_size=2)
    assert [window[0] for window in found] == [0, 16, 32, 48, 64]
    assert found == windows(10 * CONTEXT + 1, num_windows=5, batch_size=3)


def test_eval_takes_what_there_is() -> None:
    assert len(windows(3 * CONTEXT + 1, num_windows=100, batch_size=2)) == 3
    assert len(windows(3 * CONTEXT, num_windows=100, batch_size=2)) == 2


def test_eval_windows_are_shared_among_ranks() -> None:
    size = 20 * CONTEXT + 1
    ranks = [windows(size, num_windows=7, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(window for rank in ranks for window in rank) == windows(size, num_windows=7, batch_size=7)


def test_a_batch_larger_than_an_epoch_is_said(caplog):
    Loader(Windows(text(1_000), context=CONTEXT, seed=0), batch_size=4)
    assert not caplog.records
    Loader(Windows(text(50), context=CONTEXT, seed=0), batch_size=100, world_size=2)
    (said,) = caplog.messages
    assert "a batch of all ranks has 200 samples, an epoch 5: " in said
