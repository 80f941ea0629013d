"""A link: all streams between this peer and one other, up or down as a whole.

Each side dials its own streams for sending: one for control, several for bulk. The control stream
goes first and carries a token, so that streams of an earlier link between the same two peers,
which may arrive late, are told apart from those of this one. The link is up when all of our
streams were accepted and the other side's control stream has come; it is down when any stream
ends. A process that is killed closes all its sockets, so its peers know within milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from typing import Any, Protocol

from lowcomm.errors import (
    ExchangeError,
    JoinRefusedError,
    PeerUnreachableError,
)
from lowcomm.exchanges.base import Message, Receiver
from lowcomm.exchanges.frames import encode_frame
from lowcomm.exchanges.swarm.backlog import Backlog
from lowcomm.exchanges.swarm.connection import DaemonConnection
from lowcomm.exchanges.swarm.namesakes import HERE, OUSTED, WHO, Namesakes
from lowcomm.exchanges.swarm.streams import PREAMBLE, Incoming, Outgoing, Verdict
from lowcomm.exchanges.swarm.uplink import Uplink
from lowcomm.types import Json, PeerId, short

logger = logging.getLogger(__name__)

STREAM_NAME = "/lowcomm/1"
CONTROL = -1
OPEN_TIMEOUT_S = 10.0
CONTROL_PAYLOAD_BYTES = 64 << 10
"""Control messages are small; larger ones are refused from their header."""
BYE = "link.bye"


class LinkOwner(Protocol):
    """What a link needs of the table it stands in."""

    run_id: str
    receiver: Receiver
    shown: str
    uplink: Uplink
    namesakes: Namesakes | None

    async def open_stream(
        self, peer: PeerId, name: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...

    async def connection_to(self, peer: PeerId) -> DaemonConnection | None: ...

    def on_link_up(self, link: Link) -> None: ...

    def on_link_down(self, link: Link, reason: str, was_up: bool) -> None: ...

    def count(self, peer: PeerId, sent: int, received: int) -> None: ...


class Link:
    """The streams to and from one peer.

    Attributes:
        up: completes when messages flow; fails with PeerUnreachableError or JoinRefusedError.
        admitted: the other side has greeted and fits, so its bulk streams are read.
        process: which process of the peer it is; empty until its control stream has come.
        token: names this end of the link; the other side's streams must quote it, once it knows it.
    """

    def __init__(self, owner: LinkOwner, peer: PeerId, bulk_streams: int) -> None:
        self._owner, self.peer, self._bulk_streams = owner, peer, bulk_streams
        loop = asyncio.get_running_loop()
        self.up: asyncio.Future[None] = loop.create_future()
        self.up.add_done_callback(_retrieve)
        self.ended: asyncio.Future[None] = loop.create_future()
        self.token = secrets.token_hex(8)
        self.peer_token: str | None = None
        self.process = ""
        self.down_reason: str | None = None
        self._in_control: Incoming | None = None
        self._incoming: list[Incoming] = []
        self._outgoing: list[Outgoing] = []
        self._control: Outgoing | None = None
        self._bulk: list[Outgoing] = []
        self._backlog: Backlog | None = None
        self._dialed = False
        self.admitted = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether messages flow."""
        return self.up.done() and self.down_reason is None

    @property
    def answered(self) -> bool:
        """Whether the other side's control stream has come."""
        return self._in_control is not None

    @property
    def incoming_streams(self) -> int:
        """How many streams of the other side belong to this link."""
        return len(self._incoming)

    # -- opening -----------------------------------------------------------------------------------

    async def dial(self) -> None:
        """Open our streams; a failure fails the link."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                self._control = await self._open(CONTROL)
                self._bulk = list(await asyncio.gather(*(self._open(k) for k in range(self._bulk_streams))))
                connection = await self._owner.connection_to(self.peer)
                if connection is not None:
                    self._backlog = Backlog(connection, self._owner.uplink, self.spawn)
                    for stream in self._bulk:
                        stream.backlog = self._backlog
        except TimeoutError:
            self.fail(f"its streams could not be opened within {OPEN_TIMEOUT_S:g} s")
        except JoinRefusedError as error:
            self.fail(str(error), error)
        except ExchangeError as error:
            self.fail(str(error))
        else:
            if self.down_reason is None:
                self._dialed = True
                self._watch()

    async def _open(self, channel: int) -> Outgoing:
        reader, writer = await self._owner.open_stream(self.peer, STREAM_NAME, OPEN_TIMEOUT_S)
        stream = Outgoing(reader, writer, self._count_sent)
        self._outgoing.append(stream)
        try:
            opening: dict[str, Json] = {
                "run": self._owner.run_id,
                "channel": channel,
                "token": self.token,
                "answer": self.peer_token or "",
                "pass": self._owner.shown,
            }
            if self._owner.namesakes is not None:
                opening |= self._owner.namesakes.opening(self.peer)
            verdict, reason = await stream.open(Message("link.open", opening))
            self._owner.count(self.peer, 0, len(PREAMBLE) + 1 + len(reason))
            if verdict is Verdict.OTHER_RUN:
                raise JoinRefusedError(
                    f"peer {short(self.peer)} is not in run {self._owner.run_id!r} but in another one; "
                    "use the string of an island of this run"
                )
            if verdict is Verdict.NOT_ADMITTED:
                raise JoinRefusedError(
                    f"{self.peer} did not admit this peer to run {self._owner.run_id!r}: it is not on the "
                    "list, or its token is missing, expired or for another peer; see shared.access"
                )
            if verdict is Verdict.USED and self._owner.namesakes is not None:
                self._owner.namesakes.on_used(self.peer, reason)
            if verdict is Verdict.WAIT:
                raise PeerUnreachableError(f"{self.peer} asks first whether this peer's last process lives")
            if verdict is not Verdict.OK:
                raise PeerUnreachableError(f"{self.peer} refused a stream: {verdict.name.lower()}")
            if self.down_reason is not None:
                raise PeerUnreachableError(f"{self.peer}: {self.down_reason}")
        except BaseException:
            stream.abort()
            raise
        self.spawn(self._watch_end(stream))
        return stream

    async def _watch_end(self, stream: Outgoing) -> None:
        self.fail(await stream.wait_end())

    def accept(self, stream: Incoming, channel: int) -> None:
        """Take a stream of the other side; nothing is read from it until the link is up."""
        self._incoming.append(stream)
        stream.on_end = self.on_incoming_end
        self._count_sent(len(PREAMBLE) + 1)  # the verdict follows this call
        stream.hold()
        if channel == CONTROL:
            self._in_control = stream
            stream.limit_payloads(CONTROL_PAYLOAD_BYTES)
            stream.on_message = self._on_control
            asyncio.get_running_loop().call_soon(self._watch)
        else:
            stream.on_message = lambda message: self._on_bulk(stream, message)
            if self.is_up and self.admitted:
                asyncio.get_running_loop().call_soon(stream.release)

    def admit(self) -> None:
        """Read the other side's bulk streams from now on."""
        if not self.admitted:
            self.admitted = True
            if self.is_up:
                self._release_bulk()

    def _release_bulk(self) -> None:
        for stream in self._incoming:
            if stream is not self._in_control:
                asyncio.get_running_loop().call_soon(stream.release)

    def _watch(self) -> None:
        if self._dialed and self._in_control is not None and not self.up.done():
            self.up.set_result(None)
            self._owner.on_link_up(self)
            self._in_control.release()
            if self.admitted:
                self._release_bulk()

    # -- messages ----------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Send on the control stream."""
        if not self.is_up or self._control is None:
            raise PeerUnreachableError(f"{self.peer}: {self.down_reason or 'the link is not up'}")
        await self._send(self._control, message)

    async def send_bulk(self, message: Message) -> None:
        """Send on the bulk stream that has least to do."""
        if not self.is_up:
            raise PeerUnreachableError(f"{self.peer}: {self.down_reason or 'the link is not up'}")
        stream = min(self._bulk, key=lambda stream: stream.pending_bytes)
        # of those that have as little to do, the one that rested longest is the next
        self._bulk.remove(stream)
        self._bulk.append(stream)
        await self._send(stream, message)

    async def _send(self, stream: Outgoing, message: Message) -> None:
        head, payload = encode_frame(message)
        try:
            await stream.send(head, payload)
        except PeerUnreachableError as error:
            raise PeerUnreachableError(f"{self.peer}: {self.down_reason or error}") from error

    def _on_control(self, message: Message) -> None:
        namesakes = self._owner.namesakes
        if message.kind == BYE:
            self.fail("the peer left")
        elif namesakes is not None and message.kind == WHO:
            if (answer := namesakes.answer(message.body)) is not None:
                self.tell(answer)
        elif namesakes is not None and message.kind == HERE:
            namesakes.on_here(self, message.body)
        elif namesakes is not None and message.kind == OUSTED:
            namesakes.on_ousted(message.body)
        else:
            self._owner.receiver.on_message(self.peer, message)

    def tell(self, message: Message) -> None:
        """Send a message of the link's own, unless the last one is still on its way."""
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell(message))

    async def _tell(self, message: Message) -> None:
        try:
            await self.send(message)
        except PeerUnreachableError:
            return  # the link is down, which its owner hears

    def _on_bulk(self, stream: Incoming, message: Message) -> None:
        stream.hold()
        self.spawn(self._handle_bulk(stream, message))

    async def _handle_bulk(self, stream: Incoming, message: Message) -> None:
        try:
            await self._owner.receiver.on_bulk(self.peer, message)
        except Exception as error:  # the boundary of a task: reported, and the link goes
            logger.exception("the handler of a bulk message from %s failed", self.peer)
            self.fail(f"its message could not be handled: {error!r}")
        else:
            stream.release()

    # -- ending ------------------------------------------------------------------------------------

    def on_incoming_end(self, reason: str) -> None:
        """One of the other side's streams has ended."""
        self.fail(reason)
        if not self.ended.done():
            self.ended.set_result(None)

    def fail(self, reason: str, error: ExchangeError | None = None) -> None:
        """Take the link down, at once; only the first reason counts."""
        if self._begin_end(reason, error):
            for stream in self._incoming:
                stream.close()
            self._abort_outgoing()
            self._cancel_tasks()
            if not self.ended.done():
                self.ended.set_result(None)

    async def leave(self, reason: str, timeout_s: float) -> None:
        """Take the link down in order: control messages arrive first, unless that takes too long."""
        control = self._control if self.is_up else None
        if control is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await control.send(*encode_frame(Message(BYE, {})))
            except (TimeoutError, PeerUnreachableError):
                control = None
        if not self._begin_end(reason, None):
            return
        self._cancel_tasks()
        if control is not None:
            # the other side takes all streams down once it has read our last message
            for stream in self._incoming if self.admitted else self._incoming[:1]:
                stream.divert(self._on_message_while_leaving)
            await asyncio.wait([self.ended], timeout=timeout_s)
        for stream in self._incoming:
            stream.close()
        self._abort_outgoing()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_message_while_leaving(self, message: Message) -> None:
        if message.kind == BYE and not self.ended.done():  # both leave at the same time
            self.ended.set_result(None)

    def _begin_end(self, reason: str, error: ExchangeError | None) -> bool:
        if self.down_reason is not None:
            return False
        self.down_reason = reason
        was_up = self.up.done()
        if not was_up:
            self.up.set_exception(error or PeerUnreachableError(f"{self.peer}: {reason}"))
        self._owner.on_link_down(self, reason, was_up)
        return True

    def _abort_outgoing(self) -> None:
        for stream in self._outgoing:
            stream.abort()
        if self._backlog is not None:
            self._backlog.close()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a task that ends with the link."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """Nobody would be told else that what he waits for has ended."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a task of the link to %s failed", self.peer, exc_info=error)
            self.fail(f"a task of it failed: {error!r}")

    def _cancel_tasks(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def _count_sent(self, size: int) -> None:
        self._owner.count(self.peer, size, 0)


def _retrieve(future: asyncio.Future[None]) -> None:
    """Mark a failure as seen: a link that nobody waits for may fail without a warning."""
    if not future.cancelled():
        future.exception()
