"""The exchange between peers of one process: for tests, for the simulator, for trying things out.

Each peer may run its own event loop in its own thread, or all may share one loop (a virtual clock
then sees only `loop.time()`). Messages are framed as on the wire, so bodies that can't be packed
and frames that are too large fail here as they do on the swarm, and traffic is counted in the same
bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence

from lowcomm.arguments import flag, show, text
from lowcomm.arguments import run_id as name_of_run
from lowcomm.errors import ArgumentError, ExchangeError, PeerUnreachableError
from lowcomm.exchanges.base import Message, Receiver, Traffic
from lowcomm.exchanges.frames import HEADER_BYTES, decode_body, encode_frame
from lowcomm.methods import Spec
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

WINDOW = 8
"""Bulk messages that may be on their way between two peers, in one direction."""

RETRY_S = 0.02
"""Seconds between two looks for a peer to join through."""

Filter = Callable[[PeerId, PeerId, Message], "bool | Message"]
"""(sender, receiver, message) -> False to lose it, True to pass it, or a message to pass instead."""


class _End:
    """One peer's end of a link. Everything but the constructor runs in that peer's loop."""

    def __init__(self, owner: LoopbackExchange, other: LoopbackExchange) -> None:
        self.owner, self.other = owner, other
        self.peer = other.peer_id
        self.twin: _End | None = None
        self.reason: str | None = None
        self._slots = WINDOW
        self._waiters: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        if self.owner.open_end(self):
            self.owner.receiver.on_peer_up(self.peer)

    def on_message(self, message: Message, size: int) -> None:
        if self.reason is None and not self.owner.dead:
            self.owner.count_received(self.peer, size)
            self.owner.receiver.on_message(self.peer, message)

    def on_bulk(self, message: Message, size: int) -> None:
        if self.reason is None and not self.owner.dead:
            self.owner.count_received(self.peer, size)
            task = asyncio.get_running_loop().create_task(self._bulk(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _bulk(self, message: Message) -> None:
        try:
            await self.owner.receiver.on_bulk(self.peer, message)
        except Exception as error:  # the boundary of a task: reported, and the link goes
            logger.exception("the handler of a bulk message from %s failed", self.peer)
            reason = f"its message could not be handled: {error!r}"
            self.owner.hub.unlink(self.owner.peer_id, self.peer, reason)
        if self.twin is not None:
            self.other.post(self.twin.release)

    async def acquire(self) -> None:
        """Wait until fewer than `WINDOW` bulk messages are on their way."""
        while self._slots == 0 and self.reason is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        if self.reason is not None:
            raise PeerUnreachableError(f"{self.peer}: {self.reason}")
        self._slots -= 1

    def release(self) -> None:
        self._slots += 1
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def shut(self, reason: str, tell: bool) -> None:
        """End this side; `tell` the receiver, unless its peer is dead or leaving itself."""
        if self.reason is not None:
            return
        self.reason = reason
        self._wake()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if self.owner.drop_end(self) and tell:
            self.owner.receiver.on_peer_down(self.peer, reason)


class LoopbackHub:
    """What the peers of one process have in common: who is there, links, and the directory.

    All methods may be called from any thread.

    Attributes:
        filter: asked for each message, in the sender's thread; None passes all.
    """

    def __init__(self) -> None:
        self.filter: Filter | None = None
        self._lock = threading.RLock()
        self._secret = secrets.token_bytes(32)
        self._members: dict[tuple[str, PeerId], LoopbackExchange] = {}
        self._links: dict[frozenset[PeerId], tuple[_End, _End]] = {}
        self._records: dict[tuple[str, PeerId], tuple[bytes, float]] = {}

    def kill(self, peer: PeerId) -> None:
        """Sudden death: the peer hears nothing any more, and the others see their links break."""
        with self._lock:
            for key, member in list(self._members.items()):
                if key[1] == peer:
                    member.dead = True
                    self._remove(member, "the peer died", tell=False)

    def cut(self, one: PeerId, other: PeerId, reason: str = "the link was cut") -> None:
        """Break a link on both sides; the peers may connect again."""
        self.unlink(one, other, reason)

    def _remove(self, member: LoopbackExchange, reason: str, tell: bool) -> None:
        self._members.pop((member.run_id, member.peer_id), None)
        for pair in [pair for pair in self._links if member.peer_id in pair]:
            for end in self._links.pop(pair):
                end.owner.post(end.shut, reason, tell or end.owner is not member)

    def enter(self, member: LoopbackExchange) -> list[PeerId]:
        """Add a peer; returns those that were there before, the oldest first."""
        with self._lock:
            key = (member.run_id, member.peer_id)
            if key in self._members:
                raise ExchangeError(
                    f"{member.peer_id}: a peer of this name is in the hub already; close it first"
                )
            there = [peer for run_id, peer in self._members if run_id == member.run_id]
            self._members[key] = member
            return there

    def others(self, member: LoopbackExchange) -> list[PeerId]:
        """The other peers of its run, the oldest first."""
        with self._lock:
            return [p for run_id, p in self._members if run_id == member.run_id and p != member.peer_id]

    def leave(self, member: LoopbackExchange) -> None:
        """Remove a peer that closes; the others are told."""
        with self._lock:
            self._records.pop((member.run_id, member.peer_id), None)
            self._remove(member, "the peer left", tell=False)

    def link(self, dialer: LoopbackExchange, peer: PeerId) -> None:
        """Join two peers, unless they are; both are told in their own loops."""
        with self._lock:
            other = self._members.get((dialer.run_id, peer))
            if dialer.dead or other is None or other is dialer:
                raise PeerUnreachableError(f"{peer}: no live peer of this name in the hub")
            pair = frozenset((dialer.peer_id, peer))
            if pair in self._links:
                return
            ends = _End(dialer, other), _End(other, dialer)
            ends[0].twin, ends[1].twin = ends[1], ends[0]
            self._links[pair] = ends
            for end in ends:
                end.owner.post(end.open)

    def unlink(self, one: PeerId, other: PeerId, reason: str) -> None:
        """Break a link; both sides hear the reason."""
        with self._lock:
            for end in self._links.pop(frozenset((one, other)), ()):
                end.owner.post(end.shut, reason, True)

    def publish(self, member: LoopbackExchange, record: bytes, expires_s: float) -> None:
        """Keep a record until `expires_s` in loop time."""
        with self._lock:
            self._records[member.run_id, member.peer_id] = record, expires_s

    def records(self, run_id: str, now_s: float) -> dict[PeerId, bytes]:
        """The records of a run that have not run out."""
        with self._lock:
            items = sorted(self._records.items())
        return {
            peer: record for (run, peer), (record, expires_s) in items if run == run_id and expires_s > now_s
        }

    def signature(self, peer: PeerId, data: bytes) -> bytes:
        """HMAC under a key that only this hub and, through it, `peer` use."""
        key = hmac.digest(self._secret, peer.encode(), hashlib.sha256)
        return hmac.digest(key, data, hashlib.sha256)


class LoopbackExchange:
    """One peer of a `LoopbackHub`; an `Exchange`.

    Args:
        hub: shared by all peers.
        run_id: peers of other runs in the same hub are not seen.
        peer_id: any text, unique in the hub.
        founder: whether this peer may found the run; if not, `start` links it to the oldest peer.
        join_timeout_s: for how long `start` waits until there is one.
    """

    def __init__(
        self,
        hub: LoopbackHub,
        run_id: str,
        peer_id: PeerId,
        *,
        founder: bool,
        join_timeout_s: float = 20.0,
    ) -> None:
        self.hub = hub
        self._join_timeout_s = join_timeout_s
        self.receiver: Receiver
        self.dead = False
        self._run_id, self._peer_id, self._founder = run_id, peer_id, founder
        self._traffic = Traffic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ends: dict[PeerId, _End] = {}
        self._opening: dict[PeerId, list[asyncio.Future[None]]] = {}
        self._closed = False

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return ()

    @property
    def join_string(self) -> str:
        return ""

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def founder(self) -> bool:
        return self._founder

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        """Enter the hub, and link to its oldest peer unless this one is the founder; `met` has no use."""
        self._loop = asyncio.get_running_loop()
        self.receiver = receiver
        there = self.hub.enter(self)
        if self._founder:
            return
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._join_timeout_s
        while not there:
            if loop.time() >= give_up_s:
                self.hub.leave(self)
                raise PeerUnreachableError(
                    f"run {self._run_id!r} has no other peer in this hub after {self._join_timeout_s:g} s; "
                    "start the founder first"
                )
            await asyncio.sleep(RETRY_S)
            there = self.hub.others(self)
        await self.connect(there[0], ())

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Link to a peer of the hub; `addresses` mean nothing here."""
        if peer in self._ends:
            return
        opened = asyncio.get_running_loop().create_future()
        self._opening.setdefault(peer, []).append(opened)
        try:
            self.hub.link(self, peer)
            await opened
        finally:
            waiting = self._opening.get(peer, [])
            if opened in waiting:
                waiting.remove(opened)

    def connected(self) -> frozenset[PeerId]:
        """The peers that messages flow to and from."""
        return frozenset(self._ends)

    def admit(self, peer: PeerId) -> None:
        """See `Links`; bulk is read from the start here."""

    async def disconnect(self, peer: PeerId) -> None:
        """Drop the link; both sides hear of it."""
        end = self._ends.get(peer)
        self.hub.unlink(self._peer_id, peer, "the link was closed")
        if end is not None:
            end.shut("the link was closed", True)

    async def send(self, peer: PeerId, message: Message) -> None:
        """Hand a control message to the other peer's loop, in order."""
        end = self._end(peer)
        passed, size = self._pass(peer, message)
        if passed is not None and end.twin is not None:
            end.other.post(end.twin.on_message, passed, size)

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """Hand over a copy, as soon as fewer than `WINDOW` are being worked on over there."""
        end = self._end(peer)
        encode_frame(message)  # refused at once if it is too large, not after the wait
        await end.acquire()
        passed, size = self._pass(peer, message)
        if passed is None or end.twin is None:
            end.release()
        else:
            end.other.post(end.twin.on_bulk, passed, size)

    async def publish(self, record: bytes, ttl_s: float) -> None:
        """Put this peer's record into the hub's directory."""
        self.hub.publish(self, bytes(record), asyncio.get_running_loop().time() + ttl_s)

    async def discover(self) -> Mapping[PeerId, bytes]:
        """The records of this run."""
        return self.hub.records(self._run_id, asyncio.get_running_loop().time())

    def sign(self, data: bytes) -> bytes:
        """Sign as this peer."""
        return self.hub.signature(self._peer_id, data)

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether `signature` over `data` is `peer`'s."""
        return hmac.compare_digest(self.hub.signature(peer, data), signature)

    async def close(self) -> None:
        """Leave the hub; no callback comes after this."""
        if self._closed:
            return
        self._closed = True
        self.hub.leave(self)
        for end in list(self._ends.values()):
            end.shut("this peer left", False)

    # -- for the hub and the ends of links -----------------------------------------------------------

    def post(self, call: Callable[..., None], *args: object) -> None:
        """Run `call(*args)` in this peer's loop; a loop that has ended takes its peer with it."""
        assert self._loop is not None
        if _running_loop() is self._loop:
            self._loop.call_soon(call, *args)
            return
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            if not self.dead:
                self.hub.kill(self._peer_id)

    def open_end(self, end: _End) -> bool:
        """Register a link that came up; False if this peer is gone by now."""
        if self.dead or self._closed or end.reason is not None:
            return False
        self._ends[end.peer] = end
        for opened in self._opening.pop(end.peer, []):
            if not opened.done():
                opened.set_result(None)
        return True

    def drop_end(self, end: _End) -> bool:
        """Forget a link; False if it was not up, or if nobody is to hear of it."""
        for opened in self._opening.pop(end.peer, []):
            if not opened.done():
                opened.set_exception(PeerUnreachableError(f"{end.peer}: {end.reason}"))
        if self._ends.get(end.peer) is not end:
            return False
        del self._ends[end.peer]
        return not (self.dead or self._closed)

    def count_received(self, peer: PeerId, size: int) -> None:
        """Add a received frame to the traffic."""
        self._traffic.count(peer, received=size)

    def _end(self, peer: PeerId) -> _End:
        end = self._ends.get(peer)
        if end is None or self.dead or self._closed:
            raise PeerUnreachableError(f"{peer}: there is no link to it; connect first")
        return end

    def _pass(self, peer: PeerId, message: Message) -> tuple[Message | None, int]:
        """What arrives (None if it is lost), and its size on the wire, which counts as sent."""
        head, payload = encode_frame(message)
        size = len(head) + payload.nbytes
        self._traffic.count(peer, sent=size)
        verdict = True if self.hub.filter is None else self.hub.filter(self._peer_id, peer, message)
        if verdict is False:
            return None, 0
        if isinstance(verdict, Message):
            head, payload = encode_frame(verdict)
        copy = memoryview(bytes(payload))
        return decode_body(head[HEADER_BYTES:], copy), len(head) + copy.nbytes


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def hub() -> LoopbackHub:
    """A new hub, for `loopback`."""
    return LoopbackHub()


def loopback(hub: LoopbackHub, *, run_id: str, peer_id: str, founder: bool) -> LoopbackExchange:
    """An exchange between peers of this process.

    Raises:
        ConfigError: an argument is of another type, or out of range.
    """
    if not isinstance(hub, LoopbackHub):
        raise ArgumentError(f"exchanges.loopback: expected what exchanges.hub() gives, got {show(hub)}")
    run_id = name_of_run("exchanges.loopback: run_id", run_id)
    peer = PeerId(text("exchanges.loopback: peer_id", peer_id))
    return LoopbackExchange(hub, run_id, peer, founder=flag("exchanges.loopback: founder", founder))


SPEC = Spec(name="loopback", make=loopback, about="threads of one process: tests, trying things out")
