"""Heartbeats: who lives, told so that it costs an island the same in a swarm of any size.

At each heartbeat an island asks `ASKED` of those it is linked to, in turn, and tells them its state; where
there are no more than that, it asks all. A silence is counted from the first question that got no answer, by
everybody for itself, so how often a link is asked changes nothing of how long a silence may be. Who gets no
answer says so (`doubt`), and everybody who hears it asks at once: a probe that fails is told, as in SWIM
(Das, Gupta, Motivala 2002), but nobody's word is taken for it. So in a large swarm a silence is noticed by
all within about two heartbeats of when it is noticed in a small one (docs/design/0022-size.md).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import MAX_NAME, Fields
from lowcomm.peers.failure_detector import AdaptiveTimeout
from lowcomm.peers.peer import Peer
from lowcomm.types import Digest, Json, PeerId

ASKED = 4
"""Peers that are asked at a heartbeat."""
LOOKS = 4
"""A heartbeat is so many looks at who is silent."""
SILENT_BEATS = 2.5
"""Nobody counts as silent sooner."""
STALLED_BEATS = 5.0
"""Nobody counts as stalled sooner."""
DOUBT_BEATS = 1.5
"""Who owes an answer for so long is asked by the others, too."""
APART_BEATS = 0.9
"""A link is not asked again sooner."""
ROUND_TRIPS_KEPT = 1_000


class Heartbeats:
    """Asks and answers; call only from the exchange's loop.

    Args:
        linked: the peers, by id; changed by the owner.
        post: sends a control message.
        tell_state: sends this peer's state to another.

    Attributes:
        awake_s: seconds for which this peer has listened; time in which it stood still is not among them.
        round_trips_s: what the latest heartbeats took to other islands and back, the newest last.
    """

    def __init__(
        self,
        linked: Mapping[PeerId, Peer],
        heartbeat_s: float,
        lease_s: float,
        post: Callable[[PeerId, Message], None],
        tell_state: Callable[[Peer], None],
    ) -> None:
        self._linked, self._post, self._tell_state = linked, post, tell_state
        self._heartbeat_s, self._lease_s = heartbeat_s, lease_s
        self.awake_s = 0.0
        self.round_trips_s: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)
        self._turn: deque[PeerId] = deque()
        self._looked_s = 0.0
        self._came: dict[PeerId, int] = {}

    @property
    def reach_all(self) -> bool:
        """Whether each heartbeat reaches everybody."""
        return len(self._linked) <= ASKED

    def meet(self, peer: Peer, now_s: float) -> None:
        """A link came up."""
        peer.seen_at_s = peer.counted_at_s = now_s
        peer.silence = AdaptiveTimeout(SILENT_BEATS * self._heartbeat_s, self._lease_s, now_s)
        peer.progress = AdaptiveTimeout(STALLED_BEATS * self._heartbeat_s, math.inf, now_s)
        if peer.id not in self._turn:
            self._turn.append(peer.id)

    def heard(self, peer: Peer, now_s: float) -> bool:
        """Anything came from a peer; whether it had been silent."""
        peer.seen_at_s, peer.heard_awake_s = now_s, self.awake_s
        if peer.silence is not None and peer.quiet_since_s < math.inf:
            peer.silence.beat(now_s)
        elif peer.silence is not None:
            peer.silence.resume(now_s)
        peer.quiet_since_s, peer.doubted = math.inf, False
        was_silent, peer.silent = peer.silent, False
        return was_silent

    def beat(self, now_s: float) -> list[Peer]:
        """A heartbeat is due.

        Returns:
            Those whose lease has run out.
        """
        for _ in range(min(ASKED, len(self._turn))):
            name = self._turn.popleft()
            if (peer := self._linked.get(name)) is not None:
                self._turn.append(name)
                self.ask(peer, now_s)
        over = []
        for peer in self._linked.values():
            if not peer.greeted and now_s - peer.seen_at_s > self._lease_s:
                over.append(peer)
            elif peer.quiet_since_s < math.inf:
                self._insist(peer, now_s)
                if now_s - peer.quiet_since_s > self._lease_s:
                    over.append(peer)
        return over

    def ask(self, peer: Peer, now_s: float) -> None:
        """Tell a peer this one's state, and ask for a sign of life, unless that has just been done."""
        if not peer.greeted or now_s - peer.pinged_s < APART_BEATS * self._heartbeat_s:
            return
        if peer.quiet_since_s == math.inf:
            peer.quiet_since_s = max(peer.seen_at_s, now_s - self._heartbeat_s)
            peer.heard_awake_s = max(peer.heard_awake_s, self.awake_s - self._heartbeat_s)
            if peer.silence is not None:
                peer.silence.wait(now_s, self._heartbeat_s)
        peer.pinged_s = now_s
        self._tell_state(peer)
        self._post(peer.id, Message("ping", {"sent_s": now_s}))

    def ask_after(self, name: PeerId, since_s: float, now_s: float) -> None:
        """Ask a peer that has not answered anything that it was asked since then."""
        if (peer := self._linked.get(name)) is not None and peer.answered_s < since_s:
            self.ask(peer, now_s)

    def _insist(self, peer: Peer, now_s: float) -> None:
        self.ask(peer, now_s)
        late = now_s - peer.quiet_since_s >= DOUBT_BEATS * self._heartbeat_s
        if late and not peer.doubted and not self.reach_all:
            peer.doubted = True
            for other in self._linked.values():
                if other.greeted and other is not peer:
                    self._post(other.id, Message("doubt", {"peer": peer.id}))

    def on_doubt(self, fields: Fields, now_s: float) -> None:
        """A peer has had no answer of another one: see for oneself."""
        peer = self._linked.get(PeerId(fields.text("peer", MAX_NAME)))
        if peer is not None and now_s - peer.seen_at_s > self._heartbeat_s:
            peer.doubted = True
            self.ask(peer, now_s)

    def on_ping(self, peer: PeerId, fields: Fields) -> None:
        """A heartbeat that is timed: give the peer its stamp back, and say what is known of it."""
        known = self._linked.get(peer)
        if known is not None:
            body: dict[str, Json] = {"sent_s": fields.number("sent_s"), "knows": known.state.chains.position}
            self._post(peer, Message("pong", body))

    def on_pong(self, peer: PeerId, fields: Fields, now_s: float) -> None:
        """A heartbeat has gone to the peer and back; what a peer makes up misleads nobody but readers.

        Raises:
            ProtocolError: its stamp is of the future.
        """
        sent_s, knows = fields.number("sent_s"), Digest(fields.text("knows"))
        if sent_s > now_s:
            raise ProtocolError(f"pong.sent_s: expected no time to come, got one in {sent_s - now_s:.3g} s")
        known = self._linked.get(peer)
        if known is not None:
            known.round_trip_s, known.knows = now_s - sent_s, knows
            known.answered_s = max(known.answered_s, sent_s)
            if known.state.role == "island":
                self.round_trips_s.append(now_s - sent_s)

    def listen(self, now_s: float, came: Mapping[PeerId, int]) -> list[Peer]:
        """Notice who makes no steps any more, and who has fallen silent.

        Args:
            came: bytes from each peer until now.

        Returns:
            Those who have fallen silent.
        """
        step_s = self._heartbeat_s / LOOKS
        self.awake_s += min(now_s - self._looked_s, 2 * step_s)
        self._looked_s = now_s
        fallen = []
        for peer in self._linked.values():
            if peer.progress is not None:
                peer.stalled = peer.progress.look(now_s, 2 * step_s)
            if peer.silence is None or peer.quiet_since_s == math.inf:
                continue
            came_now = came.get(peer.id, 0)
            if came_now > self._came.get(peer.id, came_now):
                peer.silence.resume(now_s)  # a long message of which a part came is no silence
            self._came[peer.id] = came_now
            if peer.silence.look(now_s, 2 * step_s) and not peer.silent:
                peer.silent = True
                fallen.append(peer)
        return fallen

    def part(self, peer: PeerId) -> None:
        """A link is gone."""
        self._came.pop(peer, None)
