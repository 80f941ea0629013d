"""The exchange over the Internet: libp2p streams, and a directory in hivemind's DHT.

p2pd gives encryption, authenticated peer ids, QUIC, relays and NAT traversal; everything above it
(links, frames, back-pressure, the checks of what strangers send) is in this package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lowcomm.arguments import flag, number, path, texts, whole
from lowcomm.arguments import run_id as name_of_run
from lowcomm.clock import SystemClock
from lowcomm.errors import AddressError, ExchangeError, JoinRefusedError, PeerUnreachableError
from lowcomm.exchanges.base import Message, Receiver, Traffic
from lowcomm.exchanges.swarm.addresses import check_free, group_by_peer, most_reachable, peer_of
from lowcomm.exchanges.swarm.daemon import DaemonOptions
from lowcomm.exchanges.swarm.hivemind_node import HivemindNode, check_multiaddr
from lowcomm.exchanges.swarm.host import Host
from lowcomm.exchanges.swarm.identity import MESSAGES, Gatekeeper, Identity, IdentityFile, verify
from lowcomm.exchanges.swarm.links import Links, somebody_listens
from lowcomm.exchanges.swarm.namesakes import Namesakes
from lowcomm.methods import Spec
from lowcomm.open_files import MOST_LINKS, allow_links
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

_HEARD_OF_TIMEOUT_S = 8.0
_DIRECTORY_TIMEOUT_S = 15.0
_SELF_TIMEOUT_S = 5.0
_REDIAL_S, _REDIAL_LONGEST_S = 1.0, 60.0
MOST_STREAMS = 16

T = TypeVar("T")


class SwarmExchange:
    """A peer of the swarm; an `Exchange`.

    Args:
        run_id: peers of other runs are refused.
        options: of p2pd; with `auto_relay` the initial peers serve as relays.
        initial_peers: addresses of any live peers, each `[RUN_ID@]MULTIADDR/p2p/ID`; empty for the
            peer that founds the run.
        identity_path: file of the peer's key, made if missing; None takes a new identity each time.
        connect_timeout_s: how long `start` tries to reach an initial peer.
        streams: bulk streams to each peer; several fill a long link better than one.
        gate: who may be in the run; None = anybody.
    """

    def __init__(
        self,
        run_id: str,
        options: DaemonOptions,
        *,
        initial_peers: Sequence[str] = (),
        identity_path: Path | str | None = None,
        connect_timeout_s: float = 20.0,
        streams: int = 4,
        gate: Gatekeeper | None = None,
    ) -> None:
        self._gate = gate
        self._run_id, self._options, self._initial_peers = run_id, options, initial_peers
        self._identity_path = None if identity_path is None else Path(identity_path)
        self._connect_timeout_s, self._streams = connect_timeout_s, streams
        self._traffic = Traffic()
        self._identity: Identity | None = None
        self._identity_file: IdentityFile | None = None
        self._host: Host | None = None
        self._links: Links | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._receiver: Receiver | None = None
        self._fatal: JoinRefusedError | None = None

    @property
    def run_id(self) -> str:
        return self._run_id

    @property
    def peer_id(self) -> PeerId:
        return self._own().peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._host.addresses if self._host is not None else ()

    @property
    def join_string(self) -> str:
        """The one string that another peer needs as its initial peer: `RUN_ID@MULTIADDR`.

        Raises:
            ExchangeError: not started, or this peer listens nowhere.
        """
        if not self.addresses:
            raise ExchangeError("this peer has no address yet: start it first, with a listen address")
        return f"{self._run_id}@{most_reachable(self.addresses)}"

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    @property
    def founder(self) -> bool:
        return not self._initial_peers

    @property
    def daemon_pid(self) -> int | None:
        """The process id of p2pd, while it runs."""
        return self._host.pid if self._host is not None else None

    # -- life --------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        """Start p2pd, open for messages, reach an initial peer, or one of those `met`.

        Raises:
            AddressError, PortInUseError, JoinRefusedError, PeerUnreachableError: see `Links`.
            StorageError: the identity file can't be used.
            ExchangeError: p2pd does not work.
        """
        allow_links(MOST_LINKS)  # p2pd inherits it
        peers = group_by_peer(self._initial_peers, self._run_id)
        listen, announce = self._options.listen, self._options.announce
        for address in [*(a for group in peers.values() for a in group), *listen, *announce]:
            check_multiaddr(address)
        for address in listen:
            check_free(address)
        for address in announce:
            if "/tcp/0" in address or "/udp/0" in address:
                raise AddressError(f"announce address {address!r}: expected the port that others see, got 0")
        try:
            await self._start(receiver, peers, self._readable(met))
        except BaseException:
            await self.close()
            raise

    def _readable(self, met: Sequence[str]) -> dict[PeerId, list[str]]:
        """Those of which there is an address: what others have told, and a file has kept, ends nothing."""
        peers: dict[PeerId, list[str]] = {}
        for text in met:
            with contextlib.suppress(AddressError, JoinRefusedError):
                for peer, group in group_by_peer([text], self._run_id).items():
                    check_multiaddr(group[0])
                    peers.setdefault(peer, []).extend(group)
        return peers

    async def _start(
        self,
        receiver: Receiver,
        peers: Mapping[PeerId, Sequence[str]],
        met: Mapping[PeerId, Sequence[str]],
    ) -> None:
        if self._identity_path is not None:
            self._identity_file = IdentityFile(self._identity_path)
            self._identity = self._identity_file.identity
        else:
            self._identity = Identity.generate()
        options = self._options
        if options.auto_relay:
            options = replace(options, trusted_relays=[a for group in peers.values() for a in group])
        self._host = Host(
            self._run_id,
            self._identity,
            options,
            self._gate,
            on_down=self._on_daemon_exit,
            on_revived=self._on_revived,
        )
        namesakes = Namesakes(
            self._identity,
            self._run_id,
            SystemClock(),
            where=self._where,
            key_file=str(self._identity_path or ""),
            on_proven=self._on_namesake,
        )
        self._receiver = receiver
        await self._look_for_self(peers.get(self.peer_id, ()), namesakes)
        await self._host.start()
        self._links = Links(
            self._host.node,
            self._run_id,
            receiver,
            self._traffic,
            self._streams,
            on_up=self._meet,
            gate=self._gate,
            shown=self._gate.show(self._identity) if self._gate else "",
            namesakes=namesakes,
        )
        await self._links.serve()
        others = {
            peer: [*peers.get(peer, ()), *met.get(peer, ())]
            for peer in {**peers, **met}
            if peer != self.peer_id
        }
        if not self.founder:
            await self._join(others, peers)
        for peer, group in others.items():
            self._spawn(self._dial_again(peer, group))

    async def _look_for_self(self, addresses: Sequence[str], namesakes: Namesakes) -> None:
        """See that no other process answers with this identity where this peer was told to join.

        Its own address may be there because all peers get the same list. libp2p dials nobody of its own name,
        so a p2pd of another name asks, before this peer listens anywhere itself.

        Raises:
            JoinRefusedError: one does.
        """
        open_to = [address for address in addresses if await somebody_listens(address)]
        if not open_to:
            return
        asking = Host(
            self._run_id,
            Identity.generate(),
            DaemonOptions(relay=self._options.relay),
            None,
            on_down=lambda reason: None,
            on_revived=_nothing,
        )
        try:
            await asking.start()
            await asking.node.connect(self.peer_id, open_to, _SELF_TIMEOUT_S)
        except PeerUnreachableError:
            return  # somebody else's by now
        finally:
            await asking.close()
        raise namesakes.refusal(open_to[0].split("/p2p/")[0])

    def _where(self) -> str:
        return most_reachable(self.addresses).split("/p2p/")[0] if self.addresses else ""

    def _on_namesake(self, error: JoinRefusedError) -> None:
        """Another live process has this identity, and the older right to it."""
        if self._fatal is not None or self._closing is not None:
            return
        self._fatal = error
        if self._receiver is not None:
            self._receiver.on_fatal(error)
        asyncio.get_running_loop().call_soon(self._end_links, str(error))

    def _end_links(self, reason: str) -> None:
        if self._links is not None:
            self._links.fail_all(reason)

    async def _join(self, peers: Mapping[PeerId, Sequence[str]], named: Collection[PeerId]) -> None:
        """Link to all at once; one is enough, the others go on in the background.

        Args:
            named: the initial peers among them, of which errors tell.
        """
        if not peers:
            return
        links = self._links
        assert links is not None
        dials = {
            self._spawn(links.connect(peer, group, self._connect_timeout_s, patient=True)): peer
            for peer, group in peers.items()
        }
        pending = set(dials)
        errors: list[BaseException] = []
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if self._fatal is not None:
                raise self._fatal
            if any(dial.exception() is None for dial in done):
                return
            failed = [(dials[dial], error) for dial in done if (error := dial.exception()) is not None]
            errors += [error for peer, error in failed if peer in named]
        refused = [error for error in errors if isinstance(error, JoinRefusedError)]
        if refused:
            raise refused[0]
        raise PeerUnreachableError(
            "none of the initial peers could be reached: " + "; ".join(map(str, errors))
        ) from errors[0]

    async def _dial_again(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Link to a peer whenever there is no link to it, with pauses that grow up to a minute.

        Whoever was met in this process is dialled where it was last seen; this is where it was said to be,
        names resolved anew: so it is found after an outage of any length, and where its machine has another
        address now.
        """
        pause_s = _REDIAL_S
        while True:
            if peer not in self.connected():
                with contextlib.suppress(ExchangeError):
                    await self.connect(peer, addresses)
            await asyncio.sleep(pause_s)
            pause_s = min(_REDIAL_LONGEST_S, 2 * pause_s)

    async def close(self) -> None:
        """Leave in order; end p2pd, tasks, sockets. Idempotent."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._links is not None:
            await self._links.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._host is not None:
            await self._host.close()
        if self._identity_file is not None:
            self._identity_file.close()

    def _on_daemon_exit(self, reason: str) -> None:
        if self._links is not None:
            self._links.fail_all(reason)

    async def _on_revived(self, node: HivemindNode) -> None:
        if self._links is not None and self._closing is None and self._fatal is None:
            await self._links.resume(node)

    # -- links and messages ------------------------------------------------------------------------

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Link to a peer; of two that hear of each other at once, the lower id dials.

        Raises:
            AddressError: none of the addresses is one.
            PeerUnreachableError: it can't be reached within 8 s.
            JoinRefusedError: it is in another run.
        """
        usable: list[str] = []
        problem: AddressError | None = None
        for address in addresses:  # gossip: one that is wrong must not spoil the others
            try:
                check_multiaddr(address)
                if peer_of(address) != peer:
                    raise AddressError(f"address {address!r:.200}: expected one of peer {peer}")
                usable.append(address)
            except AddressError as error:
                problem = error
        if problem is not None and not usable:
            raise problem
        await self._running().connect(peer, usable, _HEARD_OF_TIMEOUT_S, patient=False)

    def connected(self) -> frozenset[PeerId]:
        """The peers that messages flow to and from."""
        return frozenset() if self._links is None else self._links.up()

    def admit(self, peer: PeerId) -> None:
        """Read the peer's bulk streams from now on."""
        if self._links is not None:
            self._links.admit(peer)

    async def disconnect(self, peer: PeerId) -> None:
        """Drop a link; control messages already sent still arrive."""
        await self._running().disconnect(peer, "the link was closed")

    async def send(self, peer: PeerId, message: Message) -> None:
        """Send on the control stream."""
        await self._running().get(peer).send(message)

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """Send on one of the bulk streams; waits while that is full."""
        await self._running().get(peer).send_bulk(message)

    # -- directory and signatures ------------------------------------------------------------------

    async def publish(self, record: bytes, ttl_s: float) -> None:
        """Sign and store this peer's record.

        Raises:
            ProtocolError: above 16 KiB or ten minutes.
            ExchangeError: the DHT did not take it in time.
        """
        host = self._host
        if host is None or self._links is None or self._closing is not None:
            raise PeerUnreachableError("this peer is not running")
        await host.refresh_addresses()
        await self._in_time(host.directory.publish(record, ttl_s), "publish")

    async def discover(self) -> Mapping[PeerId, bytes]:
        """The valid records of the run.

        Raises:
            ExchangeError: the DHT did not answer in time.
        """
        if self._host is None or self._links is None or self._closing is not None:
            raise PeerUnreachableError("this peer is not running")
        return await self._in_time(self._host.directory.discover(), "discover")

    async def _in_time(self, call: Coroutine[Any, Any, T], what: str) -> T:
        try:
            async with asyncio.timeout(_DIRECTORY_TIMEOUT_S):
                return await call
        except TimeoutError as error:
            raise ExchangeError(f"{what}: no answer within {_DIRECTORY_TIMEOUT_S:g} s") from error

    def sign(self, data: bytes) -> bytes:
        """An ed25519 signature, 64 bytes."""
        return self._own().sign(MESSAGES, data)

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether `signature` over `data` is `peer`'s; needs no link to it."""
        return verify(peer, MESSAGES, data, signature)

    # ----------------------------------------------------------------------------------------------

    def _own(self) -> Identity:
        if self._identity is None:
            raise ExchangeError("the exchange has no identity yet: start it first")
        return self._identity

    def _running(self) -> Links:
        if self._links is None or self._closing is not None:
            raise PeerUnreachableError("this peer is not running: it was not started, or it was closed")
        return self._links

    def _meet(self, peer: PeerId) -> None:
        if self._host is not None:
            self._spawn(self._host.node.meet(peer))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # may fail unseen
        return task


async def _nothing(node: HivemindNode) -> None:
    """A p2pd that only asks has nothing to bring back."""


def swarm(
    *,
    run_id: str,
    initial_peers: Sequence[str] | str = (),
    listen: Sequence[str] | str = ("/ip4/127.0.0.1/tcp/0",),
    announce: Sequence[str] | str = (),
    identity_path: Path | str | None = None,
    connect_timeout_s: float = 20.0,
    streams: int = 4,
    relay: bool = True,
    auto_relay: bool = False,
    nat_port_map: bool = False,
    gate: Gatekeeper | None = None,
) -> SwarmExchange:
    """An exchange over the Internet. A single address may stand for a list of one.

    Args:
        run_id: peers of other runs are refused.
        initial_peers: addresses of any live peers, each `[RUN_ID@]MULTIADDR/p2p/ID`; empty for the
            peer that founds the run.
        listen: multiaddrs to listen on, `/ip4/0.0.0.0/tcp/31337` or `/ip4/0.0.0.0/udp/31337/quic-v1`.
        announce: multiaddrs to tell others, where those found are not the right ones (port forwarding).
        identity_path: file of the peer's key, made if missing; None takes a new identity each time.
        connect_timeout_s: how long joining tries to reach an initial peer.
        streams: bulk streams to each peer; several fill a long link better than one.
        relay: whether links may pass through, and this peer may serve as, a circuit relay.
        auto_relay: look for a relay among the initial peers if this peer can't be reached from outside.
        nat_port_map: ask the router for a port (UPnP, NAT-PMP).
        gate: who may be in the run; None = anybody.

    Raises:
        ConfigError: an argument is of another type, or out of range.
    """
    return SwarmExchange(
        name_of_run("exchanges.swarm: run_id", run_id),
        DaemonOptions(
            listen=texts("exchanges.swarm: listen", listen, "/ip4/0.0.0.0/tcp/31337"),
            announce=texts("exchanges.swarm: announce", announce, "/ip4/203.0.113.5/tcp/31337"),
            relay=flag("exchanges.swarm: relay", relay),
            auto_relay=flag("exchanges.swarm: auto_relay", auto_relay),
            nat_port_map=flag("exchanges.swarm: nat_port_map", nat_port_map),
        ),
        initial_peers=texts("exchanges.swarm: initial_peers", initial_peers, "my-run@/ip4/.../p2p/..."),
        identity_path=path("exchanges.swarm: identity_path", identity_path),
        connect_timeout_s=number("exchanges.swarm: connect_timeout_s", connect_timeout_s, above=0),
        streams=whole("exchanges.swarm: streams", streams, least=1, most=MOST_STREAMS),
        gate=gate,
    )


SPEC = Spec(name="swarm", make=swarm, about="over the Internet")
