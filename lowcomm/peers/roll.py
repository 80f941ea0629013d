"""Who is here: the peers that are linked, and what follows from what they say, worked out once a change.

A round asks at each event who is live, who is where, and whom to follow, for each fragment. Most islands of a
swarm are at the same place, so the answers are kept by place, and cost a fragment what there are places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from lowcomm.ledger.certificate import Goodbye
from lowcomm.ledger.entry import Entry
from lowcomm.peers.acquaintances import MAX_KNOWN
from lowcomm.peers.bans import Bans
from lowcomm.peers.peer import MAX_LINKS, Chains, Peer
from lowcomm.types import Digest, Link, PeerId, PeerStatus, short

V = TypeVar("V")

LEAST_ACCUSERS = 2


class Roll:
    """The peers of one; call only from the exchange's loop.

    Attributes:
        linked: the peers that there is a link to.
        banned: those that this peer has put out.
        departed: peers that have said goodbye, and have not come back.
        names: what peers are called that were met, those that are gone as well.
        version: counts changes; whoever changes what is asked for here adds to it.
    """

    def __init__(self, banned: Bans) -> None:
        self.linked: dict[PeerId, Peer] = {}
        self.banned = banned
        self.departed: dict[PeerId, Goodbye] = {}
        self.names: dict[PeerId, str] = {}
        self.version = 0
        self._heard_awake_s: dict[PeerId, float] = {}
        self._known: tuple[int, list[Peer], Mapping[Chains, Sequence[Peer]], frozenset[PeerId]] | None = None

    def live(self, role: str = "island") -> list[Peer]:
        """Greeted peers of a role that are not leaving or silent, this one not among them."""
        return list(self._found()[0]) if role == "island" else self.look(role)

    @property
    def places(self) -> Mapping[Chains, Sequence[Peer]]:
        """Live islands that train, by where they are."""
        return self._found()[1]

    @property
    def untrusted(self) -> frozenset[PeerId]:
        """Whose history is not followed: who is on probation here, or out for most of the others that train.

        One accuser alone is not believed: it may be the liar.
        """
        return self._found()[2] | self.banned.probation

    def _found(self) -> tuple[list[Peer], Mapping[Chains, Sequence[Peer]], frozenset[PeerId]]:
        if self._known is None or self._known[0] != self.version:
            live, places = self.look("island"), dict[Chains, list[Peer]]()
            for peer in live:
                if peer.state.phase == "training":
                    places.setdefault(peer.state.chains, []).append(peer)
            self._known = self.version, live, places, self._accused(live)
        return self._known[1:]

    def look(self, role: str = "island") -> list[Peer]:
        """The same, looked up anew and kept nowhere; may be called from any thread."""
        return [
            peer
            for peer in list(self.linked.values())  # the network thread may change it meanwhile
            if peer.greeted
            and peer.state.role == role
            and peer.state.phase != "leaving"
            and not peer.silent
            and peer.id not in self.banned
        ]

    def _accused(self, live: Iterable[Peer]) -> frozenset[PeerId]:
        training = {peer.id: peer.state.put_out for peer in live if peer.state.phase == "training"}
        accusers = Counter(name for peer, out in training.items() if out for name in set(out) - {peer})
        return frozenset(
            name
            for name, count in accusers.items()
            if count >= LEAST_ACCUSERS and 2 * count > len(training.keys() - {name})
        )

    def reached(self, entry: Entry, voters: Iterable[PeerId], own: Chains, now_s: float) -> None:
        """These have committed an entry, or are about to.

        Args:
            own: where this peer is, which has.
        """
        fragment, head, after = entry.fragment, entry.hash, {own: own}
        for voter in voters:
            peer = self.linked.get(voter)
            if peer is None or not peer.greeted or peer.state.phase != "training":
                continue
            before = peer.state.chains
            if before not in after:
                after[before] = _after(before, own, fragment, entry, head)
            if after[before] is not before:
                self.version += 1
                peer.state, peer.reached_s = peer.state.at(after[before]), now_s
                if peer.progress is not None:
                    peer.progress.beat(now_s)

    def unheard_s(self, peer: PeerId, awake_s: float) -> float:
        """For how much of this peer's waking time another one has said nothing; 0 where it is heard.

        Args:
            awake_s: see `Heartbeats`.
        """
        entry = self.linked.get(peer)
        if entry is None or not entry.greeted:
            return awake_s - self._heard_awake_s.get(peer, 0.0)
        return awake_s - entry.heard_awake_s if entry.silent else 0.0

    def part(self, peer: PeerId) -> Peer | None:
        """A link is gone."""
        entry = self.linked.pop(peer, None)
        if entry is not None and entry.greeted:
            _keep_latest(self._heard_awake_s, peer, entry.heard_awake_s)
        return entry

    def called(self, peer: PeerId) -> str:
        """A peer in a message: its name, if it has told one, and the end of its id."""
        name = self.names.get(peer)
        return f"{name} ({short(peer)})" if name else short(peer)

    def learn_name(self, peer: PeerId, name: str) -> None:
        """Keep what a peer is called, also for when it is gone; of the latest that were met."""
        if name and self.names.get(peer) != name:
            _keep_latest(self.names, peer, name)

    def links(self) -> tuple[Link, ...]:
        """For observers."""
        greeted = [peer for peer in self.linked.values() if peer.greeted and peer.state.role != "observer"]
        return tuple((peer.id, peer.round_trip_s) for peer in greeted[:MAX_LINKS])

    def statuses(self, own: Peer, now_s: float) -> list[PeerStatus]:
        """All greeted peers and this one, by id."""
        return sorted(
            (
                PeerStatus(
                    peer=peer.id,
                    role=peer.state.role,
                    phase=peer.state.phase,
                    inner_step=peer.state.inner_step,
                    outer_steps=peer.state.outer_steps,
                    heads=peer.state.heads,
                    tokens_per_s=peer.state.tokens_per_s,
                    shard=peer.state.shard,
                    addresses=peer.addresses,
                    seen_s_ago=now_s - peer.seen_at_s,
                    name=peer.state.name,
                    loss=peer.state.loss,
                    links=self.links() if peer is own else peer.state.links,
                    trouble=peer.state.trouble,
                )
                for peer in [own, *self.linked.values()]
                if peer.greeted
            ),
            key=lambda status: status.peer,
        )


def _after(before: Chains, own: Chains, fragment: int, entry: Entry, head: Digest) -> Chains:
    """Where who has been there is once it has committed an entry."""
    standing = before.standing(fragment)
    if standing is None or standing.outer_step >= entry.outer_step:
        return before
    moved = before.moved(fragment, entry.outer_step, head, entry.total_tokens)
    return own if moved == own else moved


def _keep_latest(table: dict[PeerId, V], peer: PeerId, value: V) -> None:
    table.pop(peer, None)
    table[peer] = value
    while len(table) > MAX_KNOWN:
        del table[next(iter(table))]
