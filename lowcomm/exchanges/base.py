"""The seam between the round and the network: messages between the peers of a run, and who is who.

An exchange knows nothing of rounds, ledgers or training. It is three things, and whoever needs one of them
takes that one: `Links` to the other peers, the `Directory` of the run, and the `Signer` of this peer's
words. Links give each peer two channels to each
other peer: *control* (small, never behind bulk data) and *bulk* (large payloads, with
back-pressure). Messages of one channel between two peers may overtake each other on bulk (it may
be striped); control keeps its order. Everything runs in one asyncio loop, that of `start`.

`loopback` (threads of one process), `process_group` (gloo) and `swarm` (hivemind) implement it;
tests/exchanges/test_contract.py holds for all three.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lowcomm.errors import ExchangeError
from lowcomm.types import Json, PeerId

MAX_BODY_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 4 << 20
"""Larger frames are refused from their header alone, before anything is allocated."""

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        kind: what it is; the receiver looks up the schema of `body` by it.
        body: plain values, packed with msgpack; at most `MAX_BODY_BYTES`.
        payload: raw bytes; at most `MAX_PAYLOAD_BYTES`; empty on most control messages.
    """

    kind: str
    body: Mapping[str, Json]
    payload: Buffer = b""


@dataclass(slots=True)
class Traffic:
    """Bytes on this peer's sockets since it started, headers included; only ever grows.

    Attributes:
        by_peer: to and from each.
        from_peer: from each; grows with every piece, long before a large message is complete.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    by_peer: dict[PeerId, int] = field(default_factory=dict)
    from_peer: dict[PeerId, int] = field(default_factory=dict)

    def count(self, peer: PeerId, sent: int = 0, received: int = 0) -> None:
        """Add what went to a peer, and what came from it."""
        self.sent_bytes += sent
        self.received_bytes += received
        self.by_peer[peer] = self.by_peer.get(peer, 0) + sent + received
        if received:
            self.from_peer[peer] = self.from_peer.get(peer, 0) + received


class Receiver(Protocol):
    """What an exchange calls, always in its own event loop."""

    def on_message(self, peer: PeerId, message: Message) -> None:
        """A control message. Must not block; must not raise."""
        ...

    async def on_bulk(self, peer: PeerId, message: Message) -> None:
        """A bulk message. While this waits, nothing more is read from that stream (back-pressure)."""
        ...

    def on_peer_up(self, peer: PeerId) -> None:
        """Messages flow in both directions now."""
        ...

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        """The link broke: the peer died, left, or the path to it did."""
        ...

    def on_fatal(self, error: ExchangeError) -> None:
        """This peer may not be in the run any more; its links are about to end."""
        ...


class Links(Protocol):
    """Authenticated messages to and from the peers of a run."""

    @property
    def traffic(self) -> Traffic: ...

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        """Open for messages and reach the initial peers.

        Args:
            met: shared strings of peers that an earlier process of this one knew, dialled as well: any of
                them is as good as an initial peer, and where none was named nobody is waited for.

        Raises:
            AddressError: an initial peer's address can't be parsed.
            PortInUseError: a listening port is taken.
            PeerUnreachableError: initial peers were named, and neither they nor those met answered.
        """
        ...

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Link to a peer that was heard of; returns when `on_peer_up` was called for it.

        Raises:
            PeerUnreachableError: it can't be reached.
        """
        ...

    def connected(self) -> frozenset[PeerId]:
        """The peers that messages flow to and from."""
        ...

    def admit(self, peer: PeerId) -> None:
        """Read the peer's bulk messages from now on, as it has greeted and fits.

        Until then `swarm` reads none, so a stranger with a link can't fill memory; the others, whose
        peers are not strangers, don't wait for it.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Drop the link; `on_peer_down` is called for it if it was up."""
        ...

    async def send(self, peer: PeerId, message: Message) -> None:
        """Send on the control channel; returns when handed to the transport.

        Raises:
            PeerUnreachableError: there is no link, or it broke.
        """
        ...

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """Send on the bulk channel; waits while the transport is full.

        The payload must not change until this returns.

        Raises:
            PeerUnreachableError: there is no link, or it broke.
        """
        ...

    async def close(self) -> None:
        """Leave: end all links, children, sockets and tasks. Idempotent."""
        ...


class Directory(Protocol):
    """How the peers of a run find each other, and this one."""

    @property
    def addresses(self) -> Sequence[str]:
        """How others reach this peer; empty where an address means nothing."""
        ...

    @property
    def join_string(self) -> str:
        """What another site needs to join: run id and the address it most likely reaches; or empty."""
        ...

    @property
    def founder(self) -> bool:
        """True where no peer was named to join through, so that this one may found the run."""
        ...

    async def publish(self, record: bytes, ttl_s: float) -> None:
        """Put this peer's own signed record into the run's directory for `ttl_s` seconds."""
        ...

    async def discover(self) -> Mapping[PeerId, bytes]:
        """The valid records of the directory, this peer's own included."""
        ...


class Signer(Protocol):
    """Who this peer is, and whose words are whose."""

    @property
    def run_id(self) -> str: ...

    @property
    def peer_id(self) -> PeerId:
        """This peer's name; known once its links are started."""
        ...

    def sign(self, data: bytes) -> bytes:
        """Sign with this peer's identity."""
        ...

    def verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        """Whether `signature` over `data` is `peer`'s."""
        ...


class Exchange(Links, Directory, Signer, Protocol):
    """All three, as one object: what `OuterLoop` takes, and hands on in parts."""


def lacks(given: object) -> list[str]:
    """What an object would still need to be an exchange."""
    return [
        name
        for part in (Links, Directory, Signer)
        for name in vars(part)
        if not name.startswith("_") and inspect.getattr_static(given, name, None) is None
    ]
