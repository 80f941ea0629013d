"""One libp2p stream, as frames: incoming ones received in place, outgoing ones written in pieces.

A stream carries frames from the peer that dialled it to the peer that accepted it:

    acceptor -> dialer   PREAMBLE, at once
    dialer -> acceptor   the opening frame, kind "link.open" (which run, channel and link)
    acceptor -> dialer   one byte, a `Verdict`; after USED a reason, else nothing more
    dialer -> acceptor   frames, until the stream ends

The dialer sends nothing before it has read the preamble, so when the acceptor swaps asyncio's
StreamReader for `Incoming`, no byte can be stuck in the reader's buffer.
"""

from __future__ import annotations

import asyncio
import enum
import socket
import sys
from collections.abc import Callable

from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import MAX_PAYLOAD_BYTES, Message
from lowcomm.exchanges.frames import (
    HEADER_BYTES,
    decode_body,
    decode_header,
    encode_frame,
)
from lowcomm.exchanges.swarm.backlog import MOST_PIECE_BYTES, Backlog

PREAMBLE = b"lowcomm\x01"
OPENING_BODY_BYTES = 1536
"""A stranger makes us allocate no more than this before its opening frame is accepted."""

_STAGE_BYTES = 64 << 10
_REASON_BYTES = 1024


class Verdict(enum.IntEnum):
    """The acceptor's answer to an opening frame."""

    OK = 0
    OTHER_RUN = 1
    STALE = 2
    MALFORMED = 3
    CLOSING = 4
    NOT_ADMITTED = 5
    BUSY = 6
    WAIT = 7
    USED = 8


class FrameDecoder:
    """Bytes in, messages out; large frames are received in place, small ones share a buffer.

    Write into `get_buffer()`, tell `advance` how much came, then call `next` until it returns None.
    """

    def __init__(self) -> None:
        self._stage = memoryview(bytearray(_STAGE_BYTES))
        self._start = self._end = 0
        self._body: memoryview | None = None
        self._payload = memoryview(b"")
        self._have = 0
        self.opened = False
        self.payload_limit = MAX_PAYLOAD_BYTES

    def get_buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._body is not None and self._start == self._end:
            if self._have < len(self._body):
                return self._body[self._have :]
            if self._have < len(self._body) + len(self._payload):
                return self._payload[self._have - len(self._body) :]
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _STAGE_BYTES:
            left = self._end - self._start
            self._stage[:left] = bytes(self._stage[self._start : self._end])
            self._start, self._end = 0, left
        return self._stage[self._end :]

    def advance(self, count: int) -> None:
        """`count` bytes were written into the last `get_buffer()`."""
        if self._body is not None and self._start == self._end and not self._complete():
            self._have += count
        else:
            self._end += count

    def next(self) -> Message | None:
        """The next message, or None until more bytes have come.

        Raises:
            ProtocolError: the bytes are no frame, or one above its bounds.
        """
        if self._body is None:
            if self._end - self._start < HEADER_BYTES:
                return None
            header = self._stage[self._start : self._start + HEADER_BYTES]
            body_bytes, payload_bytes = decode_header(header)
            if not self.opened and (body_bytes > OPENING_BODY_BYTES or payload_bytes):
                raise ProtocolError(
                    f"opening frame: a body of {body_bytes} and a payload of {payload_bytes} bytes; at most "
                    f"{OPENING_BODY_BYTES} and 0 are allowed"
                )
            if payload_bytes > self.payload_limit:
                raise ProtocolError(
                    f"frame: a payload of {payload_bytes} bytes, at most {self.payload_limit} are allowed"
                )
            self._start += HEADER_BYTES
            self._have = 0
            self._body = memoryview(bytearray(body_bytes))
            self._payload = memoryview(bytearray(payload_bytes))
        self._fill(self._body, 0)
        self._fill(self._payload, len(self._body))
        if not self._complete():
            return None
        message = decode_body(self._body, self._payload)
        self._body, self._payload = None, memoryview(b"")
        return message

    def _complete(self) -> bool:
        return self._body is not None and self._have == len(self._body) + len(self._payload)

    def _fill(self, target: memoryview, offset: int) -> None:
        """Move what the stage holds of `target`, which starts at `offset` of the frame's content."""
        at = self._have - offset
        count = min(len(target) - at, self._end - self._start)
        if at < 0 or count <= 0:
            return
        target[at : at + count] = self._stage[self._start : self._start + count]
        self._start += count
        self._have += count


class Incoming(asyncio.BufferedProtocol):
    """A stream that was dialled by another peer.

    Args:
        writer: kept, because asyncio closes the transport of a writer that is collected.
        on_open: called with the opening frame; says whether the stream is wanted, and after USED why not.
        on_message: called for each later frame while the stream is not held.
        on_end: called once, with the reason in words, unless `close` was called first.
        count: called with the number of bytes received.
    """

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        on_open: Callable[[Incoming, Message], tuple[Verdict, bytes]],
        on_end: Callable[[str], None],
        count: Callable[[int], None],
    ) -> None:
        self._writer, self._on_open, self.on_end, self._count = writer, on_open, on_end, count
        self.on_message: Callable[[Message], None] | None = None
        self._decoder = FrameDecoder()
        self._held = False
        self._ended = False
        # asyncio's types know transports only as their base class
        self._transport: asyncio.Transport = writer.transport  # type: ignore[assignment]

    def begin(self) -> None:
        """Take over the transport, then let the dialer speak."""
        self._transport.set_protocol(self)
        self._transport.write(PREAMBLE)

    def limit_payloads(self, most_bytes: int) -> None:
        """Refuse frames with larger payloads, before anything is allocated for them."""
        self._decoder.payload_limit = most_bytes

    def hold(self) -> None:
        """Read nothing more until `release`: back-pressure."""
        self._held = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def release(self) -> None:
        """Go on reading, with what has come already first."""
        self._held = False
        if self._ended or self._transport.is_closing():
            return
        self._pump()
        if not self._held and not self._transport.is_closing():
            self._transport.resume_reading()

    def divert(self, on_message: Callable[[Message], None]) -> None:
        """Give what comes from now on to `on_message`, and read on to the end of the stream."""
        self.on_message = on_message
        self.release()

    def close(self) -> None:
        """End the stream without calling `on_end`."""
        self._ended = True
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._count(nbytes)
        self._decoder.advance(nbytes)
        if not self._held:
            self._pump()

    def eof_received(self) -> bool:
        self._end("the stream ended")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the stream broke: {exc}" if exc else "the stream ended")

    def _pump(self) -> None:
        try:
            while not self._held and not self._ended:
                message = self._decoder.next()
                if message is None:
                    return
                if self._decoder.opened:
                    assert self.on_message is not None
                    self.on_message(message)
                elif not self._open(message):
                    return
        except ProtocolError as error:
            self._end(f"it broke the protocol: {error}")
            self._transport.abort()

    def _open(self, message: Message) -> bool:
        if message.kind != "link.open":
            raise ProtocolError(f"expected link.open, got {message.kind!r:.60}")
        verdict, reason = self._on_open(self, message)
        self._transport.write(bytes([verdict]) + reason)
        if verdict is not Verdict.OK:
            self._ended = True
            self._transport.close()
            return False
        self._decoder.opened = True
        return True

    def _end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            self.on_end(reason)


class Outgoing:
    """A stream that this peer dialled, for frames to the other one.

    Args:
        count: called with the number of bytes sent.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[int], None]
    ) -> None:
        self._reader, self._writer, self._count = reader, writer, count
        self._lock = asyncio.Lock()
        self.backlog: Backlog | None = None
        self._finishing: set[asyncio.Task[None]] = set()
        self.pending_bytes = 0
        self._buffer_bytes = 0
        writer.transport.set_write_buffer_limits(high=0)

    async def open(self, message: Message) -> tuple[Verdict, bytes]:
        """Say what the stream is for; returns the verdict and its reason, empty but after USED.

        Raises:
            PeerUnreachableError: the stream broke.
            ProtocolError: the other side speaks another version.
        """
        try:
            preamble = await self._reader.readexactly(len(PREAMBLE))
            if preamble != PREAMBLE:
                raise ProtocolError(f"expected preamble {PREAMBLE!r}, got {preamble!r}: another version?")
            await self._write_all(*encode_frame(message))
            verdict = (await self._reader.readexactly(1))[0]
            reason = await self._read_reason() if verdict == Verdict.USED else b""
        except (OSError, EOFError) as error:
            raise PeerUnreachableError(f"the stream broke while it was opened: {error}") from error
        try:
            return Verdict(verdict), reason
        except ValueError as error:
            raise ProtocolError(f"unknown verdict {verdict}") from error

    async def _read_reason(self) -> bytes:
        reason = b""
        while len(reason) < _REASON_BYTES and (part := await self._reader.read(_REASON_BYTES)):
            reason += part
        return reason

    async def wait_end(self) -> str:
        """Wait until the other side ends the stream; the reason in words."""
        try:
            if await self._reader.read(1):
                return "it broke the protocol: bytes where none belong"
        except OSError as error:
            return f"the stream broke: {error}"
        return "the stream ended"

    async def send(self, head: bytes, payload: memoryview) -> None:
        """Write one frame; waits while the transport is full.

        A frame that was begun is always finished: when this is cancelled, a copy of the rest is
        written in the background, so that the next frame starts where the other side expects it.

        Raises:
            PeerUnreachableError: the stream broke.
        """
        size = len(head) + payload.nbytes
        self.pending_bytes += size
        try:
            await self._lock.acquire()
        except BaseException:
            self.pending_bytes -= size
            raise
        offset, message = 0, self.backlog.next_message() if self.backlog is not None else 0
        try:
            self._write(head)
            while offset < payload.nbytes:
                most = await self.backlog.wait_room(message) if self.backlog is not None else MOST_PIECE_BYTES
                self._limit_buffer(most)
                piece = payload[offset : offset + most]
                offset += piece.nbytes
                self._write(piece)
                await self._writer.drain()
            await self._writer.drain()
        except asyncio.CancelledError:
            if offset < payload.nbytes:
                rest = memoryview(bytes(payload[offset:]))
                task = asyncio.get_running_loop().create_task(self._finish(rest, size))
                self._finishing.add(task)
                task.add_done_callback(self._finishing.discard)
            else:
                self._unlock(size)
            raise
        except OSError as error:
            self._unlock(size)
            raise PeerUnreachableError(f"the stream broke: {error}") from error
        self._unlock(size)

    def _limit_buffer(self, piece_bytes: int) -> None:
        """Hold no more than one or two pieces between here and p2pd.

        Where the other side's window of this stream is used up, p2pd takes nothing for a round trip. What
        waits here meanwhile could not go by another stream, and would all go at once then.
        """
        if not self._buffer_bytes // 2 < piece_bytes <= self._buffer_bytes:
            self._buffer_bytes = piece_bytes
            connection = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, piece_bytes)  # the kernel doubles it

    async def _finish(self, rest: memoryview, size: int) -> None:
        try:
            await self._write_all(b"", rest)
        except OSError:
            pass  # the link is going down, which its owner sees elsewhere
        finally:
            self._unlock(size)

    def _unlock(self, size: int) -> None:
        self.pending_bytes -= size
        self._lock.release()

    async def _write_all(self, head: bytes, payload: memoryview) -> None:
        self._write(head)
        for offset in range(0, payload.nbytes, MOST_PIECE_BYTES):
            self._write(payload[offset : offset + MOST_PIECE_BYTES])
            await self._writer.drain()
        await self._writer.drain()

    def _write(self, data: bytes | memoryview) -> None:
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the stream is closed")
        if sys.version_info >= (3, 12):  # its transports keep a view of what they could not send
            data = bytes(data)
        self._writer.write(data)
        self._count(len(data))

    def abort(self) -> None:
        """Close at once."""
        self._writer.transport.abort()
        for task in self._finishing:
            task.cancel()
