"""The one module that imports hivemind: a typed node on top of its p2pd client and its DHT.

Used of hivemind: the p2pd binary and its control protocol, `P2P` for incoming streams and unary
calls, `DHTNode`. Not used: averaging, its optimizer, its codecs. Outgoing requests to p2pd are
made here, because hivemind's own leave their socket open when they are cancelled.
"""

from __future__ import annotations

import asyncio
import importlib.resources
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowcomm.errors import AddressError, ExchangeError, PeerUnreachableError
from lowcomm.exchanges.swarm.addresses import endpoint_of
from lowcomm.exchanges.swarm.callers import Callers
from lowcomm.exchanges.swarm.connection import DaemonConnection
from lowcomm.exchanges.swarm.semaphores import thread_locks_without_shm
from lowcomm.types import PeerId

with thread_locks_without_shm():
    import hivemind.hivemind_cli
    from hivemind.dht import DHTNode
    from hivemind.dht.crypto import RecordValidatorBase
    from hivemind.dht.routing import DHTID
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.p2p import P2P, PeerID
    from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, read_pbmsg_safe, write_pbmsg
    from hivemind.proto import p2pd_pb2
    from hivemind.utils.multiaddr import Multiaddr
    from hivemind.utils.serializer import MSGPackSerializer

StreamHandler = Callable[[PeerId, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
RecordCheck = Callable[[PeerId, bytes, float], bool]
"""(peer, value, expiration in seconds since 1970) -> whether the DHT may keep and return it."""

_RPC_TIMEOUT_S = 3.0


def p2pd_program() -> Path:
    """The p2pd binary in hivemind's wheel."""
    return Path(str(importlib.resources.files(hivemind.hivemind_cli).joinpath("p2pd")))


def check_multiaddr(address: str) -> None:
    """See whether libp2p can read an address.

    Raises:
        AddressError: it can't.
    """
    _to_bytes(address)


def _to_bytes(address: str) -> bytes:
    """A multiaddr in libp2p's binary form; the peer at its end is left out, as p2pd wants it.

    hivemind writes peer ids within addresses as CIDs, which its own p2pd does not take.
    """
    first, *rest = address.split("/p2p/")
    try:
        packed: bytes = Multiaddr(first).to_bytes()
        for number, part in enumerate(rest, start=1):
            peer, slash, after = part.partition("/")
            multihash = PeerID.from_base58(peer).to_bytes()
            if slash or number < len(rest):
                packed += b"\xa5\x03" + bytes([len(multihash)]) + multihash
            if slash:
                packed += Multiaddr(slash + after).to_bytes()
    except (ValueError, LookupError, KeyError, TypeError) as error:
        raise AddressError(f"address {address!r:.200}: not a multiaddr: {error}") from error
    return packed


class _Validator(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """Lets only checked records of one key into the DHT, neither when stored nor when found."""

    def __init__(self, key: str, check: RecordCheck) -> None:
        self._key, self._check = DHTID.generate(source=key).to_bytes(), check

    def validate(self, record: Any) -> bool:
        if record.key != self._key:
            return False
        try:
            subkey = MSGPackSerializer.loads(record.subkey)
            value = MSGPackSerializer.loads(record.value)
        except Exception:  # whatever a stranger's bytes make the unpacker raise means: not valid
            return False
        expires_s = record.expiration_time
        if not isinstance(subkey, str) or not isinstance(value, bytes) or not isinstance(expires_s, float):
            return False
        return self._check(PeerId(subkey), value, expires_s)


class _GuardedP2P(P2P):  # type: ignore[misc]  # hivemind has no types
    """Asks `callers` before it calls any handler of hivemind's services; the DHT's are the only ones."""

    callers: Callers

    async def add_protobuf_handler(self, name: str, handler: Any, *args: Any, **kwargs: Any) -> None:
        """Register a handler of unary calls, guarded."""

        async def guarded(request: Any, context: Any) -> Any:
            caller = PeerId(context.remote_id.to_base58())
            if not self.callers.admits(caller, asyncio.get_running_loop().time()):
                raise PermissionError(f"{name}: {caller} is not in this run, or calls too often")
            return await handler(request, context)

        await super().add_protobuf_handler(name, guarded, *args, **kwargs)


def _guard_dictionaries(protocol: Any) -> None:
    """Refuse found dictionaries whose own fields, which hivemind trusts, have odd values.

    Text in the place of a number there ends hivemind's search with a TypeError; a small `maxsize`
    pushes out the records that other nodes hold.
    """
    validate = protocol._validate_dictionary

    def checked(key: bytes, dictionary: Any) -> bool:
        if not isinstance(dictionary, DictionaryDHTValue):
            return False
        if not isinstance(dictionary.latest_expiration_time, float):
            return False
        dictionary.maxsize = float("inf")
        valid: bool = validate(key, dictionary)
        return valid

    protocol._validate_dictionary = checked


class HivemindNode:
    """A p2pd that runs already, its incoming streams, and a DHT node on it."""

    def __init__(self, control_socket: Path, pid: int, p2p: Any, callers: Callers) -> None:
        self._control_socket, self._pid, self._p2p = control_socket, pid, p2p
        self.callers = callers
        self._dht: Any = None
        self.peer_id = PeerId(p2p.peer_id.to_base58())

    @classmethod
    async def attach(cls, control_socket: Path, pid: int, *, closed: bool = False) -> HivemindNode:
        """Connect to p2pd; our own socket is made beside its control socket.

        Args:
            pid: of p2pd, a child of this process.
            closed: only members (`callers`) may call the handlers of the DHT.

        Raises:
            ExchangeError: p2pd does not answer.
        """
        prefix = f"/unix{control_socket.parent}/"
        callers = Callers(closed=closed)
        names = {"_UNIX_SOCKET_PREFIX": prefix, "callers": callers}
        private_p2p: Any = type("PrivateP2P", (_GuardedP2P,), names)
        try:
            p2p = await private_p2p.replicate(Multiaddr(f"/unix{control_socket}"))
        except (OSError, EOFError, P2PDaemonError) as error:
            raise ExchangeError(f"p2pd does not answer on {control_socket}: {error}") from error
        control = p2p._client.control
        for task in (control._read_task, control._write_task):
            # both break when p2pd ends, which its daemon object reports; nobody awaits them
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return cls(control_socket, pid, p2p, callers)

    @property
    def has_sockets(self) -> bool:
        """Whether p2pd's socket and the one on which it hands us streams still have their names."""
        ours = self._control_socket.parent.glob("p2pclient-*.sock")
        return self._control_socket.exists() and any(ours)

    async def addresses(self) -> list[str]:
        """The multiaddrs p2pd listens on or announces, each with the peer id at its end."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.IDENTIFY)
        response, _, writer = await self._request("identify", request, _RPC_TIMEOUT_S)
        writer.transport.abort()
        return [f"{Multiaddr(packed)}/p2p/{self.peer_id}" for packed in response.identify.addrs]

    # -- connections and streams -------------------------------------------------------------------

    async def connect(self, peer: PeerId, addresses: Sequence[str], timeout_s: float) -> None:
        """Have p2pd dial a peer; returns at once if it is connected.

        Raises:
            PeerUnreachableError: the dial failed, or is held back after an earlier failure.
        """
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.CONNECT,
            connect=p2pd_pb2.ConnectRequest(
                peer=_peer_bytes(peer),
                addrs=[_to_bytes(address) for address in addresses],
                timeout=max(1, round(timeout_s)),
            ),
        )
        _, _, writer = await self._request(peer, request, timeout_s)
        writer.transport.abort()

    async def disconnect(self, peer: PeerId) -> None:
        """Have p2pd end all connections to a peer.

        Raises:
            PeerUnreachableError: p2pd does not answer.
        """
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.DISCONNECT,
            disconnect=p2pd_pb2.DisconnectRequest(peer=_peer_bytes(peer)),
        )
        _, _, writer = await self._request(peer, request, _RPC_TIMEOUT_S)
        writer.transport.abort()

    async def connected(self) -> frozenset[PeerId]:
        """The peers that p2pd has a connection to."""
        return frozenset(PeerId(PeerID(info.id).to_base58()) for info in await self._list_peers())

    async def connection_to(self, peer: PeerId) -> DaemonConnection | None:
        """The TCP connection to a peer; None where there is none, as over QUIC or a relay."""
        wanted = _peer_bytes(peer)
        ends = set()
        listed = await self._list_peers()
        for packed in (packed for info in listed if info.id == wanted for packed in info.addrs):
            try:
                end = endpoint_of(str(Multiaddr(packed)))
            except AddressError:  # through a relay
                continue
            if end.protocol == "tcp":
                ends.add((end.host, end.port))
        return DaemonConnection(self._pid, ends) if ends else None

    async def open_stream(
        self, peer: PeerId, protocol: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a stream to a peer that is connected or can be found.

        Raises:
            PeerUnreachableError: it can't be opened.
        """
        request = p2pd_pb2.Request(
            type=p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(
                peer=_peer_bytes(peer), proto=[protocol], timeout=max(1, round(timeout_s))
            ),
        )
        _, reader, writer = await self._request(peer, request, timeout_s)
        return reader, writer

    async def _list_peers(self) -> Sequence[Any]:
        """The peers that p2pd has connections to, each with the addresses at their other ends."""
        request = p2pd_pb2.Request(type=p2pd_pb2.Request.LIST_PEERS)
        response, _, writer = await self._request("list peers", request, _RPC_TIMEOUT_S)
        writer.transport.abort()
        return tuple(response.peers)

    async def _request(
        self, what: str, request: Any, timeout_s: float
    ) -> tuple[Any, asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_unix_connection(self._control_socket)
                response = p2pd_pb2.Response()
                try:
                    await write_pbmsg(writer, request)
                    await read_pbmsg_safe(reader, response)
                    if response.type == p2pd_pb2.Response.ERROR:
                        raise PeerUnreachableError(f"{what}: {response.error.msg:.1000}")
                except BaseException:
                    writer.transport.abort()
                    raise
        except TimeoutError as error:
            raise PeerUnreachableError(f"{what}: no answer within {timeout_s:.1f} s") from error
        except (OSError, EOFError) as error:
            raise PeerUnreachableError(f"{what}: this peer's p2pd does not answer: {error}") from error
        return response, reader, writer

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Call `handler` for each stream that a peer opens to us.

        Raises:
            ExchangeError: p2pd refuses or is gone.
        """

        async def handle(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await handler(PeerId(info.peer_id.to_base58()), reader, writer)

        try:
            await self._p2p.add_binary_stream_handler(protocol, handle)
        except (OSError, EOFError, P2PDaemonError) as error:
            raise ExchangeError(f"p2pd can't serve {protocol}: {error}") from error

    # -- the DHT -----------------------------------------------------------------------------------

    async def start_dht(self, key: str, check: RecordCheck) -> None:
        """Take part in the DHT, for records of one key only."""
        self._dht = await DHTNode.create(
            p2p=self._p2p,
            record_validator=_Validator(key, check),
            wait_timeout=_RPC_TIMEOUT_S,
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            ensure_bootstrap_success=False,
            strict=False,
        )
        _guard_dictionaries(self._dht.protocol)

    async def meet(self, peer: PeerId) -> None:
        """Make a connected peer and this one known to each other in the DHT; failing is harmless."""
        await self._dht.protocol.call_ping(PeerID.from_base58(peer))

    async def store(self, key: str, subkey: str, value: bytes, expires_s: float) -> bool:
        """Put a value into the DHT until `expires_s` (since 1970); False if nobody took it."""
        stored: bool = await self._dht.store(key, value, expires_s, subkey=subkey)
        return stored

    async def find(self, key: str) -> Mapping[str, tuple[bytes, float]]:
        """Subkey -> (value, expiration in seconds since 1970)."""
        found = await self._dht.get(key, latest=True)
        if found is None or not isinstance(found.value, dict):
            return {}
        return {subkey: (item.value, float(item.expiration_time)) for subkey, item in found.value.items()}

    async def close(self) -> None:
        """End the DHT node, our handlers, and every task that hivemind left in the loop."""
        owners = [self._p2p, self._p2p._client, self._p2p._client.control]
        if self._dht is not None:
            self._dht.is_alive = False
            owners += [self._dht, self._dht.protocol]
        self._p2p._terminate()
        ids = {id(owner) for owner in owners}
        while tasks := [task for task in asyncio.all_tasks() if _owner(task) in ids]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for own in self._control_socket.parent.glob("p2pclient-*.sock"):
            own.unlink(missing_ok=True)


def _owner(task: asyncio.Task[Any]) -> int:
    """The id of the object whose method a task runs; hivemind keeps no list of its tasks."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    if frame is None or task is asyncio.current_task():
        return 0
    return id(frame.f_locals.get("self"))


def _peer_bytes(peer: PeerId) -> bytes:
    packed: bytes = PeerID.from_base58(peer).to_bytes()
    return packed
