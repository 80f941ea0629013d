"""The exchange over torch.distributed's gloo: a fixed set of peers on a trusted LAN.

Fast and plain: raw TCP, no encryption, no NAT traversal, no newcomers. All peers start together
and know each other by rank. Two gloo groups, one for control and one for bulk, keep small messages
from waiting behind large ones; a thread for each peer and channel receives. gloo makes a sender
wait until the receiver asks for the bytes, which is the back-pressure.

Signatures are HMACs under one key that all peers share through the store: they catch mistakes, not
a hostile peer. The directory lives in the store, thus with the process that hosts it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import msgpack
import torch
from torch.distributed.distributed_c10d import PrefixStore, Store

from lowcomm.arguments import number, text, whole
from lowcomm.arguments import run_id as name_of_run
from lowcomm.clock import SystemClock
from lowcomm.errors import (
    ExchangeError,
    LowcommError,
    PeerUnreachableError,
    ProtocolError,
)
from lowcomm.exchanges.base import Message, Receiver, Traffic
from lowcomm.exchanges.frames import HEADER_BYTES, decode_body, decode_header, encode_frame
from lowcomm.exchanges.meeting import Meeting, open_store
from lowcomm.exchanges.own_address import split_address
from lowcomm.methods import Spec
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

CHANNELS = ("control", "bulk")
LEAVE_S = 2.0
_GLOO_PATIENCE_S = 30.0
"""Beyond the waits of the join, which follow one another; gloo was seen to outlast its own by minutes."""
_NEVER = timedelta(days=365)
_POISON_TAG = 1
_FIRST_BYTES = 512
"""Each frame begins with a block of this size, as gloo's receiver must know every size beforehand:
the head, padded; what is longer follows in a block of its own, then the payload."""

_UP, _DOWN, _BYE = "link.up", "link.down", "link.bye"


def peer_of(rank: int) -> PeerId:
    """The name of a rank."""
    return PeerId(f"pg-{rank:04d}")


class ProcessGroupExchange:
    """One rank of a fixed set of peers; an `Exchange`.

    Args:
        run_id: ranks that meet in one store under other run ids do not find each other.
        store: reachable by all ranks, such as a `torch.distributed.TCPStore`, or what opens it.
        rank, world_size: as in torch.distributed, but of islands: their lead ranks only.
        master: HOST:PORT of the store; empty where all ranks are on this machine.
        host: the address or host name of this machine that the others reach it by; empty = the one on the
            way to `master`.
        join_timeout_s: how long `start` waits for all ranks.
    """

    def __init__(
        self,
        run_id: str,
        *,
        store: Store | Callable[[], Store],
        rank: int,
        world_size: int,
        master: str = "",
        host: str = "",
        join_timeout_s: float = 60.0,
    ) -> None:
        self._run_id, self._rank, self._world_size = run_id, rank, world_size
        self._given_store, self._master, self._host = store, master, host
        self._join_timeout_s = join_timeout_s
        self._peer_id = peer_of(rank)
        self._ranks = {peer_of(other): other for other in range(world_size) if other != rank}
        self._traffic = Traffic()
        self._key = b""
        self._groups: dict[str, Any] = {}
        self._up: set[PeerId] = set()
        self._dead: dict[PeerId, str] = {}
        self._locks: dict[tuple[str, PeerId], asyncio.Lock] = {}
        self._threads: list[threading.Thread] = []
        self._all_heard = {peer: threading.Event() for peer in self._ranks}
        self._handling: set[Future[None]] = set()
        self._sends: set[asyncio.Task[None]] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._closing: asyncio.Task[None] | None = None
        self._store: Store
        self._loop: asyncio.AbstractEventLoop
        self._receiver: Receiver

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
        return self._rank == 0

    # -- life --------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        """Meet all other ranks, which are all that there are, `met` or not.

        Raises:
            AddressError: no way to `master`, or `host` is none of this machine's.
            PortInUseError: rank 0 can't open the store.
            PeerUnreachableError: not all came within `join_timeout_s`.
        """
        self._loop, self._receiver = asyncio.get_running_loop(), receiver
        self._pool = ThreadPoolExecutor(2 * self._world_size + 1, thread_name_prefix="lowcomm-gloo")
        self._locks = {(channel, peer): asyncio.Lock() for channel in CHANNELS for peer in self._ranks}
        try:
            await self._in_daemon_thread(self._rendezvous)
        except BaseException:
            self._pool.shutdown(wait=False)
            raise
        for peer in self._ranks:
            self._up.add(peer)
            receiver.on_peer_up(peer)
        for channel in CHANNELS:
            for peer, rank in self._ranks.items():
                name = f"lowcomm-{channel}-{peer}"
                thread = threading.Thread(
                    target=self._receive_all, args=(channel, peer, rank), name=name, daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def _rendezvous(self) -> None:
        store = self._given_store if isinstance(self._given_store, Store) else self._given_store()
        self._store = PrefixStore(f"lowcomm/{self._run_id}", store)
        meeting = Meeting(
            self._store,
            rank=self._rank,
            world_size=self._world_size,
            master=self._master,
            host=self._host,
            timeout_s=self._join_timeout_s,
        )
        self._groups, self._key = meeting.groups(CHANNELS), meeting.key

    async def _in_daemon_thread(self, call: Callable[[], None]) -> None:
        """For what may hang in gloo: neither a signal nor the end of the process waits for it."""
        done: asyncio.Future[None] = self._loop.create_future()

        def finish(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def work() -> None:
            try:
                call()
            except BaseException as error:  # the boundary of the thread: raised again in the loop
                self._post(finish, error)
            else:
                self._post(finish, None)

        threading.Thread(target=work, name="lowcomm-rendezvous", daemon=True).start()
        try:
            async with asyncio.timeout(3 * self._join_timeout_s + _GLOO_PATIENCE_S):
                await done
        except TimeoutError as error:
            raise PeerUnreachableError(
                f"rank {self._rank}: gloo did not connect all {self._world_size} ranks; each must be reached "
                "from the others' machines at its exchange.group_listen, at any TCP port"
            ) from error

    async def close(self) -> None:
        """Tell all ranks, end all threads. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if not self._groups or self._pool is None:
            return
        live, self._up = self._up, set()
        byes = [self._transmit("control", peer, Message(_BYE, {})) for peer in live]
        if byes:
            tasks = [asyncio.ensure_future(bye) for bye in byes]
            await asyncio.wait(tasks, timeout=LEAVE_S)
            for task in tasks:
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
        for future in list(self._handling):
            future.cancel()
        # gloo can't cancel a receive, but one that times out closes every connection of its group
        await asyncio.gather(*(self._in_thread(self._poison, group) for group in self._groups.values()))
        for thread in self._threads:
            await self._in_thread(thread.join, LEAVE_S)
        await asyncio.gather(*self._sends, return_exceptions=True)
        self._groups.clear()
        self._pool.shutdown(wait=True)

    def _poison(self, group: Any) -> None:
        for other in self._ranks.values():  # all, as one that is closed already fails at once
            try:
                poison = group.recv([torch.empty(1, dtype=torch.uint8, device="cpu")], other, _POISON_TAG)
                poison.wait(timedelta(milliseconds=1))
            except RuntimeError:
                pass  # the time-out that was asked for

    # -- links -------------------------------------------------------------------------------------

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Take up a link that was dropped; `addresses` mean nothing here."""
        if peer in self._up:
            return
        self._check(peer)
        self._up.add(peer)
        self._receiver.on_peer_up(peer)
        await self._send("control", peer, Message(_UP, {}))

    def connected(self) -> frozenset[PeerId]:
        """The peers that messages flow to and from."""
        return frozenset(self._up)

    def admit(self, peer: PeerId) -> None:
        """See `Links`; bulk is read from the start here."""

    async def disconnect(self, peer: PeerId) -> None:
        """Drop the link on both sides; the connections stay, for `connect`."""
        if peer in self._up:
            try:
                async with asyncio.timeout(LEAVE_S):
                    await self._send("control", peer, Message(_DOWN, {}))
            except (PeerUnreachableError, TimeoutError):
                pass  # it hears nothing any more; what it sends is ignored from now on
            self._down(peer, "the link was closed")

    def _down(self, peer: PeerId, reason: str) -> None:
        if peer in self._up:
            self._up.discard(peer)
            self._receiver.on_peer_down(peer, reason)

    def _lost(self, peer: PeerId, reason: str) -> None:
        if self._closing is None:
            self._dead.setdefault(peer, reason)
            self._down(peer, reason)

    def _check(self, peer: PeerId) -> None:
        if peer not in self._ranks:
            raise PeerUnreachableError(f"{peer}: not a peer of this group of {self._world_size}")
        if self._closing is not None or not self._groups:
            raise PeerUnreachableError("this peer is not running")
        if peer in self._dead:
            raise PeerUnreachableError(f"{peer}: {self._dead[peer]}; a process group takes nobody back")

    # -- sending -----------------------------------------------------------------------------------

    async def send(self, peer: PeerId, message: Message) -> None:
        """Send on the control group."""
        await self._send_if_up("control", peer, message)

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """Send on the bulk group; waits until the receiver has taken it."""
        await self._send_if_up("bulk", peer, message)

    async def _send_if_up(self, channel: str, peer: PeerId, message: Message) -> None:
        self._check(peer)
        if peer not in self._up:
            raise PeerUnreachableError(f"{peer}: the link was closed; connect first")
        await self._send(channel, peer, message)

    async def _send(self, channel: str, peer: PeerId, message: Message) -> None:
        self._check(peer)
        await self._transmit(channel, peer, message)

    async def _transmit(self, channel: str, peer: PeerId, message: Message) -> None:
        """Send a copy; a frame that was begun is finished even if this is cancelled."""
        head, payload = encode_frame(message)
        first = bytearray(_FIRST_BYTES)
        first[: len(head)] = head[:_FIRST_BYTES]
        parts = [first, bytearray(head[_FIRST_BYTES:]), bytearray(payload)]
        task = asyncio.get_running_loop().create_task(self._transmit_parts(channel, peer, parts))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _transmit_parts(self, channel: str, peer: PeerId, parts: list[bytearray]) -> None:
        async with self._locks[channel, peer]:
            try:
                await self._in_thread(self._put, self._groups[channel], self._ranks[peer], parts)
            except RuntimeError as error:
                await self._in_thread(self._hear_out, peer)
                self._lost(peer, "its connection broke")
                raise PeerUnreachableError(f"{peer}: {error!s:.200}") from error
            self._traffic.count(peer, sent=sum(map(len, parts)))

    @staticmethod
    def _put(group: Any, rank: int, parts: list[bytearray]) -> None:
        for part in parts:
            if part:
                group.send([torch.frombuffer(part, dtype=torch.uint8)], rank, 0).wait()

    # -- receiving (in threads) --------------------------------------------------------------------

    def _receive_all(self, channel: str, peer: PeerId, rank: int) -> None:
        group = self._groups[channel]
        try:
            while self._receive_one(group, channel, peer, rank):
                pass
        except ProtocolError as error:
            self._post(self._lost, peer, f"it broke the protocol: {error}")
        except RuntimeError:  # how gloo says that the connection is gone
            if channel == "bulk":
                self._hear_out(peer)
            self._post(self._lost, peer, "its connection broke")
        finally:
            if channel == "control":
                self._all_heard[peer].set()

    def _hear_out(self, peer: PeerId) -> None:
        """Let all control messages come first, a goodbye among them: its connections end in any order."""
        self._all_heard[peer].wait(LEAVE_S)

    def _receive_one(self, group: Any, channel: str, peer: PeerId, rank: int) -> bool:
        first = self._get(group, rank, _FIRST_BYTES)
        body_bytes, payload_bytes = decode_header(first[:HEADER_BYTES])
        head_bytes = HEADER_BYTES + body_bytes
        rest = self._get(group, rank, max(0, head_bytes - _FIRST_BYTES))
        message = decode_body(
            bytes(first[HEADER_BYTES:head_bytes]) + rest, self._get(group, rank, payload_bytes)
        )
        self._post(self._traffic.count, peer, 0, max(head_bytes, _FIRST_BYTES) + payload_bytes)
        if channel == "control":
            self._post(self._on_control, peer, message)
            return message.kind != _BYE
        self._handle_bulk(peer, message)
        return True

    @staticmethod
    def _get(group: Any, rank: int, size: int) -> memoryview:
        """Receive `size` bytes, which were checked before."""
        data = bytearray(size)
        if size:
            group.recv([torch.frombuffer(data, dtype=torch.uint8)], rank, 0).wait()
        return memoryview(data)

    def _handle_bulk(self, peer: PeerId, message: Message) -> None:
        coroutine = self._on_bulk(peer, message)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop has ended
            coroutine.close()
            raise
        self._handling.add(future)
        try:
            future.result()
        except CancelledError:
            pass  # this peer leaves
        finally:
            self._handling.discard(future)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever wanted to know

    # -- received, in the event loop ---------------------------------------------------------------

    def _on_control(self, peer: PeerId, message: Message) -> None:
        if self._closing is not None:
            return
        if message.kind == _BYE:
            self._lost(peer, "the peer left")
        elif message.kind == _DOWN:
            self._down(peer, "the link was closed")
        elif message.kind == _UP:
            if peer not in self._up and peer not in self._dead:
                self._up.add(peer)
                self._receiver.on_peer_up(peer)
        elif peer in self._up:
            self._receiver.on_message(peer, message)

    async def _on_bulk(self, peer: PeerId, message: Message) -> None:
        if peer not in self._up:
            return
        try:
            await self._receiver.on_bulk(peer, message)
        except Exception as error:  # the boundary of a task: reported, and the link goes
            logger.exception("the handler of a bulk message from %s failed", peer)
            self._down(peer, f"its message could not be handled: {error!r}")

    # -- directory and signatures ------------------------------------------------------------------

    async def publish(self, record: bytes, ttl_s: float) -> None:
        """Put this peer's record into the store.

        Raises:
            ExchangeError: the store is gone.
        """
        entry = msgpack.packb([record, SystemClock().wall_s() + ttl_s])
        await self._in_store(self._store.set, f"record/{self._peer_id}", entry)

    async def discover(self) -> Mapping[PeerId, bytes]:
        """The records in the store that have not run out.

        Raises:
            ExchangeError: the store is gone.
        """
        found: dict[PeerId, bytes] = await self._in_store(self._read_records)
        return found

    def _read_records(self) -> dict[PeerId, bytes]:
        records, now_s = {}, SystemClock().wall_s()
        for rank in range(self._world_size):
            peer = peer_of(rank)
            if self._store.check([f"record/{peer}"]):
                record, expires_s = msgpack.unpackb(self._store.get(f"record/{peer}"))
                if expires_s > now_s:
                    records[peer] = record
        return records

    def sign(self, data: bytes) -> bytes:
        """HMAC with the key of the group."""
        return self._signature(self._peer_id, data)

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether `signature` over `data` was made in `peer`'s name."""
        return hmac.compare_digest(self._signature(peer, data), signature)

    def _signature(self, peer: PeerId, data: bytes) -> bytes:
        return hmac.digest(self._key, msgpack.packb([peer, data]), hashlib.sha256)

    async def _in_store(self, call: Callable[..., Any], *args: object) -> Any:
        if self._pool is None or self._closing is not None:
            raise PeerUnreachableError("this peer is not running")
        try:
            return await self._in_thread(call, *args)
        except LowcommError:
            raise
        except RuntimeError as error:
            raise ExchangeError(f"the store of the process group is gone: {error!s:.200}") from error

    async def _in_thread(self, call: Callable[..., Any], *args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, call, *args)


def process_group(
    *,
    run_id: str,
    rank: int,
    world_size: int,
    master: str = "127.0.0.1:29400",
    host: str = "",
    join_timeout_s: float = 60.0,
) -> ProcessGroupExchange:
    """An exchange between a fixed set of peers on a LAN.

    `master` is HOST:PORT, where rank 0 opens the store that all ranks meet in; `host` the address that
    the others reach this machine by, by default the one on the way to `master`.

    Raises:
        AddressError: `master` is not HOST:PORT.
        ConfigError: an argument is of another type, or out of range.
    """

    run_id = name_of_run("exchanges.process_group: run_id", run_id)
    world_size = whole("exchanges.process_group: world_size", world_size, least=1)
    rank = whole("exchanges.process_group: rank", rank, least=0, most=world_size - 1)
    join_timeout_s = number("exchanges.process_group: join_timeout_s", join_timeout_s, above=0)
    split_address(text("exchanges.process_group: master", master))
    return ProcessGroupExchange(
        run_id,
        store=lambda: open_store(master, rank, join_timeout_s),
        rank=rank,
        world_size=world_size,
        master=master,
        host=host,
        join_timeout_s=join_timeout_s,
    )


SPEC = Spec(name="process_group", make=process_group, about="a fixed set of islands on a LAN, gloo")
