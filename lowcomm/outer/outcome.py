"""What one call of `Node.contribute` came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.algorithms.intervals import Speed
from lowcomm.algorithms.merge import movement_
from lowcomm.islands.vectors import Vector
from lowcomm.ledger.chunks import shares_of
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import Position
from lowcomm.rounds.roster import Participant
from lowcomm.types import BallotEnd, Digest, PeerId


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What one call of `Node.contribute` came to.

    Attributes:
        entry: the entry that holds this island's contribution; None if nothing was committed.
        reason: why not.
        unusable: whether that is this island's own part, which may be as bad at once again.
        outer_step, digest, head: of the fragment after it; others may have gone further in the meantime.
        before: the anchor when the call began.
        values: the pseudo-gradient against `before` that was to be committed; without what its encoding lost.
        whole: whether it lost nothing.
        base: the anchor that the committed update stepped; differs from `before` if entries were adopted.
        after: the anchor now.
        position: what a checkpoint has to hold of the fragment once `after` is in the local parameters.
        tokens: tokens credited to this island, in `entry` and in adopted entries.
        swarm_step: where the participants stand, see `furthest`; 0 if that is not known.
        speeds: of the participants; none where nothing was committed, or what others had finished.
        total_tokens: credited to all islands in the fragment's chain.
        late_s: others had been ready for so long when this island was.
        adopted: outer steps taken over from others, without this contribution.
        ballots: that came to nothing, also where the round then committed.
        rejected: contributions of others that were not accepted, as `peer: reason`.
        residual_before, residual_norm: L2 norm of the residual before and after; None without error
            feedback.
    """

    entry: Entry | None
    reason: str
    unusable: bool
    outer_step: int
    before: Vector
    values: Vector
    whole: bool
    base: Vector
    after: Vector
    position: Position
    tokens: int
    adopted: int
    attempts: int
    mean_norm: float | None
    cosine: float | None
    swarm_step: int
    speeds: Mapping[PeerId, Speed]
    total_tokens: int
    late_s: float
    form_s: float
    transfer_s: float
    round_s: float
    bytes_sent: int
    bytes_received: int
    digest: Digest
    head: Digest
    ballots: tuple[BallotEnd, ...]
    rejected: tuple[str, ...]
    residual_before: float | None
    residual_norm: float | None

    @property
    def out_of_step(self) -> bool:
        """Whether the others have gone on without this contribution, or nothing came of the round."""
        return self.adopted > 0 or (self.entry is None and not self.unusable)

    @property
    def moves(self) -> bool:
        """Whether the local parameters have to follow."""
        return self.entry is not None or self.adopted > 0


@dataclass(frozen=True, slots=True)
class Movement:
    """What a round adds to the local parameters, wherever training has brought them since; a `Vector`.

    It is computed when it is asked for, so that no copy of a fragment is needed.

    Attributes:
        merge_alpha: see `merge`.
        shift: what a preview has added, which is taken out; None without one.
    """

    outcome: RoundOutcome
    merge_alpha: float
    shift: Tensor | None = None

    @property
    def elements(self) -> int:
        return self.outcome.after.elements

    def load(self, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Vector`."""
        outcome = self.outcome
        base = outcome.base.load(start, stop)
        if outcome.entry is None:
            moved = torch.zeros_like(base)
        else:
            after, values = outcome.after.load(start, stop), outcome.values.load(start, stop)
            moved = movement_(torch.empty_like(base), after, base, values, self.merge_alpha)
        if outcome.base is not outcome.before:
            moved.add_(base - outcome.before.load(start, stop))
        if self.shift is not None:
            moved.sub_(self.shift[start:stop])
        return moved


def mean_cosine(participants: Sequence[Participant], mean_norm: float | None) -> float | None:
    """Mean pairwise cosine of the contributions, from their norms and the norm of their mean.

    |sum w_i g_i|^2 = sum w_i^2 |g_i|^2 + sum_{i != j} w_i w_j <g_i, g_j>, so the second sum, over the
    same sum of the products of norms, is the weighted mean cosine.
    """
    if mean_norm is None or len(participants) < 2:
        return None
    shares = shares_of([member.tokens for member in participants])
    scaled = [share * member.norm for share, member in zip(shares, participants, strict=True)]
    squares = sum(value * value for value in scaled)
    pairs = sum(scaled) ** 2 - squares
    return (mean_norm**2 - squares) / pairs if pairs > 0 else None
