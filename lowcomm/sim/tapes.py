"""Fault tapes: what goes wrong in a simulated run, and when, from one seed.

The fate of a message depends on the seed, its way and its number among those of its kind only, so
a schedule that fails can be replayed, and stays the same when unrelated messages are added.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from lowcomm.exchanges.base import Message
from lowcomm.exchanges.shaped import Fate
from lowcomm.types import PeerId

BULK = ("part", "mean", "blob")
MORTAL = ("crash", "power")
Way = tuple[PeerId, PeerId]
"""From a sender to a receiver."""
ACCUSING = ("part", "mean", "vote")
"""Whose sender is left out if they come damaged again and again; a random tape damages none of them."""

Action = Literal["lose", "delay", "repeat", "reorder", "corrupt"]
ACTIONS: tuple[Action, ...] = ("lose", "delay", "repeat", "reorder", "corrupt")
KINDS = (
    "hello", "peers", "state", "ready", "unready", "roster", "part", "mean", "vote", "abort", "unformed",
    "entries?", "entries", "snapshot?", "snapshot", "blob?", "blob",
)  # fmt: skip
"""All messages of the protocol: each stage of a round, of joining, and of catching up."""


@dataclass(frozen=True, slots=True)
class MessageFault:
    """While it lasts, this share of the messages of these kinds meets this fate."""

    action: Action
    kinds: tuple[str, ...]
    share: float
    start_s: float
    stop_s: float
    delay_s: float = 0.0


PeerFaultKind = Literal[
    "crash", "partition", "one_way", "blip", "stall", "stall_out", "stall_in", "hold", "leave", "again",
    "power", "slow_disk",
]  # fmt: skip
PEER_FAULTS: dict[PeerFaultKind, str] = {
    "crash": "it dies, and comes back",
    "partition": "nothing passes between it and the others",
    "one_way": "nothing that it sends reaches the others",
    "blip": "all its links break, again and again, and are made again after that",
    "stall": "bulk between it and the others is held up, both ways, while control passes",
    "stall_out": "bulk from it to the others is held up",
    "stall_in": "bulk to it is held up",
    "hold": "whatever it sends or is sent is held up: it stands still, or its host does",
    "leave": "it says goodbye, and comes back",
    "again": "it dies, and is started again with the command that it was first started with",
    "power": "it dies with all that was not synced to its disk, and comes back",
    "slow_disk": "all that it reads, writes or computes takes a second",
}
"""What becomes of a peer, or of several at the same time, for `away_s`."""


@dataclass(frozen=True, slots=True)
class PeerFault:
    """One or several peers are struck; see `PEER_FAULTS`."""

    kind: PeerFaultKind
    peers: tuple[int, ...]
    start_s: float
    away_s: float


@dataclass(frozen=True, slots=True)
class Tape:
    """All faults of one run; after `quiet_s` there are none."""

    seed: int
    messages: tuple[MessageFault, ...]
    peers: tuple[PeerFault, ...]
    quiet_s: float
    base_delay_s: float = 0.01


def make_tape(
    seed: int,
    islands: int,
    *,
    faulty_s: float = 25.0,
    deadline_s: float = 2.0,
    actions: tuple[Action, ...] = ACTIONS,
    kinds: tuple[str, ...] = KINDS,
    peer_faults: int = 2,
    more: tuple[PeerFaultKind, ...] = (),
) -> Tape:
    """A random tape: bursts of message faults, crashes and partitions in the first `faulty_s`.

    Args:
        more: up to three faults of these kinds besides.
    """
    rng = random.Random(seed)
    messages = []
    for _ in range(rng.randint(2, 5)):
        start_s = rng.uniform(0.0, 0.8 * faulty_s)
        action = rng.choice(actions)
        possible = [kind for kind in kinds if action != "corrupt" or kind not in ACCUSING]
        messages.append(
            MessageFault(
                action=action,
                kinds=tuple(rng.sample(possible, rng.randint(1, min(4, len(possible))))),
                share=rng.choice([0.1, 0.3, 1.0]),
                start_s=start_s,
                stop_s=min(faulty_s, start_s + rng.uniform(1.0, 10.0)),
                delay_s=rng.choice([0.2, 1.0, 3.0]) * deadline_s,
            )
        )
    peers = []
    for _ in range(rng.randint(0, peer_faults)):
        start_s = rng.uniform(2.0, 0.7 * faulty_s)
        crash = rng.random() < 0.6
        count = 1 if crash else rng.randint(1, islands - 1)
        peers.append(
            PeerFault(
                kind="crash" if crash else "partition",
                peers=tuple(sorted(rng.sample(range(islands), count))),
                start_s=start_s,
                away_s=rng.uniform(0.5, faulty_s - start_s),
            )
        )
    peers += _more_faults(random.Random(f"more {seed}"), islands, faulty_s, more)
    return Tape(seed, tuple(messages), tuple(sorted(peers, key=lambda f: f.start_s)), faulty_s)


def _more_faults(
    rng: random.Random, islands: int, faulty_s: float, kinds: tuple[PeerFaultKind, ...]
) -> list[PeerFault]:
    """Most of them short; of those that kill, now and then most islands at once."""
    faults = []
    for _ in range(rng.randint(1, 3) if kinds else 0):
        kind, start_s = rng.choice(kinds), rng.uniform(2.0, 0.7 * faulty_s)
        count = islands - 1 if kind in MORTAL and rng.random() < 0.2 else 1
        if kind in ("stall", "partition"):
            count = rng.randint(1, islands - 1)
        struck = [0] if kind == "again" else rng.sample(range(islands), count)
        away_s = 1.0 if kind == "blip" else rng.uniform(0.5, faulty_s - start_s)
        faults.append(PeerFault(kind, tuple(sorted(struck)), start_s, away_s))
    return faults


class TapeShaper:
    """Plays the message faults of a tape; one for all peers of a run.

    Attributes:
        struck: how many messages met each (action, kind).
        apart: ways, from a peer to another, on which nothing passes now.
        held: until when everything is held up on a way.
        stalled: until when bulk is.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._numbers: Counter[tuple[PeerId, PeerId, str]] = Counter()
        self.struck: Counter[tuple[str, str]] = Counter()
        self.apart: set[Way] = set()
        self.held: dict[Way, float] = {}
        self.stalled: dict[Way, float] = {}

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        """See `Shaper`."""
        way = (sender, receiver, message.kind)
        self._numbers[way] += 1
        rng = random.Random(_seed(self._tape.seed, *way, self._numbers[way]))
        base_s = self._tape.base_delay_s * rng.uniform(0.5, 1.5)
        if (sender, receiver) in self.apart:
            return Fate(())
        until_s = self.held.get((sender, receiver), 0.0)
        if message.kind in BULK:
            until_s = max(until_s, self.stalled.get((sender, receiver), 0.0))
        if until_s > now_s:
            return Fate((until_s - now_s + base_s,))
        for fault in self._tape.messages:
            lasts = fault.start_s <= now_s < fault.stop_s and message.kind in fault.kinds
            if lasts and rng.random() < fault.share:
                self.struck[fault.action, message.kind] += 1
                return _fate(fault, base_s, rng)
        return Fate((base_s,))


def _fate(fault: MessageFault, base_s: float, rng: random.Random) -> Fate:
    late_s = base_s + fault.delay_s
    match fault.action:
        case "lose":
            return Fate(())
        case "delay":
            return Fate((late_s,))
        case "repeat":
            return Fate((base_s, late_s), ordered=False)
        case "reorder":
            return Fate((base_s + rng.uniform(0.0, fault.delay_s),), ordered=False)
        case "corrupt":
            return Fate((base_s,), flip=rng.randrange(1 << 20))


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")
