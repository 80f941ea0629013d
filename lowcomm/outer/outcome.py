"""What one contribution came to: a report, and what it takes to bring it into the local parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowcomm.algorithms.intervals import Speed
from lowcomm.algorithms.merge import movement_
from lowcomm.islands.vectors import Vector
from lowcomm.ledger.chunks import shares_of
from lowcomm.ledger.state import Position
from lowcomm.rounds.roster import Participant
from lowcomm.types import PeerId, RoundReport


@dataclass(frozen=True, slots=True)
class Landing:
    """What all ranks of an island have to know of a round, small values only.

    Attributes:
        report: what only whoever lands it can know is empty in it: waiting, inner steps.
        whole: whether nothing of the contribution was lost in its encoding.
        unusable: whether nothing came of it as this island's own part may be as bad at once again.
        peer: this island.
        swarm_step: where the participants stand, see `furthest`; 0 if that is not known.
        speeds: of the participants; none where nothing was committed, or what others had finished.
        late_s: others had been ready for so long when this island was.
        dropped: tokens of this island that a history credited which does not stand, and that are lost.
    """

    report: RoundReport
    whole: bool
    unusable: bool
    peer: PeerId
    swarm_step: int
    speeds: Mapping[PeerId, Speed]
    late_s: float
    dropped: int = 0

    @property
    def out_of_step(self) -> bool:
        """Whether the others have gone on without this contribution, or nothing came of the round."""
        return self.report.adopted > 0 or not (self.report.committed or self.unusable)

    @property
    def moves(self) -> bool:
        """Whether the local parameters have to follow."""
        return self.report.committed or self.report.adopted > 0


@dataclass(frozen=True, slots=True)
class Movement:
    """What a round adds to the local parameters, wherever training has brought them since; a `Vector`.

    It is computed when it is asked for, so that no copy of a fragment is needed.

    Attributes:
        before: the anchor that they started from.
        base: the anchor that the committed update stepped; differs from `before` if entries were adopted.
        after: the anchor now.
        values: the pseudo-gradient against `before` that was committed, without what its encoding lost; None
            if none was.
        merge_alpha: see `merge`.
        shift: what a preview has added, which is taken out; None without one.
    """

    before: Vector
    base: Vector
    after: Vector
    values: Vector | None
    merge_alpha: float = 0.0
    shift: Tensor | None = None

    @property
    def elements(self) -> int:
        return self.after.elements

    def load(self, start: int = 0, stop: int | None = None) -> Tensor:
        """See `Vector`."""
        base = self.base.load(start, stop)
        if self.values is None:
            moved = torch.zeros_like(base)
        else:
            after, values = self.after.load(start, stop), self.values.load(start, stop)
            moved = movement_(torch.empty_like(base), after, base, values, self.merge_alpha)
        if self.base is not self.before:
            moved.add_(base - self.before.load(start, stop))
        if self.shift is not None:
            moved.sub_(self.shift[start:stop])
        return moved


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one contribution came to, on the lead.

    Attributes:
        position: what the local parameters stand on once `movement` is in them.
    """

    landing: Landing
    movement: Movement
    position: Position


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
