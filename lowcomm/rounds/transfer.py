"""The data's way in one ballot: pipelined reduce-scatter, one encoded mean, all-gather.

Each participant sends every reducer the encoded chunks of that reducer's range. As soon as a
reducer has a chunk from all, it averages in fp32 in roster order, encodes the mean once and sends
these bytes to all. As soon as anyone (the reducer, too) has an encoded mean, it decodes it and
steps the outer optimizer on that slice into a staged copy. So sending, adding, encoding, decoding
and stepping overlap chunk by chunk, and all hold the same bits at the end.

Sparse codecs are not reduced: each participant sends its chunks to all, and everyone takes the mean of
the same payloads in roster order.

Weights: w_i = tokens_i / sum(tokens). What is made of the contributions to a chunk is the aggregation
rule's business (`lowcomm.algorithms.aggregation`); "mean" stands for its outcome here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar, TypeVarTuple

import torch
import xxhash
from torch import Tensor

from lowcomm.errors import CodecError, PeerUnreachableError
from lowcomm.exchanges.base import Buffer, Links, Message
from lowcomm.islands.vectors import Vector
from lowcomm.ledger.chunks import decode_mean, join_payloads, shares_of, with_length
from lowcomm.ledger.ranges import chunks_of, range_of
from lowcomm.ledger.residual import Residual
from lowcomm.ledger.state import FragmentState, NextState, OuterState
from lowcomm.ledger.update import Update
from lowcomm.rounds.claims import ClaimJudge
from lowcomm.rounds.rates import Rates
from lowcomm.rounds.roster import Roster
from lowcomm.types import Digest, Json, PeerId

logger = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVarTuple("A")

CHUNKS_IN_FLIGHT = 4
"""Chunks encoded and on their way to one peer at a time."""


def checksum(kind: str, address: Mapping[str, Json], payload: Buffer) -> str:
    """Of a chunk's bytes and of what they are; against damage, not against lies: links are authenticated."""
    found = xxhash.xxh3_64(payload)
    names = ("fragment", "outer_step", "ballot", "chunk")
    found.update(f"{kind} {[address[name] for name in names]}".encode())
    return found.hexdigest()


class PeerFailedError(Exception):
    """A participant broke the ballot; `peers` names who, where that is certain."""

    def __init__(self, reason: str, peers: Sequence[PeerId] = ()) -> None:
        super().__init__(reason)
        self.peers = tuple(peers)


class BadContributionError(PeerFailedError):
    """A participant sent what no honest one sends; `peers` names it."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What a finished transfer leaves: the encoded mean, the state after it, and what encodings lost.

    `residual` is of the means that were reduced here; `unsent` of this peer's pseudo-gradient, times the
    decay.
    """

    update: Update
    update_hash: Digest
    after: FragmentState
    residual: Residual | None
    unsent: Vector | None
    mean_norm: float


class Transfer:
    """One peer's part in the exchange of one ballot.

    Args:
        state: what the mean will step; it stays as it is.
        values: this peer's pseudo-gradient, 1-D fp32.
        on_progress: called whenever something arrived.
        rates: told how fast the others' parts came.
    """

    def __init__(
        self,
        links: Links,
        me: PeerId,
        roster: Roster,
        state: OuterState,
        values: Tensor,
        *,
        judge: ClaimJudge,
        pool: Executor,
        on_progress: Callable[[], None],
        rates: Rates,
    ) -> None:
        codec, vectors = state.codec, state.vectors
        self._links, self._me, self._roster, self._codec = links, me, roster, codec
        self._aggregation = state.aggregation
        self._pool, self._on_progress, self._rates = pool, on_progress, rates
        self._values, self._before_lost = values, state.residuals[roster.fragment]
        self._unsent = vectors.empty(values.numel()) if codec.error_feedback else None
        self._gathers = codec.topology == "all_gather"
        self._chunks = chunks_of(roster.stops, roster.chunk_elements)
        self._shares = shares_of([member.tokens for member in roster.participants])
        self._place = roster.peers.index(me)
        self._range = (0, 0) if self._gathers else range_of(roster.stops, self._place)
        self._lost = Residual.blank(*self._range, vectors) if codec.error_feedback else None
        self._scales = judge.scales(roster.participants)
        self._bounds = judge.bounds(roster.participants, residual=codec.error_feedback)
        self._squares = [0.0] * len(roster.participants)
        self._squares_lock = threading.Lock()
        self._parts: list[dict[PeerId, Buffer]] = [{} for _ in self._chunks]
        self._means: list[Buffer | None] = [None] * len(self._chunks)
        self._queues: dict[PeerId, asyncio.Queue[tuple[str, int, Buffer]]] = {
            peer: asyncio.Queue() for peer in roster.peers if peer != me
        }
        self._staged = 0
        self._after = NextState(state.states[roster.fragment], state.optimizer, vectors)
        self._mean_square = 0.0
        self._began_s = asyncio.get_running_loop().time()
        self._owed = dict.fromkeys(roster.peers, len(self._own_chunks(self._place)))
        self._came_bytes = dict.fromkeys(roster.peers, 0)
        self._damaged: set[tuple[PeerId, str, int]] = set()
        self._repeated: set[tuple[PeerId, str, int]] = set()
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Staged:
        """Send, receive, stage.

        Raises:
            PeerFailedError: a participant is gone or sent something that can't be decoded.
            NonFiniteError: this peer's own pseudo-gradient has a NaN or Inf.
        """
        for index, peer in enumerate(self._roster.peers):
            if peer in self._queues:
                parts = iter([] if self._gathers else self._own_chunks(index))
                for _ in range(CHUNKS_IN_FLIGHT):
                    self._spawn(self._send(peer, parts))
        self._spawn(self._keep())
        if not self._chunks:
            self._finished.set_result(None)
        await self._finished
        return await self._in_pool(self._finish)

    async def close(self) -> None:
        """End what is still being sent. After a commit nothing is: all votes mean that all has arrived."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._finished.cancel()

    def missing_parts_from(self) -> list[PeerId]:
        """The peers that still owe this reducer a part."""
        owed = set()
        for (index, _, _), parts, mean in zip(self._chunks, self._parts, self._means, strict=True):
            if mean is None and (self._gathers or index == self._place):
                owed |= set(self._roster.peers) - set(parts)
        return sorted(owed - {self._me})

    def missing_means_from(self) -> list[PeerId]:
        """The reducers that owe this peer a mean; they may wait for parts themselves."""
        means = zip(self._chunks, self._means, strict=True)
        owed = {self._roster.peers[owner] for (owner, _, _), mean in means if mean is None}
        return [] if self._gathers else sorted(owed - {self._me})

    def on_piece(self, peer: PeerId, kind: str, chunk: int, given: str, payload: Buffer) -> None:
        """A `part` (a participant's encoded chunk for this reducer) or a `mean` (a reducer's) has come."""
        wanted = self._wants_part if kind == "part" else self._wants_mean
        if chunk >= len(self._chunks) or peer not in self._roster.peers or not wanted(peer, chunk):
            return
        _, start, stop = self._chunks[chunk]
        most = self._codec.max_payload_bytes(stop - start)
        if len(payload) > most:  # refused here, as it would be kept until the chunk has come from all
            size = f"{len(payload)} bytes for chunk {chunk} ({kind}), at most {most} are possible"
            return self._fail(BadContributionError(f"{peer} sent {size}", [peer]))
        self._on_progress()
        if checksum(kind, self._address(chunk), payload) != given:
            self._spawn(self._ask_again(peer, kind, chunk))
        elif kind == "part":
            self._take_part(peer, chunk, payload)
            self._owed[peer] -= 1
            self._came_bytes[peer] += len(payload)
            if not self._owed[peer]:  # it sends nothing else before
                seconds = asyncio.get_running_loop().time() - self._began_s
                self._rates.note(peer, self._came_bytes[peer], seconds)
        else:
            self._means[chunk] = payload
            self._spawn(self._stage(chunk, peer))

    def _wants_part(self, peer: PeerId, chunk: int) -> bool:
        return peer not in self._parts[chunk] and (self._gathers or self._chunks[chunk][0] == self._place)

    def _wants_mean(self, peer: PeerId, chunk: int) -> bool:
        reducer = self._roster.peers[self._chunks[chunk][0]]
        return self._means[chunk] is None and not self._gathers and reducer == peer

    def _take_part(self, peer: PeerId, chunk: int, payload: Buffer) -> None:
        self._parts[chunk][peer] = payload
        if len(self._parts[chunk]) == len(self._roster.participants):
            self._spawn(self._reduce(chunk))

    async def _ask_again(self, peer: PeerId, kind: str, chunk: int) -> None:
        """Have a damaged chunk sent once more; a peer whose second copy is damaged, too, is out."""
        if (peer, kind, chunk) in self._damaged:
            raise PeerFailedError(f"{peer} sent chunk {chunk} ({kind}) damaged twice", [peer])
        self._damaged.add((peer, kind, chunk))
        logger.warning("chunk %d (%s) of %s came damaged; asked for it again", chunk, kind, peer)
        try:
            await self._links.send(peer, Message("again", {**self._address(chunk), "piece": kind}))
        except PeerUnreachableError as error:
            raise PeerFailedError(f"the link to {peer} broke: {error}", [peer]) from error

    def send_again(self, peer: PeerId, kind: str, chunk: int) -> None:
        """A peer says that a chunk from here came damaged; it is sent once more, not more often."""
        if (peer, kind, chunk) in self._repeated or peer not in self._queues or chunk >= len(self._chunks):
            return
        self._repeated.add((peer, kind, chunk))
        owner, start, stop = self._chunks[chunk]
        if kind == "part" and (self._gathers or self._roster.peers[owner] == peer):
            self._spawn(self._send_part(peer, chunk, start, stop))
        elif kind == "mean" and owner == self._place and (mean := self._means[chunk]) is not None:
            self._spawn(self._post(peer, "mean", chunk, mean))

    async def _send_part(self, peer: PeerId, chunk: int, start: int, stop: int) -> None:
        await self._post(peer, "part", chunk, await self._in_pool(self._encode, start, stop))

    async def _send(self, peer: PeerId, parts: Iterator[tuple[int, int, int]]) -> None:
        """One of several senders to a peer: its parts first, as its reducing waits for them, then means."""
        for chunk, start, stop in parts:
            await self._send_part(peer, chunk, start, stop)
        while True:
            kind, chunk, payload = await self._queues[peer].get()
            await self._post(peer, kind, chunk, payload)

    async def _keep(self) -> None:
        """Encode this peer's contribution to its own range; where nothing is reduced, to all of it."""
        for chunk, start, stop in self._own_chunks(self._place):
            payload = await self._in_pool(self._encode, start, stop)
            self._take_part(self._me, chunk, payload)
            if self._gathers:
                self._send_to_all("part", chunk, payload)

    def _own_chunks(self, index: int) -> list[tuple[int, int, int]]:
        """(chunk, start, stop) of what one participant reduces; where nothing is reduced, of everything."""
        return [
            (chunk, start, stop)
            for chunk, (owner, start, stop) in enumerate(self._chunks)
            if self._gathers or owner == index
        ]

    def _send_to_all(self, kind: str, chunk: int, payload: Buffer) -> None:
        for queue in self._queues.values():
            queue.put_nowait((kind, chunk, payload))

    def _encode(self, start: int, stop: int) -> Buffer:
        values = self._values[start:stop]
        if self._unsent is None:
            return self._codec.encode(values)
        if self._before_lost is not None:
            share = self._shares[self._place]
            added = self._before_lost.handed_over(start, stop, self._range, share)
            values = values if added is None else added.mul_(self._codec.decay).add_(values)
        with self._unsent.filling(start, stop) as lost:
            payload = self._codec.encode(values, lost)
            lost.mul_(self._codec.decay)
        return payload

    async def _reduce(self, chunk: int) -> None:
        _, start, stop = self._chunks[chunk]
        parts, self._parts[chunk] = self._parts[chunk], dict.fromkeys(self._parts[chunk], b"")
        payload = await self._in_pool(self._encode_mean, parts, start, stop)
        self._means[chunk] = payload
        if not self._gathers:
            self._send_to_all("mean", chunk, payload)
        await self._stage(chunk, self._me)

    def _encode_mean(self, parts: dict[PeerId, Buffer], start: int, stop: int) -> Buffer:
        decoded = self._decode_parts(parts, stop - start)
        if self._gathers:
            return join_payloads([parts[peer] for peer in self._roster.peers])
        mean = self._aggregation.combine(decoded, self._shares)
        if self._lost is None:
            return self._codec.encode(mean)
        added = None if self._before_lost is None else self._before_lost.for_mean(start, stop)
        if added is not None:
            mean = mean + self._codec.decay * added
        first = self._lost.start
        with self._lost.mean.filling(start - first, stop - first) as lost:
            return self._codec.encode(mean, lost)

    def _decode_parts(self, parts: dict[PeerId, Buffer], elements: int) -> list[Tensor]:
        """What each participant sent, checked and clipped, in roster order."""
        decoded = []
        for index, peer in enumerate(self._roster.peers):
            try:
                part = self._codec.decode(parts[peer], elements)
            except CodecError as error:
                raise BadContributionError(
                    f"{peer} sent a chunk that can't be decoded: {error}", [peer]
                ) from error
            self._check_norm(index, part)
            decoded.append(part.mul_(self._scales[index]) if self._scales[index] < 1.0 else part)
        return decoded

    def _check_norm(self, index: int, part: Tensor) -> None:
        """Hold a participant to the norm that it announced, over all chunks that came here."""
        if self._bounds[index] == float("inf"):
            return
        norm = float(torch.linalg.vector_norm(part))
        with self._squares_lock:
            self._squares[index] += norm * norm
            square = self._squares[index]
        if square > self._bounds[index] ** 2:
            peer = self._roster.participants[index]
            raise BadContributionError(
                f"{peer.peer} announced norm {peer.norm:.4g} and sent {square**0.5:.4g}", [peer.peer]
            )

    async def _stage(self, chunk: int, peer: PeerId) -> None:
        payload = self._means[chunk]
        assert payload is not None
        _, start, stop = self._chunks[chunk]
        try:
            square = await self._in_pool(self._step, payload, start, stop)
        except CodecError as error:
            raise PeerFailedError(f"{peer} sent a mean that can't be decoded: {error}", [peer]) from error
        self._mean_square += square
        self._staged += 1
        if self._staged == len(self._chunks) and not self._finished.done():
            self._finished.set_result(None)

    def _step(self, payload: Buffer, start: int, stop: int) -> float:
        mean = decode_mean(payload, stop - start, self._codec, self._aggregation, self._shares)
        self._after.step(mean, start, stop, self._roster.outer_step)
        return float(torch.dot(mean, mean))

    def _finish(self) -> Staged:
        pieces: list[Buffer] = []
        for mean in self._means:
            assert mean is not None
            pieces += with_length(mean)
        update = Update(pieces)
        return Staged(
            update, update.digest, self._after.finish(), self._lost, self._unsent, self._mean_square**0.5
        )

    async def _post(self, peer: PeerId, kind: str, chunk: int, payload: Buffer) -> None:
        body = {**self._address(chunk), "sum": checksum(kind, self._address(chunk), payload)}
        try:
            await self._links.send_bulk(peer, Message(kind, body, payload))
        except PeerUnreachableError as error:
            raise PeerFailedError(f"the link to {peer} broke: {error}", [peer]) from error

    def _address(self, chunk: int) -> dict[str, Json]:
        return {
            "fragment": self._roster.fragment,
            "outer_step": self._roster.outer_step,
            "ballot": self._roster.ballot.to_json(),
            "chunk": chunk,
        }

    async def _in_pool(self, work: Callable[[*A], T], *args: *A) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)
