"""One peer, and what it says of itself."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import MAX_NAME, Fields, checked_float, checked_text
from lowcomm.ledger.chain import Standing
from lowcomm.ledger.entry import hash_value
from lowcomm.ledger.mandate import MAX_SIGNATURE
from lowcomm.names import LONGEST_NAME, NAME_RULE, is_name
from lowcomm.peers.failure_detector import AdaptiveTimeout
from lowcomm.types import Digest, Json, Link, PeerId

T = TypeVar("T")

MAX_FRAGMENTS = 100_000
MAX_CHECKPOINTS = 1_000
MAX_PUT_OUT = 256
MAX_LINKS = 256
MAX_FOUNDERS = 4_096
MAX_TROUBLE = 500
BURST_MESSAGES = 10_000.0
"""Control messages that a peer may send at once."""


@dataclass(frozen=True, slots=True)
class Posted:
    """How far training is, as the training thread posts it for the network thread to tell; see `State`."""

    inner_step: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None


@dataclass(frozen=True)
class Chains:
    """Where a peer's chains are, of each fragment; empty until known.

    Peers that are at the same place have equal ones, mostly the same one, so what follows from them is worked
    out once for all of these.
    """

    outer_steps: tuple[int, ...] = ()
    heads: tuple[Digest, ...] = ()
    total_tokens: tuple[int, ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.heads)

    @cached_property
    def position(self) -> Digest:
        """Stands for where they are."""
        return hash_value(list(self.heads))

    def standing(self, fragment: int) -> Standing | None:
        """How far a fragment's is; None where that isn't known."""
        if fragment >= len(self.outer_steps):
            return None
        return Standing(self.total_tokens[fragment], self.outer_steps[fragment])

    def moved(self, fragment: int, outer_step: int, head: Digest, total_tokens: int) -> Chains:
        """With one of them elsewhere."""
        return Chains(
            _with(self.outer_steps, fragment, outer_step),
            _with(self.heads, fragment, head),
            _with(self.total_tokens, fragment, total_tokens),
        )


@dataclass(frozen=True)
class State:
    """What a peer says of itself in every heartbeat.

    Attributes:
        role: `island`, `seed` (bootstrap only) or `observer`.
        phase: `starting` (has no outer state yet), `joining` (takes it from others), `training`,
            `leaving`.
        chains: where its chains are.
        checkpoints: inner steps of the checkpoints a restarting peer could load.
        shard: the part of the data it has claimed, or -1.
        put_out: peers that it has put out of the run, or has on probation; the latest.
        name: what people call it; empty where it has none.
        loss: its newest training loss, if it has told one.
        links: the peers that it is linked to, and what the newest heartbeat took there and back in seconds,
            where that is known; told to observers only.
        founders: who may decide the first outer step, as far as it knows.
        trouble: why its last round came to nothing, or only at a further ballot; told to observers only.
        goodbye: its signature on `goodbye_bytes`, in hex, where it leaves.
    """

    role: str = "island"
    phase: str = "starting"
    inner_step: int = 0
    chains: Chains = Chains()
    tokens_per_s: float = 0.0
    shard: int = -1
    checkpoints: tuple[int, ...] = ()
    put_out: tuple[PeerId, ...] = ()
    name: str = ""
    loss: float | None = None
    links: tuple[Link, ...] = ()
    founders: tuple[PeerId, ...] = ()
    goodbye: str = ""
    trouble: str = ""

    def standing(self, fragment: int) -> Standing | None:
        """How far it is with a fragment; None where it doesn't train or doesn't say."""
        return self.chains.standing(fragment) if self.phase == "training" else None

    @property
    def outer_steps(self) -> tuple[int, ...]:
        return self.chains.outer_steps

    @property
    def heads(self) -> tuple[Digest, ...]:
        return self.chains.heads

    @property
    def matters(self) -> tuple[object, ...]:
        """What a round could care about; all but its training steps and figures."""
        return (
            self.role, self.phase, self.heads, self.shard, self.checkpoints, self.put_out, self.name,
            self.founders,
        )  # fmt: skip

    def at(self, chains: Chains) -> State:
        """With its chains there; asked for with each voter of each commit, so faster than `replace`."""
        moved = object.__new__(State)
        moved.__dict__.update(self.__dict__, chains=chains)
        return moved

    def not_behind(self, before: State) -> State:
        """Where it was known to be further than it says: it has said that before it got there."""
        chains, known = self.chains, before.chains
        for fragment, step in enumerate(known.outer_steps[: len(chains.outer_steps)]):
            if step > chains.outer_steps[fragment]:
                chains = chains.moved(fragment, step, known.heads[fragment], known.total_tokens[fragment])
        return self if chains is self.chains else self.at(chains)

    def to_json(self, *, chains: bool = True, founders: bool = True) -> dict[str, Json]:
        """As it is told.

        Args:
            chains: whether with where its chains are.
            founders: whether with these, a name of each.
        """
        told: dict[str, Json] = {
            "outer_steps": list(self.chains.outer_steps),
            "heads": list(self.chains.heads),
            "total_tokens": list(self.chains.total_tokens),
        }
        return {
            **(told if chains else {}),
            "role": self.role,
            "phase": self.phase,
            "inner_step": self.inner_step,
            "tokens_per_s": self.tokens_per_s,
            "shard": self.shard,
            "checkpoints": list(self.checkpoints),
            "put_out": list(self.put_out),
            "name": self.name,
            "loss": self.loss,
            "links": [[peer, round_trip_s] for peer, round_trip_s in self.links],
            **({"founders": [str(peer) for peer in self.founders]} if founders else {}),
            "goodbye": self.goodbye,
        }


def _with(values: tuple[T, ...], index: int, value: T) -> tuple[T, ...]:
    return (*values[:index], value, *values[index + 1 :])


def parse_state(fields: Fields, before: State | None = None) -> State:
    """Check and build a `State`.

    Args:
        before: what it has said before; has its chains and founders, where they are not in the message.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    role, phase = fields.text("role"), fields.text("phase")
    if role not in ("island", "seed", "observer"):
        raise ProtocolError(f"state.role: expected island, seed or observer, got {role!r}")
    if phase not in ("starting", "joining", "training", "leaving"):
        raise ProtocolError(f"state.phase: expected a known phase, got {phase!r}")
    known = before.chains if before is not None and not fields.has("heads") else None
    return State(
        role=role,
        phase=phase,
        inner_step=fields.integer("inner_step"),
        chains=known or _parse_chains(fields),
        tokens_per_s=fields.number("tokens_per_s"),
        shard=fields.integer("shard", -1),
        checkpoints=fields.integers("checkpoints", MAX_CHECKPOINTS),
        put_out=tuple(PeerId(peer) for peer in fields.texts("put_out", MAX_PUT_OUT)),
        name=_parse_name(fields),
        loss=fields.number("loss") if fields.has("loss") else None,
        links=_parse_links(fields),
        founders=_parse_founders(fields) if before is None or fields.has("founders") else before.founders,
        goodbye=fields.text("goodbye", MAX_SIGNATURE) if fields.has("goodbye") else "",
        trouble=fields.text("trouble", MAX_TROUBLE) if fields.has("trouble") else "",
    )


def _parse_chains(fields: Fields) -> Chains:
    heads = tuple(Digest(head) for head in fields.texts("heads", MAX_FRAGMENTS))
    outer_steps = fields.integers("outer_steps", MAX_FRAGMENTS)
    total_tokens = fields.integers("total_tokens", MAX_FRAGMENTS)
    if not len(heads) == len(outer_steps) == len(total_tokens):
        raise ProtocolError(
            f"state: expected as many outer_steps and total_tokens as the {len(heads)} heads, "
            f"got {len(outer_steps)} and {len(total_tokens)}"
        )
    return Chains(outer_steps, heads, total_tokens)


def _parse_founders(fields: Fields) -> tuple[PeerId, ...]:
    return tuple(PeerId(peer) for peer in fields.texts("founders", MAX_FOUNDERS))


def _parse_name(fields: Fields) -> str:
    name = fields.text("name", LONGEST_NAME) if fields.has("name") else ""
    if name and not is_name(name):
        raise ProtocolError(f"{fields.kind}.name: expected {NAME_RULE}, got {name!r}")
    return name


def _parse_links(fields: Fields) -> tuple[Link, ...]:
    links: list[Link] = []
    for item in fields.items("links", MAX_LINKS) if fields.has("links") else ():
        if not isinstance(item, list) or len(item) != 2:
            raise ProtocolError(f"{fields.kind}.links: expected [peer, seconds], got {item!r:.80}")
        peer = PeerId(checked_text(f"{fields.kind}.links", item[0], MAX_NAME))
        seconds = None if item[1] is None else checked_float(f"{fields.kind}.links", item[1])
        if seconds is not None and seconds < 0.0:
            raise ProtocolError(f"{fields.kind}.links: expected at least 0 s, got {seconds:g}")
        links.append((peer, seconds))
    return tuple(links)


@dataclass(slots=True)
class Peer:
    """A linked peer.

    Attributes:
        greeted: its hello has come, and fits.
        introduced: it has told which peers it knows, which it does once it has our hello.
        settled: set when it has greeted, or is gone.
        pulse, silent: its messages; whether it has been silent for longer than it ever is.
        explains: it was asked in what it differs.
        pages_told: pages of what this peer trains with that it has asked for.
        protocol: another one than this peer's, as its last greeting named it.
        unfit: it and this peer don't fit together: what it still says until the link goes means nothing.
        round_trip_s: what the newest heartbeat took to it and back.
        answered_s: when the newest heartbeat was sent to it that it has answered.
        heard_awake_s: when anything last came from it, in this peer's waking time; who had not been asked for
            long counts as heard a heartbeat before it was.
        pinged_s: when it was asked last.
        quiet_since_s: since when it owes an answer; infinite where it owes none.
        knows: the position of this peer that it knows of, see `Chains.position`.
        reached_s: when it was last known to have committed an entry without having said so.
        doubted: others were told that it doesn't answer.
        progress, stalled: its steps, inner or outer; whether it has made none for longer than it takes.
    """

    id: PeerId
    state: State = field(default_factory=State)
    addresses: tuple[str, ...] = ()
    greeted: bool = False
    introduced: bool = False
    seen_at_s: float = 0.0
    round_trip_s: float | None = None
    silence: AdaptiveTimeout | None = None
    progress: AdaptiveTimeout | None = None
    silent: bool = False
    explains: bool = False
    pages_told: int = 0
    unfit: bool = False
    protocol: int | None = None
    stalled: bool = False
    allowance: float = BURST_MESSAGES
    counted_at_s: float = 0.0
    heard_awake_s: float = 0.0
    answered_s: float = 0.0
    pinged_s: float = -math.inf
    quiet_since_s: float = math.inf
    knows: Digest | None = None
    reached_s: float = -math.inf
    doubted: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)
