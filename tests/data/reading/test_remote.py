"""Chunks from elsewhere: checked, resumed, kept within a budget, shared by ranks."""

from __future__ import annotations

import concurrent.futures
import logging
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3

from lowcomm.data.corpus.manifest import Manifest
from lowcomm.data.reading.cache import TRIES, Cache
from lowcomm.data.reading.files import open_corpus
from lowcomm.data.reading.remote import open_remote
from lowcomm.data.reading.windows import CorpusWindows
from lowcomm.errors import DataError, StorageError
from tests.data.reading.corpora import make_corpus
from tests.data.reading.servers import Answer, serving

CONTENT = bytes(range(256)) * 4_000
NAME, DIGEST, SIZE = "chunks/000000.bin", blake3(CONTENT).hexdigest(), len(CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus" / "chunks").mkdir(parents=True)
    (tmp_path / "corpus" / NAME).write_bytes(CONTENT)
    return tmp_path / "corpus"


class Waits(list[float]):
    """What was waited, without waiting."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def cache(tmp_path: Path, waits: Waits) -> Cache:
    return Cache(tmp_path / "cache", 10 * SIZE, waits)


def got(cache: Cache, url: str) -> bytes:
    with cache.open(open_remote(url), NAME, DIGEST, SIZE) as file:
        return file.read()


def test_a_chunk_is_fetched_once(folder: Path, cache: Cache) -> None:
    with serving(folder) as server:
        assert got(cache, server.url) == got(cache, server.url) == CONTENT
        assert server.asked == {(NAME, 0): 1}


@pytest.mark.parametrize("scheme", ["file://", "local://"])
def test_any_address_of_fsspec(folder: Path, cache: Cache, scheme: str) -> None:
    assert got(cache, f"{scheme}{folder}") == CONTENT


def test_what_was_cut_goes_on_where_it_was(folder: Path, cache: Cache, waits: Waits) -> None:
    with serving(folder, lambda name, start, before: Answer(CONTENT, sent=300_000)) as server:
        assert got(cache, server.url) == CONTENT
        assert server.asked == {(NAME, start): 1 for start in range(0, SIZE, 300_000)}
    assert waits == []


def test_a_server_without_ranges(folder: Path, cache: Cache) -> None:
    def half_at_first(name: str, start: int, before: int) -> Answer | None:
        return Answer(CONTENT, sent=SIZE // 2) if before == 0 else None

    with serving(folder, half_at_first) as server:
        remote = open_remote(server.url)
        whole = b"".join(remote.read(NAME, 0)) + b"".join(remote.read(NAME, SIZE // 2))
    assert whole == CONTENT


def test_other_bytes_are_named_and_fetched_anew(
    folder: Path, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    def lies_twice(name: str, start: int, before: int) -> Answer | None:
        return Answer(bytes(SIZE)) if before < 2 else None

    with serving(folder, lies_twice) as server, caplog.at_level(logging.WARNING):
        assert got(cache, server.url) == CONTENT
    assert caplog.messages == [f"chunk {NAME} came with other bytes than its manifest says; fetched anew"] * 2


def test_too_many_bytes_are_not_taken(folder: Path, cache: Cache) -> None:
    with serving(folder, lambda name, start, before: Answer(CONTENT * 5) if before == 0 else None) as server:
        assert got(cache, server.url) == CONTENT


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "7"}, [7.0, 7.0]),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, [0.5, 1.0]),
        ({}, [0.5, 1.0]),
    ],
    ids=["seconds", "a-date-that-is-over", "nothing"],
)
def test_a_server_that_is_busy_is_left_alone(
    folder: Path, cache: Cache, waits: Waits, headers: dict[str, str], expected: list[float]
) -> None:
    def busy(name: str, start: int, before: int) -> Answer | None:
        return Answer(status=429, headers=headers) if before < 2 else None

    with serving(folder, busy) as server:
        assert got(cache, server.url) == CONTENT
    assert waits == expected


@pytest.mark.parametrize(
    ("answer", "match", "waited"),
    [
        (Answer(status=404), r"chunks/000000.bin: the server says 404 Not Found; look at data.source", 0),
        (
            Answer(status=429),
            rf"the server says 429 Too Many Requests, {TRIES} times; .* to resume",
            TRIES - 1,
        ),
        (Answer(bytes(SIZE)), rf"chunks/000000.bin: other bytes than its manifest says, {TRIES}", TRIES - 1),
        (Answer(CONTENT, sent=0), r"got 0 of 1,024,000 bytes", TRIES - 1),
    ],
    ids=["404", "429", "other-bytes", "nothing"],
)
def test_what_can_not_be_had(
    folder: Path, cache: Cache, waits: Waits, answer: Answer, match: str, waited: int
) -> None:
    with serving(folder, lambda name, start, before: answer) as server, pytest.raises(DataError, match=match):
        got(cache, server.url)
    assert len(waits) == waited


def test_a_file_that_is_too_short_there(folder: Path, cache: Cache) -> None:
    def short(name: str, start: int, before: int) -> Answer | None:
        return Answer(status=416) if start else Answer(CONTENT[:1_000])

    with serving(folder, short) as server, pytest.raises(DataError, match=r"more than 1,000 bytes.*was cut"):
        got(cache, server.url)


def test_nobody_answers(folder: Path, cache: Cache) -> None:
    with serving(folder) as server:
        url = server.url
    with pytest.raises(DataError, match=rf": \[Errno \d+\] Connection refused, {TRIES} times"):
        got(cache, url)


def test_the_longest_unused_goes_first(folder: Path, tmp_path: Path, waits: Waits) -> None:
    cache, remote = Cache(tmp_path / "cache", 3 * SIZE, waits), open_remote(f"file://{folder}")
    contents = [bytes([number]) * SIZE for number in range(4)]
    names = [f"chunks/{number}" for number in range(4)]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    digests = [blake3(content).hexdigest() for content in contents]

    def use(number: int) -> bytes:
        with cache.open(remote, names[number], digests[number], SIZE) as file:
            return file.read()

    for number in (0, 1, 2, 0):
        use(number)
    held = cache.open(remote, names[1], digests[1], SIZE)
    for number in (2, 0, 3):
        assert use(number) == contents[number]
    kept = {path.name for path in (tmp_path / "cache").iterdir() if not path.suffix} - {"lock"}
    assert kept == {digests[0], digests[2], digests[3]}
    assert held.read() == contents[1], "what is open stays readable"
    held.close()


def test_ranks_of_a_host_fetch_a_chunk_once(folder: Path, tmp_path: Path, waits: Waits) -> None:
    with serving(folder) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        caches = [Cache(tmp_path / "cache", 10 * SIZE, waits) for _ in range(8)]
        assert set(pool.map(lambda cache: got(cache, server.url), caches)) == {CONTENT}
        assert server.asked == {(NAME, 0): 1}


def test_a_folder_that_can_not_be_written(tmp_path: Path, waits: Waits) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/cache: chunks can't be kept: Not a directory; make room"):
        Cache(tmp_path / "file" / "cache", SIZE, waits)


def test_an_unknown_protocol() -> None:
    with pytest.raises(DataError, match=r"data.source nosuch://x: expected a folder or a URL"):
        open_remote("nosuch://x")


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Manifest]:
    numbers = np.random.default_rng(0).integers(1, 255, (160, 30)).tolist()
    return tmp_path / "built", make_corpus(tmp_path / "built", {"web": numbers})


def test_windows_from_elsewhere_are_those_of_the_folder(
    built: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder, manifest = built
    with serving(folder) as server:
        here, there = (
            CorpusWindows(open_corpus(source, manifest.digest, cache_gb=1.0), context=8, seed=0, apart=True)
            for source in (str(folder), server.url)
        )
        for start in range(0, here.count(0) - 8, 8):
            places = there.places(0, start, start + 8)
            assert all(map(torch.equal, here.batch(places), there.batch(places)))
        assert max(server.asked.values()) == 1


def test_chunks_are_fetched_ahead_in_the_order_of_the_epoch(
    built: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder, manifest = built
    asked: list[str] = []
    all_there = threading.Event()

    def note(name: str, start: int, before: int) -> None:
        asked.append(name)
        if len(asked) == 33:  # the manifest, and two blocks
            all_there.set()

    with serving(folder, note) as server:
        windows = CorpusWindows(open_corpus(server.url, manifest.digest, cache_gb=1.0), context=8, seed=0)
        windows.places(0, 0, 1)
        assert all_there.wait(60)
    numbers = [int(Path(name).stem) for name in asked[1:]]
    starts = np.cumsum([chunk.tokens for chunk in manifest.training])
    order = [int(np.searchsorted(starts, place, "right")) for place in windows.places(0, 0, windows.count(0))]
    assert set(numbers[:16]) == set(order[: 16 * 10])
    assert set(order[: 16 * 30]) >= set(numbers[16:])


def test_a_disk_that_is_full(folder: Path, cache: Cache, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(
            StorageError, match=r"cache: chunks can't be kept: .*; make room, lower data.cache_gb"
        ):
            got(cache, f"file://{folder}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert got(cache, f"file://{folder}") == CONTENT, "what came is kept, and it goes on from there"


def test_a_cache_without_room_for_what_is_read_at_a_time(built: tuple[Path, Manifest]) -> None:
    folder, manifest = built
    with pytest.raises(DataError, match=r"data.cache_gb: expected at least 3.97e-06.*got 1e-06"):
        open_corpus(f"file://{folder}", manifest.digest, cache_gb=1e-6)
