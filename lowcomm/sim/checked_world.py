"""A swarm of checked peers as a value: what may happen next in it, and what comes of it.

A state is a tuple of numbers, so that millions of them can be told apart. What one peer does on one event
depends on nothing but itself, the event and the time; it is computed once (`_Local`) and looked up later.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lowcomm.sim.checked_peer import CheckedPeer
from lowcomm.sim.checked_values import DEADLINE_S, DOWN, Budget, Mail, Setting, Stored
from lowcomm.sim.frozen import Freezer, Views, copied
from lowcomm.types import Digest, PeerId

Event = tuple[str | int, ...]
"""`deliver` from, to; `slow` the same, and what is written is not on disk yet; `lose` the same; `crash` whom,
how; `restart` whom; `cut`, `heal` which link; `time`; `written` whose record; `late` whose contribution."""


class World(NamedTuple):
    """One state of the swarm.

    Attributes:
        deadlines: that have passed.
        peers: the number of each one's state.
        queues: messages on each way, at `from * n + to`, oldest first.
        links: those that are up, one bit for each way.
        decided: of each outer step, the number of the entry; 0 = none yet.
    """

    deadlines: int
    peers: tuple[int, ...]
    queues: tuple[tuple[int, ...], ...]
    links: int
    decided: tuple[int, ...]
    budget: Budget


class _Local(NamedTuple):
    """What one peer makes of one event.

    Attributes:
        wrote: whether a record was written in it, or the island contributed.
    """

    peer: int
    sent: tuple[tuple[int, int], ...]
    decided: tuple[tuple[int, int], ...]
    broken: tuple[str, ...]
    wrote: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One event, the world after it, and the promises that it broke."""

    event: Event
    world: World
    broken: tuple[str, ...]


def _nothing(_: object) -> None:
    return None


_VIEWS: Views = {
    "CheckedPeer": {"setting": _nothing},
    "RoundMachine": {"rules": _nothing},
    "Assembly": dict.fromkeys(("view", "following", "rates", "rules"), _nothing),  # handed in anew
    "ClaimJudge": {"rejected": _nothing},
    "UnderWay": {"joined_s": _nothing},
    "Decision": {
        **dict.fromkeys(("joined_s", "accepted_s", "ballots"), _nothing),  # for people
        "voted": lambda decision: list(decision.voted.items()),  # the oldest goes first
        "tally": lambda decision: decision.tally.of_ballots_from(
            decision.promised
        ),  # the others count no more
    },
}
"""What of a peer decides what it does next."""


class Swarm:
    """All that may happen to a swarm of checked peers."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.names = setting.peers
        self._count = len(setting.peers)
        self._index = {name: number for number, name in enumerate(self.names)}
        self._freezer = Freezer(_VIEWS)
        self._peers: list[CheckedPeer | Stored] = []
        self._peer_numbers: dict[int, int] = {}
        self._mails: list[Mail] = []
        self._mail_numbers: dict[Mail, int] = {}
        self._entries: dict[Digest, int] = {}
        self._local: dict[tuple[object, ...], _Local] = {}
        self._down = self._mail(DOWN)

    @property
    def local_steps(self) -> int:
        """How often a machine has run; all else was looked up."""
        return len(self._local)

    # -- states --------------------------------------------------------------------------------------

    def beginning(self, budget: Budget) -> World:
        """All peers are linked, and due."""
        count = self._count
        world = World(
            0, (0,) * count, ((),) * (count * count), (1 << (count * count)) - 1,
            (0,) * (self.setting.target + 2), budget,
        )  # fmt: skip
        for index, name in enumerate(self.names):
            others = [other for other in self.names if other != name]
            peer = CheckedPeer(self.setting, name, Stored(0), others)
            peer.begin(0.0)
            world = self._after(world, index, self._taken(peer, wrote=False))[0]
        return world

    def peer(self, world: World, index: int) -> CheckedPeer | Stored:
        """One peer's state, not to be changed; stored = it is down."""
        return self._peers[world.peers[index]]

    def heights(self, world: World) -> list[int]:
        """How many entries each peer has, also on disk."""
        return [len(self.peer(world, index).chain) for index in range(self._count)]

    def kinds(self, world: World, sender: int, receiver: int) -> list[str]:
        """The kinds of the messages on a way, the next one first."""
        return [self._mails[mail].kind for mail in world.queues[sender * self._count + receiver]]

    def is_done(self, world: World) -> bool:
        """Whether all peers run and have all outer steps of one history."""
        peers = [self.peer(world, index) for index in range(self._count)]
        heads = {peer.head if isinstance(peer, CheckedPeer) else None for peer in peers}
        return min(self.heights(world)) >= self.setting.target and len(heads) == 1 and None not in heads

    # -- what may happen -----------------------------------------------------------------------------

    def steps(self, world: World) -> list[Step]:
        """All that may happen next, with what comes of it."""
        return [self.step(world, event) for event in self.events(world) if self._differs(world, event)]

    def _differs(self, world: World, event: Event) -> bool:
        """Whether anything is written that a slow disk could hold up."""
        return event[0] != "slow" or self._deliver(world, event, slow=False).wrote

    def events(self, world: World) -> list[Event]:
        """All that may happen next."""
        found = list(self._deliveries(world))
        runs = [isinstance(self.peer(world, index), CheckedPeer) for index in range(self._count)]
        for index in range(self._count):
            peer = self._peers[world.peers[index]]
            if isinstance(peer, CheckedPeer):
                found += [("written", index)] if peer.pending else []
                found += [("late", index)] if peer.late else []
                found += self._crashes(world, index, peer)
            elif self._may_restart(world, index):
                found.append(("restart", index))
        for one, other in itertools.combinations(range(self._count), 2):
            if runs[one] and runs[other]:
                if self._is_up(world, one, other):
                    found += [("cut", one, other)] if world.budget.cuts else []
                elif self._may_heal(world, one, other):
                    found.append(("heal", one, other))
        return [*found, ("time",)] if world.budget.deadlines else found

    def _deliveries(self, world: World) -> Iterator[Event]:
        """Where no time can pass and no link break any more, those to one peer with mail on each way do.

        What is first on each of its ways stays first until the peer takes it or crashes, whatever the others
        do; and what they do commutes with both. So every other order is equal to one that begins here (a
        persistent set: Godefroid 1996).
        """
        ways = [way for way, queue in enumerate(world.queues) if queue]
        budget = world.budget
        bound = budget.deadlines or budget.cuts or budget.delays is not None
        alone = None if bound else self._alone(world)
        for way in ways[:1] if budget.delays == 0 else ways:
            sender, receiver = divmod(way, self._count)
            if alone is not None and receiver != alone:
                continue
            yield ("deliver", sender, receiver)
            if budget.slow:
                yield ("slow", sender, receiver)
            mail = world.queues[way][0]
            if budget.losses and mail != self._down and self._mails[mail].kind != "state":
                yield ("lose", sender, receiver)

    def _alone(self, world: World) -> int | None:
        count = self._count
        for receiver in range(count):
            if not isinstance(self.peer(world, receiver), CheckedPeer):
                continue
            others = [sender for sender in range(count) if sender != receiver]
            if all(world.queues[sender * count + receiver] for sender in others):
                return receiver
        return None

    def _crashes(self, world: World, index: int, peer: CheckedPeer) -> Iterator[Event]:
        if not world.budget.crashes:
            return
        yield ("crash", index, "lost" if peer.pending else "whole")
        if peer.pending:
            yield ("crash", index, "written")
        if world.budget.rollbacks and peer.chain:
            yield ("crash", index, "back")

    def _is_up(self, world: World, one: int, other: int) -> bool:
        return bool(world.links >> (one * self._count + other) & 1)

    def _with_link(self, world: World, one: int, other: int, *, up: bool) -> World:
        bits = 1 << (one * self._count + other) | 1 << (other * self._count + one)
        return world._replace(links=world.links | bits if up else world.links & ~bits)

    def _has_noticed(self, world: World, one: int, other: int) -> bool:
        """Whether both know that the link between them has gone."""
        ways = (one * self._count + other, other * self._count + one)
        return not any(self._down in world.queues[way] for way in ways)

    def _may_heal(self, world: World, one: int, other: int) -> bool:
        return not self._is_up(world, one, other) and self._has_noticed(world, one, other)

    def _may_restart(self, world: World, index: int) -> bool:
        return all(self._has_noticed(world, index, other) for other in range(self._count) if other != index)

    # -- what comes of it ----------------------------------------------------------------------------

    def step(self, world: World, event: Event) -> Step:
        """An event that may happen here."""
        kind, now_s = event[0], world.deadlines * DEADLINE_S
        spent = world.budget
        if kind in ("deliver", "slow", "lose"):
            return self._come(world, event)
        if kind == "time":
            world = world._replace(
                deadlines=world.deadlines + 1, budget=spent._replace(deadlines=spent.deadlines - 1)
            )
            return self._pass_time(event, world)
        index = int(event[1])
        if kind == "crash":
            how = str(event[2])
            back = how == "back"
            spent = spent._replace(crashes=spent.crashes - 1, rollbacks=spent.rollbacks - back)
            return Step(event, self._crash(world._replace(budget=spent), index, how), ())
        if kind == "restart":
            return Step(event, *self._restart(world, index))
        if kind == "cut":
            world = world._replace(budget=spent._replace(cuts=spent.cuts - 1))
            return Step(event, self._cut(world, index, int(event[2])), ())
        if kind == "heal":
            return Step(event, self._heal(world, index, int(event[2])), ())
        key = (world.peers[index], kind, now_s)
        local = self._local.get(key)
        if local is None:
            peer = self._copy(world.peers[index])
            peer.kept(now_s) if kind == "written" else peer.contribute(now_s)
            local = self._local[key] = self._taken(peer, wrote=False)
        return Step(event, *self._after(world, index, local))

    def _come(self, world: World, event: Event) -> Step:
        kind, sender, receiver = event[0], int(event[1]), int(event[2])
        way, spent = sender * self._count + receiver, world.budget
        if kind != "lose" and spent.delays and any(world.queues[:way]):
            spent = spent._replace(delays=spent.delays - 1)
        if kind == "slow":
            spent = spent._replace(slow=spent.slow - 1)
        elif kind == "lose":
            spent = spent._replace(losses=spent.losses - 1)
        local = self._deliver(world, event, slow=kind == "slow") if kind != "lose" else None
        world = self._with_queue(world._replace(budget=spent), way, world.queues[way][1:])
        return Step(event, world, ()) if local is None else Step(event, *self._after(world, receiver, local))

    def _deliver(self, world: World, event: Event, *, slow: bool) -> _Local:
        sender, receiver, now_s = int(event[1]), int(event[2]), world.deadlines * DEADLINE_S
        mail = world.queues[sender * self._count + receiver][0]
        key = (world.peers[receiver], sender, mail, slow, now_s)
        local = self._local.get(key)
        if local is None:
            peer = self._copy(world.peers[receiver])
            before = peer.record, peer.chain
            peer.deliver(self.names[sender], self._mails[mail], now_s, slow=slow)
            wrote = (peer.record, peer.chain) != before
            local = self._local[key] = self._taken(peer, wrote=wrote)
        return local

    def _pass_time(self, event: Event, world: World) -> Step:
        broken = list[str]()
        count = range(self._count)
        held = [[bool(world.queues[one * self._count + other]) for other in count] for one in count]
        for index in count:
            if isinstance(self.peer(world, index), CheckedPeer):
                silent = tuple(self.names[other] for other in count if held[other][index])
                deaf = tuple(self.names[other] for other in count if held[index][other])
                world, more = self._look(world, index, silent, deaf)
                broken += more
        return Step(event, world, tuple(broken))

    def _look(
        self, world: World, index: int, silent: tuple[PeerId, ...] = (), deaf: tuple[PeerId, ...] = ()
    ) -> tuple[World, tuple[str, ...]]:
        now_s = world.deadlines * DEADLINE_S
        key = (world.peers[index], "time", silent, deaf, now_s)
        local = self._local.get(key)
        if local is None:
            peer = self._copy(world.peers[index])
            peer.pass_time(now_s, silent, deaf)
            local = self._local[key] = self._taken(peer, wrote=False)
        return self._after(world, index, local)

    def wait(self, world: World, index: int) -> Step:
        """A deadline has passed without a message, and one peer is the first to notice; all run."""
        world = world._replace(deadlines=world.deadlines + 1)
        return Step(("time",), *self._look(world, index))

    def _crash(self, world: World, index: int, how: str) -> World:
        peer = self.peer(world, index)
        assert isinstance(peer, CheckedPeer)
        stored = self._copy(world.peers[index]).crash(written=how == "written")
        if how == "back":
            stored = Stored(stored.life, (), stored.record)
        world = self._with_peer(world, index, stored)
        for other in range(self._count):
            if other == index:
                continue
            world = self._with_queue(world, other * self._count + index, ())
            if self._is_up(world, index, other):
                world = self._put_on(world, index, other, self._down)
            world = self._with_link(world, index, other, up=False)
        return world

    def _restart(self, world: World, index: int) -> tuple[World, tuple[str, ...]]:
        stored = self.peer(world, index)
        assert isinstance(stored, Stored)
        peer = CheckedPeer(self.setting, self.names[index], stored, ())
        peer.begin(world.deadlines * DEADLINE_S)
        world, broken = self._after(world, index, self._taken(peer, wrote=False))
        for other in range(self._count):
            if other != index and isinstance(self.peer(world, other), CheckedPeer):
                world = self._heal(world, index, other)
        return world, broken

    def _cut(self, world: World, one: int, other: int) -> World:
        for sender, receiver in ((one, other), (other, one)):
            world = self._with_queue(world, sender * self._count + receiver, (self._down,))
        return self._with_link(world, one, other, up=False)

    def _heal(self, world: World, one: int, other: int) -> World:
        world = self._with_link(world, one, other, up=True)
        for sender, receiver in ((one, other), (other, one)):
            peer = self.peer(world, sender)
            assert isinstance(peer, CheckedPeer)
            world = self._put_on(world, sender, receiver, self._mail(peer.hello()))
        return world

    # -- the parts of a state ------------------------------------------------------------------------

    def _copy(self, number: int) -> CheckedPeer:
        peer = copied(self._peers[number])
        assert isinstance(peer, CheckedPeer)
        return peer

    def _taken(self, peer: CheckedPeer, *, wrote: bool) -> _Local:
        """What a peer has done, taken off it; it is not changed after this."""
        sent = tuple((self._index[to], self._mail(mail)) for to, mail in peer.outbox)
        decided = tuple(
            (step, self._entries.setdefault(digest, len(self._entries) + 1))
            for step, digest in peer.committed
        )
        broken = tuple(peer.broken)
        peer.outbox, peer.committed, peer.broken = [], [], []
        return _Local(self._peer_number(peer), sent, decided, broken, wrote)

    def _peer_number(self, peer: CheckedPeer | Stored) -> int:
        frozen = self._freezer.number(peer)
        number = self._peer_numbers.get(frozen)
        if number is None:
            number = self._peer_numbers[frozen] = len(self._peers)
            self._peers.append(peer)
        return number

    def _mail(self, mail: Mail) -> int:
        number = self._mail_numbers.get(mail)
        if number is None:
            number = self._mail_numbers[mail] = len(self._mails)
            self._mails.append(mail)
        return number

    def _after(self, world: World, index: int, local: _Local) -> tuple[World, tuple[str, ...]]:
        peers = (*world.peers[:index], local.peer, *world.peers[index + 1 :])
        queues, broken = world.queues, local.broken
        if local.sent:
            changed = list(queues)
            for to, mail in local.sent:
                if self._is_up(world, index, to):  # else what is sent goes nowhere
                    way = index * self._count + to
                    changed[way] = (*changed[way], mail)
            queues = tuple(changed)
        decided = world.decided
        for step, entry in local.decided:
            if decided[step] not in (0, entry):
                broken = (*broken, f"outer step {step} has two entries: {self.names[index]} has another")
            elif not decided[step]:
                decided = (*decided[:step], entry, *decided[step + 1 :])
        return World(world.deadlines, peers, queues, world.links, decided, world.budget), broken

    def _with_peer(self, world: World, index: int, peer: CheckedPeer | Stored) -> World:
        number = self._peer_number(peer)
        return world._replace(peers=(*world.peers[:index], number, *world.peers[index + 1 :]))

    def _with_queue(self, world: World, way: int, queue: tuple[int, ...]) -> World:
        return world._replace(queues=(*world.queues[:way], queue, *world.queues[way + 1 :]))

    def _put_on(self, world: World, sender: int, receiver: int, mail: int) -> World:
        way = sender * self._count + receiver
        return self._with_queue(world, way, (*world.queues[way], mail))

    # -- for people ----------------------------------------------------------------------------------

    def told(self, world: World, event: Event) -> str:
        """An event in words."""
        kind = str(event[0])
        if kind in ("deliver", "slow", "lose"):
            sender, receiver = int(event[1]), int(event[2])
            mail = self._mails[world.queues[sender * self._count + receiver][0]]
            note = {"deliver": "", "slow": ", what it writes is not on disk yet", "lose": ", LOST"}[kind]
            return f"{self.names[sender]} -> {self.names[receiver]}: {mail.told}{note}"
        who = ", ".join(self.names[part] if isinstance(part, int) else part for part in event[1:])
        return f"{kind} {who}".strip()
