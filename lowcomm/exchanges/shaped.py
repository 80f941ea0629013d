"""An exchange whose messages meet a fate: late, slow, lost, twice, out of order, or damaged.

It wraps any other exchange on the sender's side. A `Shaper` decides what becomes of each message;
the same shaper with the same seed decides the same, whatever else happens (see `sim/tapes.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Exchange, Message, Receiver, Traffic
from lowcomm.exchanges.frames import HEADER_BYTES, decode_body, encode_frame
from lowcomm.types import PeerId

MAX_HELD_BULK = 8
"""Bulk messages to one peer that may be on their way; more wait, as on a full link."""

APART_S = 1e-6
"""Between two messages in order."""

LINGER_S = 2.0
"""So long does closing wait for control messages that are on their way."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one message.

    Attributes:
        delays_s: one copy arrives after each of these many seconds; none = it is lost.
        ordered: no copy overtakes an earlier message to the same peer on the same channel.
        flip: a byte of the body or payload to damage, counted modulo their length; -1 = none.
    """

    delays_s: tuple[float, ...] = (0.0,)
    ordered: bool = True
    flip: int = -1


class Shaper(Protocol):
    """Decides fates."""

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        """Called once for every message, in loop time."""
        ...


def damaged(message: Message, flip: int) -> Message:
    """The message with one byte changed.

    Raises:
        ProtocolError: no receiver could read it.
    """
    payload = bytearray(message.payload)
    if payload:
        payload[flip % len(payload)] ^= 0x55
        return Message(message.kind, message.body, bytes(payload))
    head = bytearray(encode_frame(message)[0])
    head[HEADER_BYTES + flip % (len(head) - HEADER_BYTES)] ^= 0x05
    try:
        return decode_body(bytes(head[HEADER_BYTES:]), memoryview(b""))
    except ProtocolError as error:
        raise ProtocolError(f"a damaged {message.kind}: {error}") from error


class ShapedExchange:
    """`inner` behind a bad link; an `Exchange`.

    Args:
        inner: carries what gets through.
        shaper: decides what does.
        mbit_s: upload rate to each peer; 0 = unlimited.
    """

    def __init__(self, inner: Exchange, shaper: Shaper, *, mbit_s: float = 0.0) -> None:
        self._inner, self._shaper, self._mbit_s = inner, shaper, mbit_s
        self._busy_until_s: dict[PeerId, float] = {}
        self._last_s: dict[tuple[PeerId, bool], float] = {}
        self._control: set[asyncio.Task[None]] = set()
        self._bulk: set[asyncio.Task[None]] = set()
        self._windows: dict[PeerId, asyncio.Semaphore] = {}

    @property
    def run_id(self) -> str:
        return self._inner.run_id

    @property
    def peer_id(self) -> PeerId:
        return self._inner.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._inner.addresses

    @property
    def join_string(self) -> str:
        return self._inner.join_string

    @property
    def traffic(self) -> Traffic:
        return self._inner.traffic

    @property
    def founder(self) -> bool:
        return self._inner.founder

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        """See `Links`."""
        await self._inner.start(receiver, met)

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """See `Links`."""
        await self._inner.connect(peer, addresses)

    def connected(self) -> frozenset[PeerId]:
        """See `Links`."""
        return self._inner.connected()

    def admit(self, peer: PeerId) -> None:
        """See `Links`."""
        self._inner.admit(peer)

    async def disconnect(self, peer: PeerId) -> None:
        """See `Links`."""
        await self._inner.disconnect(peer)

    async def send(self, peer: PeerId, message: Message) -> None:
        """Send on the control channel; what is late or lost is so without a word."""
        encode_frame(message)  # what can't be sent is refused here, not on its way
        if peer not in self._inner.connected():
            raise PeerUnreachableError(f"{peer}: there is no link to it; connect first")
        self._dispatch(peer, message, bulk=False)

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """Send on the bulk channel; waits while `MAX_HELD_BULK` messages are on their way."""
        encode_frame(message)
        if peer not in self._inner.connected():
            raise PeerUnreachableError(f"{peer}: there is no link to it; connect first")
        window = self._windows.setdefault(peer, asyncio.Semaphore(MAX_HELD_BULK))
        async with window:
            copies = self._dispatch(
                peer, Message(message.kind, message.body, bytes(message.payload)), bulk=True
            )
            if copies:
                await asyncio.wait(copies)

    async def publish(self, record: bytes, ttl_s: float) -> None:
        """See `Directory`."""
        await self._inner.publish(record, ttl_s)

    async def discover(self) -> Mapping[PeerId, bytes]:
        """See `Directory`."""
        return await self._inner.discover()

    def sign(self, data: bytes) -> bytes:
        """See `Signer`."""
        return self._inner.sign(data)

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        """See `Signer`."""
        return self._inner.verify(peer, data, signature)

    async def close(self) -> None:
        """Let control messages arrive that are on their way, goodbyes among them, as a wire does; leave."""
        for task in self._bulk:
            task.cancel()
        if self._control:
            await asyncio.wait(self._control, timeout=LINGER_S)
        tasks = [*self._control, *self._bulk]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._inner.close()

    def _dispatch(self, peer: PeerId, message: Message, *, bulk: bool) -> list[asyncio.Task[None]]:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        fate = self._shaper.fate(self.peer_id, peer, message, now_s)
        if fate.flip >= 0:
            try:
                message = damaged(message, fate.flip)
            except ProtocolError:
                # a stream that holds garbage is closed by whoever reads it
                return [self._spawn(self._inner.disconnect(peer), self._control)]
        sent_s = self._serialise(peer, message, now_s)
        copies = []
        for delay_s in fate.delays_s:
            arrives_s = sent_s + delay_s
            if fate.ordered:
                # apart, as timers of the same moment go off in any order
                arrives_s = max(arrives_s, self._last_s.get((peer, bulk), 0.0) + APART_S)
                self._last_s[peer, bulk] = arrives_s
            kept = self._bulk if bulk else self._control
            copies.append(self._spawn(self._carry(peer, message, arrives_s, bulk=bulk), kept))
        return copies

    def _serialise(self, peer: PeerId, message: Message, now_s: float) -> float:
        """When the last bit of a message has left, at the link's rate."""
        if self._mbit_s <= 0:
            return now_s
        head, payload = encode_frame(message)
        begins_s = max(now_s, self._busy_until_s.get(peer, 0.0))
        self._busy_until_s[peer] = begins_s + 8 * (len(head) + payload.nbytes) / (1e6 * self._mbit_s)
        return self._busy_until_s[peer]

    async def _carry(self, peer: PeerId, message: Message, arrives_s: float, *, bulk: bool) -> None:
        wait_s = arrives_s - asyncio.get_running_loop().time()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        send = self._inner.send_bulk if bulk else self._inner.send
        try:
            await send(peer, message)
        except PeerUnreachableError:
            return  # the link broke meanwhile; both ends have heard of it

    def _spawn(
        self, coroutine: Coroutine[Any, Any, None], kept: set[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        kept.add(task)
        task.add_done_callback(kept.discard)
        return task
