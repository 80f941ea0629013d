"""Small values that every layer speaks of. The words are those of docs/glossary.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NewType

PeerId = NewType("PeerId", str)
"""The name of a peer: the base58 libp2p id on the swarm, any unique text elsewhere."""

Digest = NewType("Digest", str)
"""A blake3 hash in lower-case hex, 64 characters."""

Link = tuple[PeerId, float | None]
"""A linked peer, and the seconds that a message takes there and back, where they are known."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def short(peer: PeerId) -> str:
    """A peer for people: the end of its id, which has 52 characters."""
    return f"…{peer[-8:]}" if len(peer) > 16 else peer


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One trainable tensor of the model, as all islands must agree on it."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


Layout = tuple[TensorSpec, ...]
"""All trainable tensors in the model's own order; tied tensors stand once."""


ReasonKind = Literal[
    "gone", "silent", "stalled", "votes", "declined", "superseded", "differ", "claims", "bad", "own", "disk",
    "fetch", "few", "bound", "told",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a ballot, or a round, came to nothing.

    Attributes:
        kind: `gone`, `silent`: the link to a participant broke, or nothing comes over it; `stalled`: data
            did not come; `votes`: votes did not come; `declined`: a participant takes no part; `superseded`:
            a later ballot; `differ`: states after it; `claims`: what a contribution may not claim; `bad`:
            data that no honest peer sends; `own`: this island's own part broke; `disk`: a promise could not
            be written; `fetch`: nobody hands over an accepted update; `few`: no roster can be formed;
            `bound`: an earlier vote of this island stands in the way; `told`: another participant ended it.
        peers: whom it names.
        seconds: how long was waited; 0 = not at all.
        text: in words.
    """

    kind: ReasonKind
    text: str
    peers: tuple[PeerId, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class BallotEnd:
    """One ballot that came to nothing here, or was committed without somebody's vote.

    Attributes:
        seconds: from joining it to its end.
        committed: without the votes of those that the reason names.
    """

    attempt: int
    leader: PeerId
    participants: tuple[PeerId, ...]
    reason: Reason
    seconds: float
    committed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What one round did, as it is returned by `OuterLoop.step` and written to metrics.jsonl.

    Attributes:
        outer_step: the fragment's outer step after the round (unchanged if not committed).
        fragment: index of the fragment.
        committed: whether the outer state moved.
        reason: why not, in words; empty if committed.
        participants: the peer ids whose pseudo-gradients are in the mean.
        attempts: how many rosters were tried.
        bytes_sent, bytes_received: on the sockets of this island from the round's start to its end,
            headers and control messages included.
        round_s: from due to commit or abort.
        wait_s: how long training stood still for it.
        form_s: from due to the roster.
        transfer_s: from the roster to the last byte of the mean.
        tokens: tokens credited to this island by the round.
        round_tokens: tokens credited to all participants.
        compression_ratio: fp32 bytes of the fragment / encoded bytes of the mean.
        pseudo_gradient_norm: L2 norm of this island's pseudo-gradient.
        mean_norm: L2 norm of the mean that was applied.
        cosine: mean pairwise cosine between the participants' pseudo-gradients; None below two.
        adopted: committed updates that this island had missed and has now replayed.
        digest: of the fragment's anchor and outer-optimizer state after the round.
        head: of the fragment's chain after the round.
        rejected: contributions of others that this island did not accept, as `peer: reason`.
        ballots: that came to nothing here, or were committed without somebody's vote, oldest first; also
            where the round then committed.
        residual_before, residual_norm: L2 norm of what encodings of means have lost on this island and its
            next round adds, before and after; None without error feedback. What the encoding of its own
            pseudo-gradient lost is in its local parameters.
        inner_steps: of this island since its contribution before this one.
        next_inner_steps: planned until its next one.
        total_tokens: credited to all islands in the fragment's chain, this round included.
    """

    outer_step: int
    fragment: int
    committed: bool
    reason: str
    participants: tuple[PeerId, ...]
    attempts: int
    bytes_sent: int = 0
    bytes_received: int = 0
    round_s: float = 0.0
    wait_s: float = 0.0
    form_s: float
    transfer_s: float
    tokens: int
    round_tokens: int
    compression_ratio: float | None
    pseudo_gradient_norm: float
    mean_norm: float | None
    cosine: float | None
    adopted: int
    digest: Digest
    head: Digest
    rejected: tuple[str, ...] = ()
    residual_before: float | None = None
    residual_norm: float | None = None
    inner_steps: int = 0
    next_inner_steps: int = 0
    total_tokens: int = 0
    ballots: tuple[BallotEnd, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """A live peer as another one sees it.

    Attributes:
        name: what people call it, or empty.
        loss: its newest training loss, nats per token, if it has told one.
        links: the peers that it is linked to; of others only observers are told.
        trouble: why its last round came to nothing, or only at a further ballot; as `links`.
    """

    peer: PeerId
    role: str
    phase: str
    inner_step: int
    outer_steps: tuple[int, ...]
    heads: tuple[str, ...]
    tokens_per_s: float
    shard: int
    addresses: tuple[str, ...]
    seen_s_ago: float
    name: str = ""
    loss: float | None = None
    links: tuple[Link, ...] = ()
    trouble: str = ""


SharedSettings = Mapping[str, Json]
"""Dotted key -> value; what must be equal on all peers of a run."""
