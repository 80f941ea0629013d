"""The table of links: who dials whom, which incoming stream belongs to which link."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges.base import Message, Receiver, Traffic
from lowcomm.exchanges.swarm.addresses import endpoint_of
from lowcomm.exchanges.swarm.connection import DaemonConnection
from lowcomm.exchanges.swarm.failures import PORT, places, reason
from lowcomm.exchanges.swarm.hivemind_node import HivemindNode
from lowcomm.exchanges.swarm.identity import Gatekeeper
from lowcomm.exchanges.swarm.link import CONTROL, OPEN_TIMEOUT_S, STREAM_NAME, Link
from lowcomm.exchanges.swarm.namesakes import NamedLink, Namesakes
from lowcomm.exchanges.swarm.streams import Incoming, Verdict
from lowcomm.exchanges.swarm.uplink import Uplink
from lowcomm.open_files import too_few
from lowcomm.types import PeerId, short

logger = logging.getLogger(__name__)

POLITE_S = 1.5
"""How long the peer with the higher id waits for the lower one to dial."""

MAX_STREAMS_PER_LINK = 17
"""One for control, 16 for bulk: each may hold one frame, so a member makes us hold 69 MB at most."""
MAX_UNOPENED = 64
"""Streams of strangers that have not said yet what they are for."""
MAX_STRANGERS = 32
"""Links to peers that have not greeted yet; others have to try again in a moment."""

_PROBE_S = 3.0
_DIAL_S = 8.0
_RETRY_S = (0.1, 0.2, 0.4, 0.8, 1.0)
_LEAVE_S = 1.0


class Links:
    """All links of this peer."""

    def __init__(
        self,
        node: HivemindNode,
        run_id: str,
        receiver: Receiver,
        traffic: Traffic,
        bulk_streams: int,
        on_up: Callable[[PeerId], None],
        gate: Gatekeeper | None = None,
        shown: str = "",
        namesakes: Namesakes | None = None,
    ) -> None:
        self._gate, self.shown, self.namesakes = gate, shown, namesakes
        if namesakes is not None:
            namesakes.drop = self._drop
        self._parting: set[asyncio.Task[None]] = set()
        self._on_up, self.uplink = on_up, Uplink()
        self.run_id, self.receiver = run_id, receiver
        self._node, self._traffic, self._bulk_streams = node, traffic, bulk_streams
        self._links: dict[PeerId, Link] = {}
        self._unopened: dict[Incoming, PeerId] = {}
        self._arrivals: dict[PeerId, set[asyncio.Future[None]]] = {}
        self._closed = False
        self._gone: str | None = None
        self._warned_of_files = False

    async def serve(self) -> None:
        """Accept streams from now on."""
        await self._node.serve(STREAM_NAME, self._on_stream)

    def up(self) -> frozenset[PeerId]:
        """The peers whose links are up."""
        return frozenset(peer for peer, link in self._links.items() if link.is_up)

    def get(self, peer: PeerId) -> Link:
        """The link to a peer.

        Raises:
            PeerUnreachableError: there is none.
        """
        link = self._links.get(peer)
        if link is None:
            raise PeerUnreachableError(f"{peer}: {self._gone or 'there is no link to it; connect first'}")
        return link

    def admit(self, peer: PeerId) -> None:
        """Read a peer's bulk streams from now on."""
        link = self._links.get(peer)
        if link is not None:
            link.admit()

    # -- dialling ----------------------------------------------------------------------------------

    async def connect(
        self, peer: PeerId, addresses: Sequence[str], timeout_s: float, *, patient: bool
    ) -> None:
        """Link to a peer.

        Args:
            patient: dial at once whatever the ids are, and go on while nobody listens there, as
                with an initial peer that may start a little later.

        Raises:
            PeerUnreachableError: not within `timeout_s`.
            JoinRefusedError: it is in another run.
        """
        if peer == self._node.peer_id:
            raise PeerUnreachableError(f"{peer}: that is this peer itself")
        last = f"no answer; {PORT}"
        try:
            async with asyncio.timeout(timeout_s):
                if not patient and self._node.peer_id > peer and await self._comes_up(peer):
                    return
                attempt = 0
                while True:
                    if self._gone is not None or self._closed:
                        raise PeerUnreachableError(f"{peer}: {self._gone or 'this peer left'}")
                    try:
                        await self._try(peer, addresses)
                        return
                    except _NobodyListensError as error:
                        if not patient:
                            raise
                        last = reason(str(error), addresses)
                    except PeerUnreachableError as error:
                        last = reason(str(error), addresses) or last
                    await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                    attempt += 1
        except TimeoutError as error:
            tried = f"at {places(addresses)}" if addresses else "(no address is known)"
            raise PeerUnreachableError(
                f"peer {short(peer)} can't be reached {tried} within {timeout_s:g} s: {last}"
            ) from error

    async def _comes_up(self, peer: PeerId) -> bool:
        """Whether the other side links to us within `POLITE_S`."""
        link = self._links.get(peer)
        if link is not None and link.is_up:
            return True
        arrival = asyncio.get_running_loop().create_future()
        self._arrivals.setdefault(peer, set()).add(arrival)
        try:
            done, _ = await asyncio.wait([arrival], timeout=POLITE_S)
            return bool(done)
        finally:
            self._arrivals[peer].discard(arrival)
            if not self._arrivals[peer]:
                del self._arrivals[peer]

    async def _try(self, peer: PeerId, addresses: Sequence[str]) -> None:
        if peer not in self._links:
            await self._reach(peer, addresses)
        link = self._links.get(peer)
        if link is None:
            link = self._add(peer)
            link.spawn(link.dial())
        await asyncio.shield(link.up)

    async def _reach(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Have a libp2p connection to the peer.

        libp2p holds back further dials for 5 s and more after one that failed, so plain TCP finds
        out first whether anybody listens.
        """
        if peer in await self._node.connected():
            return
        answers = await asyncio.gather(*(somebody_listens(address) for address in addresses))
        if addresses and not any(answers):
            raise _NobodyListensError(f"peer {short(peer)}: nobody listens at {places(addresses)}")
        await self._node.connect(peer, addresses, _DIAL_S)

    def _add(self, peer: PeerId) -> Link:
        link = Link(self, peer, self._bulk_streams)
        self._links[peer] = link
        return link

    # -- accepting ---------------------------------------------------------------------------------

    async def _on_stream(
        self, peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._closed:
            writer.transport.abort()
            return
        if len(self._unopened) >= MAX_UNOPENED:
            self._make_room()
        stream = Incoming(
            writer,
            on_open=lambda stream, message: self._on_open(peer, stream, message),
            on_end=lambda reason: self._on_early_end(peer, stream, reason),
            count=lambda size: self.count(peer, 0, size),
        )
        self._unopened[stream] = peer
        asyncio.get_running_loop().call_later(OPEN_TIMEOUT_S, self._expire, stream)
        stream.begin()

    def _make_room(self) -> None:
        """Close the oldest stream of whoever has most of them open without a word.

        So a peer that opens streams and says nothing keeps nobody else out.
        """
        counts = Counter(self._unopened.values())
        busiest = max(counts, key=lambda peer: counts[peer])
        self._expire(next(stream for stream, peer in self._unopened.items() if peer == busiest))

    def _expire(self, stream: Incoming) -> None:
        if self._unopened.pop(stream, None) is not None:
            stream.close()

    def _on_open(self, peer: PeerId, stream: Incoming, message: Message) -> tuple[Verdict, bytes]:
        self._unopened.pop(stream, None)
        verdict, reason = self._verdict(peer, stream, message)
        if verdict is not Verdict.OK:
            logger.debug("refused a stream of %s: %s", peer, verdict.name)
        return verdict, reason

    def _verdict(self, peer: PeerId, stream: Incoming, message: Message) -> tuple[Verdict, bytes]:
        verdict = self._verdict_on_stranger(peer, message)
        if verdict is not Verdict.OK:
            return verdict, b""
        link = self._links.get(peer)
        knocks = message.body.get("channel") == CONTROL and link is not None and link.answered
        if knocks and link is not None and self.namesakes is not None:
            judged = self.namesakes.judge(link, message.body)
            if judged is not None:
                return judged
        return self._verdict_on_peer(peer, stream, message), b""

    def _verdict_on_stranger(self, peer: PeerId, message: Message) -> Verdict:
        run, channel = message.body.get("run"), message.body.get("channel")
        token, answer = message.body.get("token"), message.body.get("answer")
        if not isinstance(channel, int) or not isinstance(token, str) or not isinstance(answer, str):
            return Verdict.MALFORMED
        if run != self.run_id:
            return Verdict.OTHER_RUN
        if self._gate is not None and not self._gate.admits(peer, message.body.get("pass")):
            return Verdict.NOT_ADMITTED
        if self._closed or self._gone is not None:
            return Verdict.CLOSING
        return Verdict.OK

    def _verdict_on_peer(self, peer: PeerId, stream: Incoming, message: Message) -> Verdict:
        channel, token, answer = (message.body[key] for key in ("channel", "token", "answer"))
        assert isinstance(channel, int)
        assert isinstance(token, str)
        link = self._links.get(peer)
        if channel != CONTROL:
            if link is None or link.peer_token != token or link.incoming_streams >= MAX_STREAMS_PER_LINK:
                return Verdict.STALE
            link.accept(stream, channel)
            return Verdict.OK
        if answer and (link is None or answer != link.token or link.answered):
            return Verdict.STALE
        if link is not None and link.answered:
            link.fail("the peer connected anew")
            link = None
        is_new = link is None
        if link is None:
            if sum(not other.admitted for other in self._links.values()) >= MAX_STRANGERS:
                return Verdict.BUSY
            link = self._add(peer)
        self._node.callers.members.add(peer)
        link.peer_token = token
        process = message.body.get("process")
        link.process = process if isinstance(process, str) else ""
        link.accept(stream, channel)
        if is_new:
            link.spawn(link.dial())
        return Verdict.OK

    def _on_early_end(self, peer: PeerId, stream: Incoming, reason: str) -> None:
        self._unopened.pop(stream, None)
        logger.debug("a stream of %s ended before it was opened: %s", peer, reason)

    # -- what links report -------------------------------------------------------------------------

    async def open_stream(
        self, peer: PeerId, name: str, timeout_s: float
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a stream to a connected peer, for its link."""
        return await self._node.open_stream(peer, name, timeout_s)

    async def connection_to(self, peer: PeerId) -> DaemonConnection | None:
        """p2pd's TCP connection to a peer."""
        return await self._node.connection_to(peer)

    def on_link_up(self, link: Link) -> None:
        """A link came up."""
        for arrival in self._arrivals.get(link.peer, ()):
            if not arrival.done():
                arrival.set_result(None)
        if not self._closed:
            self._check_files()
            self._on_up(link.peer)
            self.receiver.on_peer_up(link.peer)

    def _check_files(self) -> None:
        """Say it once where this process may not open as many files as its links need."""
        if not self._warned_of_files and (wrong := too_few(len(self._links))):
            self._warned_of_files = True
            logger.warning("%s", wrong)

    def on_link_down(self, link: Link, reason: str, was_up: bool) -> None:
        """A link ended, or never came up."""
        if self.namesakes is not None:
            self.namesakes.forget(link)
        if self._links.get(link.peer) is link:
            del self._links[link.peer]
            self._node.callers.members.discard(link.peer)
        if was_up and not self._closed:
            self.receiver.on_peer_down(link.peer, reason)

    def count(self, peer: PeerId, sent: int, received: int) -> None:
        """Add to the traffic."""
        self._traffic.count(peer, sent, received)

    # -- ending ------------------------------------------------------------------------------------

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        """Take a link down in order."""
        link = self._links.get(peer)
        if link is not None:
            await link.leave(reason, _LEAVE_S)

    def _drop(self, link: NamedLink, reason: str) -> None:
        """Take a link down, and p2pd's connection below it: a new process of the peer is to have its own."""
        if self._links.get(link.peer) is link:
            self._links[link.peer].fail(reason)
            task = asyncio.get_running_loop().create_task(self._node.disconnect(link.peer))
            self._parting.add(task)
            task.add_done_callback(self._parting.discard)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    def fail_all(self, reason: str) -> None:
        """The network below is gone: all links are down, until `resume`."""
        self._gone = reason
        for link in list(self._links.values()):
            link.fail(reason)

    async def resume(self, node: HivemindNode) -> None:
        """The network below is there again, on a new node.

        Raises:
            ExchangeError: it is gone again.
        """
        self._node = node
        await self.serve()
        self._gone = None

    async def close(self) -> None:
        """Leave all peers; no callback comes after this."""
        self._closed = True
        await asyncio.gather(*(link.leave("this peer left", _LEAVE_S) for link in list(self._links.values())))
        for stream in self._unopened:
            stream.close()
        self._unopened.clear()


class _NobodyListensError(PeerUnreachableError):
    """All addresses of a peer refuse connections."""


async def _listens(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def somebody_listens(address: str) -> bool:
    """Whether anybody listens on an address; True where only libp2p can find out (QUIC, relays, names)."""
    if "/p2p-circuit" in address:
        return True
    endpoint = endpoint_of(address)
    return endpoint.protocol != "tcp" or endpoint.is_name or await _listens(endpoint.host, endpoint.port)
