"""Who is in the swarm: greetings, signs of life, leases, and finding those not met yet.

Every pair of peers greets with `hello` (digests of shared settings and layout) when their link comes up;
peers that disagree tell each other these lists, and refuse each other with what differs. Then each tells its
`state` with heartbeats and at every change. A peer silent for longer than its lease is dropped. Peers are
found through the initial ones, through what peers tell of each other, and through the DHT.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgpack

from lowcomm.errors import ExchangeError, PeerUnreachableError, ProtocolError
from lowcomm.exchanges.base import Exchange, Message
from lowcomm.exchanges.fields import Fields, checked_text
from lowcomm.ledger.certificate import Goodbye, goodbye_bytes
from lowcomm.ledger.entry import Entry
from lowcomm.peers.acquaintances import MAX_KNOWN, Acquaintances, record_addresses
from lowcomm.peers.bans import BAN_S, Bans
from lowcomm.peers.heartbeats import LOOKS, Heartbeats
from lowcomm.peers.peer import (
    BURST_MESSAGES,
    MAX_PUT_OUT,
    MAX_TROUBLE,
    Peer,
    Posted,
    State,
    parse_state,
)
from lowcomm.peers.requests import Requests
from lowcomm.peers.roll import Roll
from lowcomm.peers.terms import LAYOUT, SHARED, Differences, Terms
from lowcomm.types import Digest, Json, Layout, PeerId, PeerStatus

logger = logging.getLogger(__name__)

PROTOCOL = 12
RECORD_TTL_S = 60.0
STRANGERS_SAY = frozenset(("hello", "refuse", "dropped", "terms?", "terms"))
EXPLAIN_S = 20.0
"""Whoever doesn't fit has so long for each page of what it trains with."""
MESSAGES_PER_S = 1_000.0
"""Control messages of one peer, after a burst; the busiest honest one, which takes a snapshot, sends
hundreds."""


class Peers:
    """The view of the swarm; call only from the exchange's loop.

    Args:
        exchange: started by `start`.
        shared: what must be equal on all peers.
        layout: the model's tensors; empty for peers without a model (seed, observer).
        state: this peer's own state; change it and call `announce`.
        on_change: called after anything changed that a round could care about.
        on_silent: called when a peer has been silent for longer than it ever is; it may come back.
        on_refused: called with the reasons when a peer and this one don't fit together.
        ban_s: seconds that a peer is out for the first time; 0 = for good.

    Attributes:
        roll: who is here; `linked`, `names`, `banned` and `departed` are its tables.
        heartbeats: who is asked for a sign of life, and when.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        shared: Mapping[str, Json],
        layout: Layout,
        state: State,
        heartbeat_s: float,
        lease_s: float,
        on_change: Callable[[], None],
        on_silent: Callable[[PeerId, str], None] = lambda peer, reason: None,
        on_refused: Callable[[PeerId, list[str]], None],
        ban_s: float = BAN_S,
    ) -> None:
        self._exchange = exchange
        self._terms = Terms(shared, layout)
        self._requests = Requests(exchange, lambda: EXPLAIN_S)
        self.state = state
        self._posted = self._told = Posted()
        self._heartbeat_s = heartbeat_s
        self._on_change, self._on_refused, self._on_silent = on_change, on_refused, on_silent
        self.roll = Roll(Bans(ban_s))
        self.linked, self.names = self.roll.linked, self.roll.names
        self.banned, self.departed = self.roll.banned, self.roll.departed
        self.heartbeats = Heartbeats(self.linked, heartbeat_s, lease_s, self.post, self._tell_state)
        self._tasks: set[asyncio.Task[None]] = set()
        self.known = Acquaintances(
            exchange, exchange, self.linked.__contains__, self.departed.__contains__, self._spawn
        )

    def start(self) -> None:
        """Begin heartbeats and discovery."""
        self._spawn(self._beat())
        self._spawn(self._listen())
        self._spawn(self._discover())

    def _changed(self) -> None:
        self.roll.version += 1
        self._on_change()

    async def stop(self) -> None:
        """End all tasks of this object."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def version(self) -> int:
        """Counts changes of who is here, and of what they say that matters."""
        return self.roll.version

    def live(self, role: str = "island") -> list[Peer]:
        """See `Roll`."""
        return self.roll.live(role)

    def called(self, peer: PeerId) -> str:
        """See `Roll`."""
        return self.roll.called(peer)

    def unheard_s(self, peer: PeerId) -> float:
        """For how much of this peer's waking time another one has said nothing; 0 where it is heard."""
        return self.roll.unheard_s(peer, self.heartbeats.awake_s)

    def statuses(self) -> list[PeerStatus]:
        """All greeted peers and this one, by id."""
        now_s, me = asyncio.get_running_loop().time(), self._exchange
        own = Peer(me.peer_id, self.own_state(), tuple(me.addresses), greeted=True, seen_at_s=now_s)
        return self.roll.statuses(own, now_s)

    def dialing(self) -> bool:
        """Whether a link to a peer that was heard of is being made, or a greeting is on its way.

        Until then `live` may lack islands, and with them the shards that they have claimed.
        """
        return self.known.dialing or any(
            not (peer.greeted and peer.introduced) for peer in self.linked.values()
        )

    def announce(self) -> None:
        """Tell all linked peers this peer's state now."""
        body = self.own_state().to_json()
        for peer in list(self.linked.values()):
            if peer.state.role == "observer":
                self._show_links(peer.id)
            elif peer.greeted:
                self.post(peer.id, Message("state", body))

    def say(self, **changes: Any) -> None:
        """Change fields of this peer's own state, for those who are told of it next."""
        self.state = replace(self.state, **changes)

    def progressed(self, posted: Posted) -> None:
        """Take what is to be told from now on; the one call that is the training thread's."""
        self._posted = posted

    def own_state(self) -> State:
        """What this peer says of itself now."""
        posted = self._posted
        if posted is not self._told:  # else what joining has set since then stands
            self._told = posted
            self.say(inner_step=posted.inner_step, tokens_per_s=posted.tokens_per_s, loss=posted.loss)
        self.say(put_out=self.banned.names()[-MAX_PUT_OUT:])
        return self.state

    def announce_commit(self, entry: Entry, voters: Iterable[PeerId]) -> None:
        """This peer has committed an entry, as its voters have, or are about to.

        They know it of each other, so in a large swarm nobody has to be told; whoever is not there yet hears
        of it with the next heartbeats.
        """
        self.roll.reached(entry, voters, self.state.chains, asyncio.get_running_loop().time())
        if self.heartbeats.reach_all:
            self.announce()

    def _tell_state(self, peer: Peer) -> None:
        """Its chains only where the peer doesn't know them, by its latest answer; founders if they decide."""
        state = self.own_state()
        chains = peer.knows != state.chains.position
        told = state.to_json(chains=chains, founders=not all(state.outer_steps))
        self.post(peer.id, Message("state", told))

    def _show_links(self, observer: PeerId) -> None:
        """Tell an observer this peer's links and trouble, too, which is too much for each heartbeat."""
        links: list[Json] = [[peer, round_trip_s] for peer, round_trip_s in self.roll.links()]
        more: dict[str, Json] = {"links": links, "trouble": self.state.trouble[:MAX_TROUBLE]}
        self.post(observer, Message("state", {**self.own_state().to_json(), **more}))

    def post(self, peer: PeerId, message: Message) -> None:
        """Send a control message in the background; a broken link shows up as `on_peer_down`."""
        self._spawn(self._send(peer, message))

    async def _send(self, peer: PeerId, message: Message) -> None:
        try:
            await self._exchange.send(peer, message)
        except PeerUnreachableError:
            return

    def on_peer_up(self, peer: PeerId) -> None:
        """A link came up: greet."""
        if peer in self.banned:
            reason = self.banned.reason(peer, asyncio.get_running_loop().time())
            self._spawn(self._put_out(peer, reason))
            return
        self.linked[peer] = Peer(peer)
        self.roll.version += 1
        self.heartbeats.meet(self.linked[peer], asyncio.get_running_loop().time())
        self._greet(peer)

    def _greet(self, peer: PeerId) -> None:
        entry = self.linked.get(peer)
        body: dict[str, Json] = {
            "protocol": PROTOCOL,
            "greeted": int(entry is not None and entry.greeted),
            **self._terms.digests,
            "addresses": list(self._exchange.addresses),
        }
        self.post(peer, Message("hello", {**body, "state": self.own_state().to_json()}))

    def heard(self, peer: PeerId) -> None:
        """Anything came from a peer, and be it a piece of a transfer: it lives."""
        entry = self.linked.get(peer)
        if entry is None or not entry.greeted:
            return  # who doesn't greet is not kept by what else it sends
        if self.heartbeats.heard(entry, asyncio.get_running_loop().time()):
            self._changed()

    def is_heard(self, peer: PeerId) -> bool:
        """Whether anything that a peer says still matters: not once it was put out or found not to fit."""
        entry = self.linked.get(peer)
        return entry is not None and not entry.unfit and peer not in self.banned

    def admit_message(self, peer: PeerId, kind: str) -> bool:
        """Whether a control message is to be read.

        What comes before a peer's hello is not: an honest one sends some where a link came up twice, or its
        hello was lost, and repeats the hello.

        Raises:
            ProtocolError: it sends more than any peer has reason to.
        """
        entry = self.linked.get(peer)
        if entry is None:
            return True  # the link has just gone
        now = asyncio.get_running_loop().time()
        entry.allowance = min(BURST_MESSAGES, entry.allowance + (now - entry.counted_at_s) * MESSAGES_PER_S)
        entry.counted_at_s = now
        entry.allowance -= 1.0
        if entry.allowance < 0.0:
            raise ProtocolError(
                f"more than {MESSAGES_PER_S:g} control messages a second, after a burst of {BURST_MESSAGES:g}"
            )
        return entry.greeted or kind in STRANGERS_SAY

    async def admit_bulk(self, peer: PeerId) -> bool:
        """Whether a peer's bulk messages are wanted; waits for its hello, which they may overtake.

        Who never greets is dropped when its lease runs out.
        """
        entry = self.linked.get(peer)
        if entry is None:
            return False
        await entry.settled.wait()
        return entry.greeted and peer not in self.banned

    def ban(self, peer: PeerId, reason: str) -> None:
        """Put a peer out for a while, and tell it why.

        The link stays until the peer leaves or its lease runs out, and nothing on it is heard: a
        link that breaks in a ballot would look to others as if either side had failed.
        """
        if peer not in self.banned:
            now = asyncio.get_running_loop().time()
            self.banned.add(peer, reason[:800], now)
            self.known.refuse(peer)
            self.post(peer, Message("refuse", {"reasons": [self.banned.reason(peer, now)]}))
            self.announce()
            self._changed()

    async def _put_out(self, peer: PeerId, reason: str) -> None:
        await self._send(peer, Message("refuse", {"reasons": [reason]}))
        await self._exchange.disconnect(peer)

    def on_peer_down(self, peer: PeerId) -> None:
        """A link broke; it will be dialled again for a while."""
        entry = self.roll.part(peer)
        if entry is not None:
            entry.settled.set()
            self._requests.on_peer_down(peer)
            self.heartbeats.part(peer)
            self.known.lost(peer)
            self._changed()

    def on_hello(self, peer: PeerId, fields: Fields) -> None:
        """Compare digests; if they are equal the peer counts, and the peers it knows are dialled."""
        entry = self.linked.get(peer)
        if entry is None or entry.explains or entry.unfit:
            return
        protocol = fields.integer("protocol")
        if protocol not in (PROTOCOL, entry.protocol):
            entry.protocol = protocol  # it may have come damaged, and is said again
            return
        if protocol != PROTOCOL:
            advice = "use the same version of lowcomm"
            here = f"protocol: here {PROTOCOL}, there {protocol}; {advice}"
            there = f"protocol: here {protocol}, there {PROTOCOL}; {advice}"
            self._refuse(peer, Differences((here,), (there,)))
            return
        if entry.greeted and not fields.integer("greeted", high=1):
            self._greet(peer)  # it repeats its greeting until it has this one's
        theirs = {name: fields.digest(name) for name in (SHARED, LAYOUT)}
        islands = self.state.role == "island" == parse_state(fields.inner("state")).role
        if islands and theirs != self._terms.digests:
            entry.explains = True
            self._spawn(self._explain(entry, theirs))
            return
        addresses, state = fields.texts("addresses", 64, 512), parse_state(fields.inner("state"))
        entry.seen_at_s = asyncio.get_running_loop().time()
        entry.addresses, entry.state, entry.greeted = addresses, state, True
        entry.settled.set()
        self._exchange.admit(peer)
        self.post(peer, Message("peers", {"peers": self.known.to_json()}))
        self.roll.learn_name(peer, state.name)
        if entry.state.role == "observer":
            self._show_links(peer)
        else:
            news: list[Json] = [[peer, list(entry.addresses)]]
            told = self.known.has(peer, entry.addresses)  # by whoever it had met before
            self.known.learn(peer, entry.addresses, lives=True)
            self.known.dial_due()
            for other in self.linked.values():
                if other.greeted and other.id != peer and not told:
                    self.post(other.id, Message("peers", {"peers": news}))
        self._changed()

    def on_peers(self, peer: PeerId, fields: Fields) -> None:
        """Peers that another one is linked to: link to them, too."""
        entry = self.linked.get(peer)
        if entry is None or not entry.greeted:
            return
        for item in fields.items("peers", MAX_KNOWN):
            if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], list):
                raise ProtocolError("peers: expected [peer, addresses]")
            name = PeerId(checked_text("peers.peer", item[0], 128))
            addresses = tuple(checked_text("peers.address", a, 512) for a in item[1][:64])
            self.known.learn(name, addresses, lives=True)
        self.known.dial_due()
        entry.introduced = True
        self._changed()

    def on_state(self, peer: PeerId, fields: Fields) -> None:
        """A sign of life."""
        entry = self.linked.get(peer)
        if entry is None or not entry.greeted:
            return
        self.heard(peer)
        now_s, before = asyncio.get_running_loop().time(), entry.state
        state = parse_state(fields, before)
        if state.phase == before.phase == "training" and now_s - entry.reached_s < self._heartbeat_s:
            state = state.not_behind(before)
        news = state.matters != before.matters
        if state.chains == self.state.chains:
            state = state.at(self.state.chains)
        moved = state.inner_step != before.inner_step or (state.outer_steps, state.phase) != (
            before.outer_steps,
            before.phase,
        )
        if moved and entry.progress is not None:
            entry.progress.beat(now_s)
            news, entry.stalled = news or entry.stalled, False
        entry.state = state
        self.roll.learn_name(peer, state.name)
        if state.phase == "leaving":
            self._take_goodbye(peer, state)
        elif self.departed.pop(peer, None) is not None:
            news = True
        if news:
            self._changed()

    def _take_goodbye(self, peer: PeerId, state: State) -> None:
        """A peer leaves in order.

        Raises:
            ProtocolError: it hasn't signed that.
        """
        try:
            signature = bytes.fromhex(state.goodbye)
        except ValueError as error:
            raise ProtocolError(f"state.goodbye: expected hex digits, got {state.goodbye!r:.80}") from error
        said = goodbye_bytes(self._exchange.run_id, peer, state.outer_steps)
        if state.role == "island" and not self._exchange.verify(peer, said, signature):
            raise ProtocolError(f"goodbye of {peer}: the signature is not its own")
        self.departed[peer] = Goodbye(peer, state.outer_steps, signature)

    async def _explain(self, entry: Peer, theirs: Mapping[str, Digest]) -> None:
        """Find out in what a peer differs, and refuse it."""

        async def ask(name: str, page: int) -> Fields:
            answer = await self._requests.ask(entry.id, "terms", {"list": name, "page": page})
            entry.seen_at_s = asyncio.get_running_loop().time()  # of as many pages as there are here
            return answer

        try:
            found = await self._terms.compare(theirs, ask)
        except (ProtocolError, PeerUnreachableError) as error:
            reason = f"settings or model differ, and it doesn't say in what: {error}"[:1_000]
            found = Differences((reason,), ("settings or model differ, and this island didn't say in what",))
        if not found.here:
            logger.warning("%s: its greeting came damaged; it is asked for another", self.called(entry.id))
            entry.explains = False
        elif self.linked.get(entry.id) is entry and not entry.unfit:
            self._refuse(entry.id, found)

    def on_terms_request(self, peer: PeerId, fields: Fields) -> None:
        """`terms?`: a page of what this peer trains with.

        Raises:
            ProtocolError: it asks for more than there is.
        """
        entry = self.linked.get(peer)
        if entry is None:
            return
        entry.pages_told += 1
        if entry.pages_told > self._terms.page_count:
            raise ProtocolError("terms?: it was told all")
        self.post(peer, Message("terms", self._terms.page(fields)))

    def on_terms(self, peer: PeerId, fields: Fields) -> None:
        """`terms`: a page that was asked for."""
        self._requests.on_reply(peer, fields)

    def _refuse(self, peer: PeerId, found: Differences) -> None:
        self.post(peer, Message("refuse", {"reasons": list(found.there)}))
        self._drop(peer, list(found.here))

    def on_refuse(self, peer: PeerId, fields: Fields) -> None:
        """The other side found that we don't fit together, and says it in this one's words."""
        self._drop(peer, list(fields.texts("reasons", 64, 1_000)))

    def _drop(self, peer: PeerId, reasons: list[str]) -> None:
        if (entry := self.linked.get(peer)) is not None:
            entry.unfit = True
        if self.known.put_off(peer):
            self._on_refused(peer, reasons)

    def on_ping(self, peer: PeerId, fields: Fields) -> None:
        """See `Heartbeats`."""
        self.heartbeats.on_ping(peer, fields)

    def on_pong(self, peer: PeerId, fields: Fields) -> None:
        """See `Heartbeats`."""
        self.heartbeats.on_pong(peer, fields, asyncio.get_running_loop().time())

    def on_doubt(self, peer: PeerId, fields: Fields) -> None:
        """See `Heartbeats`."""
        self.heartbeats.on_doubt(fields, asyncio.get_running_loop().time())

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for peer in self.beat():
                await self._exchange.disconnect(peer)
            self.known.dial_due()

    def beat(self) -> list[PeerId]:
        """A heartbeat is due.

        Returns:
            Those whose links are to be dropped.
        """
        now = asyncio.get_running_loop().time()
        over = self.heartbeats.beat(now)
        for peer in over:
            logger.warning(
                "%s: no message for %.1f s; the link is dropped", self.called(peer.id), now - peer.seen_at_s
            )
        for peer in self.linked.values():
            if not (peer.greeted or peer.explains or peer.unfit):
                self._greet(peer.id)
            elif peer.state.role == "observer":
                self._show_links(peer.id)
        return [peer.id for peer in over]

    async def _listen(self) -> None:
        self.heartbeats.listen(asyncio.get_running_loop().time(), {})
        while True:
            await asyncio.sleep(self._heartbeat_s / LOOKS)
            self.listen()

    def listen(self) -> None:
        """Notice who has fallen silent, who makes no steps any more, and who may come back."""
        now = asyncio.get_running_loop().time()
        for name in self.banned.expire(now):
            logger.warning("%s was out and may come back; nobody follows it before a round with it", name)
            self.known.pardon(name)
        fallen = self.heartbeats.listen(now, self._exchange.traffic.from_peer)
        self.roll.version += 1
        for peer in fallen:
            self._on_silent(peer.id, f"silent for {now - peer.seen_at_s:.1f} s")
            self._changed()
        self._on_change()  # time has passed, and a round that others wait for may need this peer

    async def _discover(self) -> None:
        while True:
            record: bytes = msgpack.packb(
                {"addresses": list(self._exchange.addresses), "role": self.state.role}
            )
            try:
                if self.state.role != "observer":
                    await self._exchange.publish(record, RECORD_TTL_S)
                for peer, found in (await self._exchange.discover()).items():
                    self.known.learn(peer, record_addresses(found), lives=False)
                self.known.dial_due()
            except (ExchangeError, ProtocolError):
                pass  # the directory is a help, not a need; the next turn tries again
            await asyncio.sleep(RECORD_TTL_S / 4 if self.linked else RECORD_TTL_S / 20)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
