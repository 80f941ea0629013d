"""Windows of a corpus: each once in an epoch, in the same order anywhere, by the weights of sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from lowcomm.data.corpus.manifest import Manifest, Vocabulary
from lowcomm.data.loader import Loader
from lowcomm.data.reading.files import Opened, open_corpus
from lowcomm.data.reading.order import BLOCK
from lowcomm.data.reading.windows import CorpusWindows, held_out
from lowcomm.data.samples import Dealt
from lowcomm.errors import DataError
from tests.data.reading.corpora import counting, make_corpus

LARGE = Vocabulary(kind="tokenizer.json", blake3="0" * 64, size=100_000, separator=0)


def opened(folder: Path, manifest: Manifest) -> Opened:
    return open_corpus(str(folder), manifest.digest, cache_gb=1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """40 chunks of 4 documents of 24 tokens and a separator each; all tokens differ."""
    folder = tmp_path_factory.mktemp("corpus")
    return opened(folder, make_corpus(folder, {"web": counting(160, 24)}, vocabulary=LARGE))


def epoch_of(windows: CorpusWindows | Dealt, epoch: int = 0) -> list[int]:
    return windows.places(epoch, 0, windows.count(epoch)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("context", [1, 7, 16, 99], ids=lambda c: f"context-{c}")
def test_an_epoch_predicts_every_token_once(corpus: Opened, context: int) -> None:
    windows = CorpusWindows(corpus, context=context, seed=1)
    places = windows.places(0, 0, windows.count(0))
    inputs, targets = windows.batch(places)
    assert inputs.shape == targets.shape == (len(places), context)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    predicted = Counter(targets[targets != 0].tolist())
    assert set(predicted.values()) == {1}
    assert len(predicted) >= 160 * 24 - 40 * 2 * context


def test_epochs_differ_in_order_and_in_cuts(corpus: Opened) -> None:
    windows = CorpusWindows(corpus, context=8, seed=1)
    epochs = [epoch_of(windows, epoch) for epoch in range(6)]
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({frozenset(epoch) for epoch in epochs}) > 2


def test_the_order_is_known(corpus: Opened) -> None:
    """Islands that disagree about it would train on each other's samples."""
    assert CorpusWindows(corpus, context=8, seed=1).places(2, 5, 11).tolist() == [
        2788,
        848,
        2180,
        3732,
        132,
        2364,
    ]


def test_any_range_is_part_of_the_whole(corpus: Opened) -> None:
    windows = CorpusWindows(corpus, context=2, seed=3)
    whole = epoch_of(windows)
    for start, stop in ((0, 1), (1_020, 1_030), (500, 1_900), (len(whole) - 1, len(whole)), (7, 7)):
        fresh = CorpusWindows(corpus, context=2, seed=3)
        assert fresh.places(0, start, stop).tolist() == whole[start:stop]


def test_successive_windows_touch_few_chunks(corpus: Opened) -> None:
    windows = CorpusWindows(corpus, context=8, seed=1)
    chunks = np.array(epoch_of(windows)) // 100
    for start in range(0, len(chunks), 64):
        assert len(set(chunks[start : start + 64].tolist())) <= 2 * BLOCK
    assert len(set(chunks[:64].tolist())) > BLOCK // 2, "they are mixed"


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0, 1.75, 3.0])
def test_a_source_is_drawn_by_its_weight(tmp_path: Path, weight: float) -> None:
    sources = {"web": counting(48, 24), "books": counting(48, 24, first=5_000)}
    manifest = make_corpus(tmp_path, sources, weights={"books": weight}, vocabulary=LARGE)
    windows = CorpusWindows(opened(tmp_path, manifest), context=4, seed=0)
    drawn = Counter()
    for epoch in range(4):
        targets = windows.batch(windows.places(epoch, 0, windows.count(epoch)))[1]
        drawn["web"] += int(((targets > 0) & (targets < 5_000)).sum())
        drawn["books"] += int((targets > 5_000).sum())
    assert drawn["books"] / drawn["web"] == pytest.approx(weight, abs=0.04)


def test_a_part_of_a_source_goes_on_in_the_next_epoch(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, {"web": counting(64, 24)}, weights={"web": 0.25}, vocabulary=LARGE)
    windows = CorpusWindows(opened(tmp_path, manifest), context=4, seed=0)
    seen = [set(windows.batch(np.array(epoch_of(windows, e)))[1].flatten().tolist()) - {0} for e in range(4)]
    assert len(set.union(*seen)) > 0.9 * 64 * 24
    assert sum(map(len, seen)) < 1.1 * len(set.union(*seen))


def test_sources_are_spread_evenly_over_an_epoch(tmp_path: Path) -> None:
    sources = {"web": counting(256, 24), "books": counting(64, 24, first=10_000)}
    manifest = make_corpus(tmp_path, sources, vocabulary=LARGE)
    windows = CorpusWindows(opened(tmp_path, manifest), context=8, seed=0)
    inputs = windows.batch(np.array(epoch_of(windows)))[0]
    books = [float((part > 10_000).any(dim=1).float().mean()) for part in inputs.chunk(5)]
    assert all(0.1 < share < 0.3 for share in books), books


def test_parts_are_disjoint_and_whole_together(corpus: Opened) -> None:
    windows = CorpusWindows(corpus, context=3, seed=1)
    parts = [epoch_of(Dealt(windows, part, 3)) for part in range(3)]
    assert sorted(place for part in parts for place in part) == sorted(epoch_of(windows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 64
    assert parts[0][:10] == epoch_of(windows)[:10], "blocks of successive samples stay together"


def test_the_stream_resumes_and_ranks_share_it(corpus: Opened) -> None:
    def stream(**of: int) -> Loader:
        part = Dealt(CorpusWindows(corpus, context=8, seed=1), 1, 2)
        return Loader(part, **of)  # type: ignore[arg-type]

    alone, ranks = stream(batch_size=6), [stream(batch_size=2, rank=r, world_size=3) for r in range(3)]
    resumed = None
    for step in range(60):
        whole = alone.next_batch()[0]
        assert torch.equal(torch.cat([rank.next_batch()[0] for rank in ranks]), whole)
        if resumed is not None:
            assert torch.equal(resumed.next_batch()[0], whole)
        if step == 20:
            resumed = stream(batch_size=6)
            resumed.load_state_dict(alone.state_dict())
    assert alone.epoch > 0


def test_positions_begin_anew_where_a_document_does(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    manifest = make_corpus(tmp_path, {"web": documents}, vocabulary=LARGE, chunk_documents=3)
    windows = CorpusWindows(opened(tmp_path, manifest), context=11, seed=0, apart=True)
    inputs, _, positions = windows.batch(np.array([0, 1]))
    assert inputs[0].tolist() == [1, 2, 3, 0, 4, 0, 5, 6, 7, 8, 9]
    assert positions[0].tolist() == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4]
    assert positions[1].tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5]


def test_held_out_windows_are_fixed_and_told_by_source(tmp_path: Path) -> None:
    manifest = make_corpus(
        tmp_path,
        {"web": counting(4, 24), "books": counting(4, 24)},
        {"web": counting(30, 24), "books": counting(10, 24, first=5_000)},
        vocabulary=LARGE,
        bytes_per_token=3,
    )
    corpus = opened(tmp_path, manifest)
    first, again = (list(held_out(corpus, context=8, windows=20, batch_size=4)) for _ in range(2))
    assert [each.source for each in first] == ["web"] * 4 + ["books"] * 2
    assert [len(each.batch[0]) for each in first] == [4, 4, 4, 3, 4, 1]
    assert {each.bytes_per_token for each in first} == {3.0}
    assert all(torch.equal(a.batch[0], b.batch[0]) for a, b in zip(first, again, strict=True))
    windows = torch.cat([each.batch[0] for each in first])
    assert len(windows.unique(dim=0)) == 20


def test_too_little_text_for_a_window(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, {"web": counting(4, 24)}, vocabulary=LARGE)
    with pytest.raises(DataError, match=r"expected a chunk of at least 101 tokens.*context = 100.*got 100"):
        CorpusWindows(opened(tmp_path, manifest), context=100, seed=0)


def test_fewer_samples_than_islands(corpus: Opened) -> None:
    windows = CorpusWindows(corpus, context=99, seed=0)
    with pytest.raises(DataError, match=r"expected at least 41 samples.*got 40; lower shared.data.shards"):
        Dealt(windows, 0, 41)
    with pytest.raises(DataError, match=r"data.shard: expected 0 to 1, got 2"):
        Dealt(windows, 2, 2)


def test_a_corpus_of_another_manifest(tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, {"web": counting(4, 24)}, vocabulary=LARGE)
    with pytest.raises(
        DataError, match=rf"shared.data.manifest: .*{'0' * 64}, got .*{manifest.digest} in data"
    ):
        open_corpus(str(tmp_path), "0" * 64, cache_gb=1.0)


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-2]),
            "chunk 000000: .*expected 400 bytes.*got 398",
        ),
        (lambda path: path.unlink(), "chunk 000000: .*No such file.*copy the whole corpus"),
        (
            lambda path: path.write_bytes(b"\xff" * 400),
            "chunk 000000: expected tokens below the vocabulary's",
        ),
    ],
    ids=["cut", "missing", "above-the-vocabulary"],
)
def test_a_chunk_that_is_not_as_the_manifest_says(tmp_path: Path, harm, match: str) -> None:  # type: ignore[no-untyped-def]
    manifest = make_corpus(tmp_path, {"web": counting(4, 24)}, vocabulary=LARGE)
    harm(tmp_path / "chunks" / "000000.bin")
    windows = CorpusWindows(opened(tmp_path, manifest), context=8, seed=0)
    with pytest.raises(DataError, match=match) as error:
        windows.batch(windows.places(0, 0, 4))
    assert "\n" not in str(error.value)
