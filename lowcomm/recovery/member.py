"""A peer of the run as its recovery and its island's calls see it; `lowcomm.outer.node.Node` is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple

from lowcomm.exchanges.base import Directory, Links, Signer
from lowcomm.ledger.blobs import Blobs
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.recorder import Recorder
from lowcomm.ledger.state import OuterState
from lowcomm.peers.notice import Notice
from lowcomm.peers.remembered import RememberedPeers
from lowcomm.peers.requests import Requests
from lowcomm.peers.shard_claims import ShardClaims
from lowcomm.peers.table import Peers
from lowcomm.recovery.forks import Switch
from lowcomm.rounds.context import Context
from lowcomm.rounds.contribution import Accepted
from lowcomm.rounds.round import FragmentRound

T = TypeVar("T")
A = TypeVarTuple("A")


class Late(Protocol):
    """What no call of the island has counted yet."""

    def switched(self, fragment: int, switch: Switch) -> None:
        """A state was taken over."""
        ...

    def take_late(self, fragment: int) -> list[Entry]:
        """The entries committed since the last call for a fragment."""
        ...


class Member(Protocol):
    """This peer: what it owns, and what recovery asks it to do."""

    changed: Notice
    links: Links
    directory: Directory
    signer: Signer
    state: OuterState
    peers: Peers
    requests: Requests
    blobs: Blobs
    context: Context
    recorder: Recorder
    remembered: RememberedPeers
    shard_claims: ShardClaims
    folder: Path | None
    pool: Executor
    grace_s: float

    @property
    def rounds(self) -> Sequence[FragmentRound]:
        """One per fragment."""
        ...

    @property
    def submissions(self) -> Late:
        """The island's own part."""
        ...

    @property
    def deadline_s(self) -> float:
        """Of a round."""
        ...

    async def in_pool(self, work: Callable[[*A], T], *args: *A) -> T:
        """Do in a worker thread what would keep the network waiting."""
        ...

    def adopt(self, accepted: Accepted, certificate: Certificate) -> None:
        """Commit an entry that another peer has committed; its certificate is checked."""
        ...

    def publish_position(self) -> None:
        """Tell everybody where the chains are."""
        ...

    def note_others(self) -> None:
        """Keep in the run folder which other islands are here."""
        ...

    def raise_fatal(self) -> None:
        """Raise what ended this peer's part in the run."""
        ...

    def raise_if_refused(self) -> None:
        """Raise what a peer refused this one for."""
        ...

    def take_dropped(self) -> list[str]:
        """Peers that broke the protocol since the last call, as `peer: reason`."""
        ...
