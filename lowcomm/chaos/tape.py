"""Fault tapes for real processes: what goes wrong, when, and with which island, from one seed.

A tape names seats, not processes: seat 2 may be held by a third process by the time its fault is
due. Who leads a round, or who joined first, is only known when the fault is struck.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "kill", "kill_fresh", "kill_bootstrap", "kill_leader", "kill_reducer", "freeze", "freeze_host", "p2pd",
    "leave", "join", "disk_full", "found_again", "kill_most", "power", "slow_disk", "clock", "stall",
    "stall_out", "stall_in", "blip", "partition", "one_way", "outage", "halves", "loss", "slow",
]  # fmt: skip

WORDS: dict[FaultKind, str] = {
    "kill": "SIGKILL, started again in its run folder",
    "kill_fresh": "SIGKILL, another one in a fresh folder takes its place",
    "kill_bootstrap": "SIGKILL of the peer that all first joined through, started again",
    "kill_leader": "SIGKILL of the leader in the middle of a round, started again",
    "kill_reducer": "SIGKILL of another reducer in the middle of a round, started again",
    "freeze": "SIGSTOP of the island, then SIGCONT",
    "freeze_host": "SIGSTOP of the island and its p2pd, then SIGCONT",
    "p2pd": "SIGKILL of the island's p2pd",
    "leave": "Ctrl-C, started again in its run folder",
    "join": "a newcomer joins, and leaves by Ctrl-C",
    "disk_full": "the island can't write to any file, then it can again",
    "found_again": "SIGKILL of the founder, started again with the command that founded the run",
    "kill_most": "SIGKILL of all but one, started again in their run folders",
    "power": "SIGKILL, and what was not synced to the disk is gone; started again in its run folder",
    "slow_disk": "every sync of the island's disk takes a second",
    "clock": "the island's time of day jumps by hours, forth or back",
    "stall": "bulk data of the island is held up, both ways, while control messages pass",
    "stall_out": "bulk data that the island sends is held up",
    "stall_in": "bulk data that the island is sent is held up",
    "blip": "all connections of the island are reset, and for a second none can be made",
    "partition": "no packet passes between the island and all others",
    "one_way": "no packet of the island reaches the others; it hears them",
    "outage": "as partition, for longer than any deadline or lease",
    "halves": "as outage, between two halves of the islands",
    "loss": "10 % of all packets are lost",
    "slow": "every link has 10 Mbit/s",
}
"""What each kind does, for people."""

NETWORK: frozenset[FaultKind] = frozenset(
    {"blip", "partition", "one_way", "outage", "halves", "loss", "slow"}
)
ON_REQUEST: frozenset[FaultKind] = frozenset({"outage", "halves"})
"""They take a minute each."""
STALLS: frozenset[FaultKind] = frozenset({"stall", "stall_out", "stall_in"})
LOCAL: tuple[FaultKind, ...] = tuple(kind for kind in WORDS if kind not in NETWORK | ON_REQUEST)
WAN: tuple[FaultKind, ...] = tuple(kind for kind in WORDS if kind not in ON_REQUEST)
KILLS: frozenset[FaultKind] = frozenset(
    {"kill", "kill_fresh", "kill_bootstrap", "kill_leader", "kill_reducer", "found_again", "power"}
)
"""Of one island."""
MID_ROUND: frozenset[FaultKind] = frozenset({"kill_leader", "kill_reducer"})
LONGEST_JITTER_S = 0.15
"""A fault in mid-round falls so long after the last island became due: while the roster forms, while
chunks travel, or while votes are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        at_s: not before this many seconds of the tape.
        seat: the victim; of kinds that choose it themselves, who else is struck in turn.
        away_s: until it is started again, goes on, leaves, or the network is whole again.
        jitter_s: how long after a round has become due, for those in mid-round.
    """

    at_s: float
    kind: FaultKind
    seat: int
    away_s: float
    jitter_s: float = 0.0


def make_tape(
    seed: int,
    islands: int,
    faults: int,
    length_s: float,
    kinds: tuple[FaultKind, ...] = LOCAL,
    away_s: float | None = None,
) -> tuple[Fault, ...]:
    """`faults` faults within `length_s`, in order; each kind as often as any other, by one at most.

    Args:
        away_s: how long each of them lasts; None = by its kind.

    The same arguments give the same tape. Times are spread evenly with some jitter, so that faults
    overlap, but don't all fall at once.
    """
    rng = random.Random(f"lowcomm chaos {seed} {islands} {faults}")
    chosen: list[FaultKind] = []
    while len(chosen) < faults:
        chosen += rng.sample(kinds, len(kinds))
    gap_s = length_s / max(1, faults)
    return tuple(
        Fault(
            at_s=(number + rng.uniform(0.0, 0.9)) * gap_s,
            kind=kind,
            seat=rng.randrange(islands),
            away_s=_away_s(kind, rng) if away_s is None else away_s,
            jitter_s=rng.uniform(0.0, LONGEST_JITTER_S) if kind in MID_ROUND else 0.0,
        )
        for number, kind in enumerate(chosen[:faults])
    )


def _away_s(kind: FaultKind, rng: random.Random) -> float:
    if kind in ("freeze", "freeze_host", "partition", "one_way"):
        return rng.choice([1.0, 4.0, 8.0])  # shorter than a lease, about one, longer
    if kind in ("loss", "slow", "slow_disk", "clock"):
        return 10.0
    if kind in STALLS:
        return rng.choice([4.0, 12.0])  # shorter than the deadline, longer
    if kind == "blip":
        return 1.0
    if kind in ("outage", "halves"):
        return 60.0
    if kind == "join":
        return rng.uniform(5.0, 15.0)  # in training
    return rng.uniform(0.0, 4.0)
