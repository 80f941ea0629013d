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


@dataclass(frozen=True, slots=True)
class PeerFault:
    """A peer dies, and comes back after `away_s`; or its links to `others` are cut for as long."""

    kind: Literal["crash", "partition"]
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
) -> Tape:
    """A random tape: bursts of message faults, crashes and partitions in the first `faulty_s`."""
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
    return Tape(seed, tuple(messages), tuple(sorted(peers, key=lambda f: f.start_s)), faulty_s)


class TapeShaper:
    """Plays the message faults of a tape; one for all peers of a run.

    Attributes:
        struck: how many messages met each (action, kind).
        apart: pairs of peers between which nothing passes now.
    """

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._numbers: Counter[tuple[PeerId, PeerId, str]] = Counter()
        self.struck: Counter[tuple[str, str]] = Counter()
        self.apart: set[frozenset[PeerId]] = set()

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        """See `Shaper`."""
        way = (sender, receiver, message.kind)
        self._numbers[way] += 1
        rng = random.Random(_seed(self._tape.seed, *way, self._numbers[way]))
        base_s = self._tape.base_delay_s * rng.uniform(0.5, 1.5)
        if frozenset((sender, receiver)) in self.apart:
            return Fate(())
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
