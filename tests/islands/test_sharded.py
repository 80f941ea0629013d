"""Vectors of which each host keeps its part: what is held where, for how long, and what a death does."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch

from lowcomm.errors import IslandError
from lowcomm.islands.sharded import HELLO, HELLO_S, Keeper, Link, ShardedVectors, open_vectors
from lowcomm.islands.vectors import Difference, HostVector, HostVectors

ELEMENTS = 1001
JOIN_S = 30.0


@contextmanager
def island(ranks: int) -> Iterator[tuple[ShardedVectors, list[Keeper]]]:
    """The lead's side, and the threads of the other hosts."""
    pairs = [socket.socketpair() for _ in range(ranks - 1)]
    keepers = [Keeper(theirs) for _, theirs in pairs]
    vectors = ShardedVectors([Link(rank, mine) for rank, (mine, _) in enumerate(pairs, start=1)])
    with closing(vectors):
        yield vectors, keepers
    assert all(keeper.join(JOIN_S) for keeper in keepers)
    assert [keeper.held_bytes for keeper in keepers] == [0] * len(keepers)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("elements", [0, 1, 3, ELEMENTS])
def test_each_rank_keeps_its_part(ranks: int, elements: int) -> None:
    values = torch.randn(elements)
    with island(ranks) as (vectors, keepers):
        vector = vectors.hold(values)
        assert vector.elements == elements
        assert torch.equal(vector.load(), values)
        for start in range(0, elements, 97):
            assert torch.equal(vector.load(start, start + 200), values[start : start + 200])
        here = vector.load(0, elements // ranks).untyped_storage().nbytes()  # a view of what the lead keeps
        parts = [here, *(keeper.held_bytes for keeper in keepers)]
        assert sum(parts) == 4 * elements
        assert max(parts) <= 4 * -(-elements // ranks)


def test_a_vector_is_filled_by_several_threads() -> None:
    values = torch.randn(ELEMENTS)
    with island(3) as (vectors, _), ThreadPoolExecutor(4) as pool:
        vector = vectors.empty(ELEMENTS)

        def fill(start: int) -> None:
            stop = min(start + 50, ELEMENTS)
            with vector.filling(start, stop) as part:
                part.copy_(values[start:stop])

        list(pool.map(fill, range(0, ELEMENTS, 50)))
        assert torch.equal(vector.load(), values)


def test_what_nobody_refers_to_is_freed() -> None:
    with island(2) as (vectors, (keeper,)):
        kept, dropped = vectors.hold(torch.ones(10)), vectors.hold(torch.ones(ELEMENTS))
        assert dropped.load(ELEMENTS - 1).item() == 1.0
        less = Difference(dropped, HostVector(torch.ones(ELEMENTS)))
        del dropped
        gc.collect()
        assert less.load(900).sum().item() == 0.0  # it refers to the other one
        del less
        gc.collect()
        assert torch.equal(kept.load(), torch.ones(10))  # answered after what was freed
        assert keeper.held_bytes == 20


def test_a_vector_freed_in_the_middle_of_a_request_goes_after_it() -> None:
    mine, theirs = socket.socketpair()
    link = Link(1, mine)
    with closing(link), theirs:
        reading = threading.Thread(target=lambda: link.read(1, 4, 0, memoryview(bytearray(4))))
        reading.start()
        theirs.recv(64)  # the request has come
        link.free(2)  # and doesn't wait
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(64)
        theirs.setblocking(True)
        theirs.sendall(b"1234")
        assert theirs.recv(64)[0] == 3
        reading.join(JOIN_S)


def test_a_rank_that_is_gone_is_an_error_and_stays_one() -> None:
    with island(2) as (vectors, (keeper,)):
        vector = vectors.hold(torch.ones(ELEMENTS))
        keeper._socket.shutdown(socket.SHUT_RDWR)  # as the kernel does for a process that dies
        with pytest.raises(IslandError, match="rank 1"):
            vector.load()
        with pytest.raises(IslandError, match="rank 1 keeps its part of the outer state no longer"):
            vector.load()
        with pytest.raises(IslandError):
            vectors.hold(torch.ones(ELEMENTS))
        assert torch.equal(vector.load(0, 10), torch.ones(10))  # it never left this rank


def test_after_the_end_nothing_can_be_read() -> None:
    with island(2) as (vectors, _):
        vector = vectors.hold(torch.ones(ELEMENTS))
    with pytest.raises(IslandError, match="it was closed"):
        vector.load()


def test_a_request_beyond_a_part_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    mine, theirs = socket.socketpair()
    keeper, link = Keeper(theirs), Link(1, mine)
    with closing(link), pytest.raises(IslandError):
        link.read(1, 4, 12, memoryview(bytearray(8)))
    assert keeper.join(JOIN_S)
    assert "bytes 12 to 20 out of 16" in caplog.text


def test_one_rank_copies_nothing() -> None:
    values, vectors = torch.arange(8.0), HostVectors()
    assert vectors.hold(values).load() is values
    empty = vectors.empty(8)
    with empty.filling(2, 5) as part:
        part.fill_(3.0)
        assert part.data_ptr() == empty.load(2, 5).data_ptr()


def test_a_stranger_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One without the secret, and one that says nothing."""
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    told: list[Any] = []
    ready = threading.Event()

    def broadcast(value: Any) -> Any:
        if value is not None:
            told.extend(value)
            ready.set()
        assert ready.wait(JOIN_S)
        return told

    def rank() -> None:
        assert ready.wait(JOIN_S)
        for hello in (HELLO.pack(bytes(32), 1), b""):
            with socket.create_connection(("127.0.0.1", told[0]), timeout=HELLO_S) as stranger:
                stranger.sendall(hello)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(1) == b""
        assert open_vectors(1, [], broadcast) is None  # another rank of the lead's host
        assert open_vectors(2, [2], broadcast) is None

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(rank)
        vectors = open_vectors(0, [2], broadcast)
        other.result(JOIN_S)
    assert vectors is not None
    assert torch.equal(vectors.hold(torch.ones(5)).load(), torch.ones(5))
    vectors.close()
    assert caplog.text.count("no rank of this island") == 2
