"""What checked peers and their world are made of: settings, messages, budgets of faults, updates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import Entry, hash_bytes, hash_value
from lowcomm.rounds.machine import RoundMachine
from lowcomm.rounds.policy import RoundPolicy, Rules
from lowcomm.rounds.roster import Roster
from lowcomm.rounds.values import Record, Slot
from lowcomm.types import Json, PeerId

DEADLINE_S = 10.0
GRACE_S = 100_000.0
"""Longer than any search: with `continue` there may be forks where somebody has been absent for a grace."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What all peers of a checked swarm share.

    Attributes:
        peers: all of them, the founders too.
        target: outer steps after which nobody is due any more.
        machine: the class that is checked.
    """

    rules: Rules
    peers: tuple[PeerId, ...]
    target: int
    machine: type[RoundMachine] = RoundMachine


@dataclass(frozen=True, slots=True)
class Mail:
    """One message; the body in its one JSON form, so that equal messages are equal."""

    kind: str
    body: str

    @property
    def fields(self) -> Fields:
        return Fields(self.kind, json.loads(self.body))

    @staticmethod
    def of(kind: str, body: Json) -> Mail:
        return Mail(kind, json.dumps(body, sort_keys=True))

    @property
    def told(self) -> str:
        """In words."""
        body = json.loads(self.body)
        if self.kind == "roster":
            roster = body["roster"]
            members = ",".join(member[0] for member in roster["participants"])
            finishes = f" finishes an update of {roster['accepted_in']}" if roster["entry"] else ""
            absent = f" without {','.join(roster['absent'])}" if roster["absent"] else ""
            return f"roster {roster['ballot']} of {members}{absent}{finishes}"
        if self.kind == "ready":
            accepted = body["accepted"]
            holds = f", accepted in {accepted['ballot']}" if accepted else ""
            return f"ready for {body['outer_step']}, promised {body['promised']}{holds}"
        words = [str(body[name])[:60] for name in ("outer_step", "ballot", "reason", "entry") if name in body]
        return " ".join([self.kind, *words])


DOWN = Mail.of("down", {})
"""The link is gone; not a message, but it comes after those that came over the link."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What of a peer outlives a crash.

    Attributes:
        chain: its newest checkpoint.
        record: what it has promised.
    """

    life: int
    chain: tuple[Certified, ...] = ()
    record: Record | None = None


class Budget(NamedTuple):
    """How much may go wrong, or happen out of turn, from here on; None is without a bound.

    Attributes:
        losses: messages that never arrive.
        crashes: of a process; what was not synced may be on disk or not.
        rollbacks: crashes after which it begins at its first checkpoint, without any entry.
        cuts: links that break, and lose what is on its way.
        deadlines: so much time may pass.
        delays: deliveries that are not the next in turn.
        slow: events after which a record is not on disk yet, or the island contributes late.
    """

    losses: int = 0
    crashes: int = 0
    rollbacks: int = 0
    cuts: int = 0
    deadlines: int = 0
    delays: int | None = None
    slow: int = 0


def setting_of(
    islands: int, outer_steps: int, *, partition: str = "majority", run: int = 0, least: int = 1
) -> Setting:
    """A swarm of founders that are all due.

    Args:
        run: another one has other orders of leading.
        least: participants.
    """
    policy = RoundPolicy(min_participants=least, deadline_s=DEADLINE_S, partition=partition)
    rules = Rules(
        run_id=f"run {run}", fragment=0, policy=policy, grace_s=GRACE_S,
        elements=8, block_elements=1, chunk_elements=8,
    )  # fmt: skip
    return Setting(rules, tuple(PeerId(name) for name in "abcdefgh"[:islands]), outer_steps)


def entry_of(roster: Roster, slot: Slot, rules: Rules) -> Entry:
    """What a ballot comes to; another ballot comes to something else, whoever takes part."""
    participants = tuple((member.peer, member.tokens) for member in roster.participants)
    update = hash_value([slot.previous, roster.ballot.to_json(), [m.sum for m in roster.participants]])
    return Entry(
        run_id=rules.run_id,
        fragment=rules.fragment,
        outer_step=slot.outer_step,
        participants=participants,
        total_tokens=slot.total_tokens + sum(tokens for _, tokens in participants),
        stops=roster.stops,
        chunk_elements=roster.chunk_elements,
        update_hash=update,
        update_bytes=1,
        state_digest=hash_value([update]),
        previous=slot.previous,
        contributions=tuple((member.start, member.sum) for member in roster.participants),
    )


def signature_of(peer: PeerId, message: bytes) -> bytes:
    """A signature that nobody forges, as nobody tries to."""
    return bytes.fromhex(hash_bytes(peer.encode(), message))[:8]
