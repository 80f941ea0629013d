"""What an island puts into a round, and the update that came of it."""

from __future__ import annotations

from dataclasses import dataclass

import blake3
from torch import Tensor

from lowcomm.algorithms.intervals import UNMEASURED, Speed
from lowcomm.islands.vectors import Difference, HostVector, Vector, bytes_of, spans
from lowcomm.ledger.certificate import Ballot
from lowcomm.ledger.entry import SUM_LENGTH, ContributionId, Entry
from lowcomm.ledger.residual import Residual
from lowcomm.ledger.state import FragmentState
from lowcomm.ledger.update import Update
from lowcomm.rounds.roster import Participant
from lowcomm.rounds.values import Offer


def sum_of(values: Tensor) -> str:
    """The hash of a contribution's values, 1-D fp32 on the host."""
    hasher = blake3.blake3()
    for start, stop in spans(values.numel()):
        hasher.update(bytes_of(values[start:stop]))
    return hasher.hexdigest()[:SUM_LENGTH]


@dataclass(frozen=True, slots=True)
class Contribution:
    """One island's pseudo-gradient for one fragment: 1-D fp32 on the host, and what it says of it."""

    values: Tensor
    offer: Offer

    @staticmethod
    def of(
        values: Tensor, *, start: int, tokens: int, norm: float, inner_step: int, speed: Speed = UNMEASURED
    ) -> Contribution:
        """Hash the values and hold them; see `ContributionId` and `Participant`."""
        return Contribution(
            values, Offer(ContributionId(start, tokens, sum_of(values)), norm, inner_step, speed)
        )

    @property
    def id(self) -> ContributionId:
        return self.offer.id

    @property
    def tokens(self) -> int:
        return self.offer.tokens

    @property
    def norm(self) -> float:
        return self.offer.norm

    @property
    def inner_step(self) -> int:
        return self.offer.inner_step

    @property
    def speed(self) -> Speed:
        return self.offer.speed


@dataclass(frozen=True, slots=True)
class Accepted:
    """An update that this peer holds whole, and the state after it.

    `contribution` is what this peer put into it; None if it was finished without this peer's. `unsent`: what
    of it stays in the local parameters, as encoding lost it; None for nothing. `joined_s`, `accepted_s`: loop
    times at which the ballot that committed it was joined here, and its update held; 0 before.
    """

    ballot: Ballot
    entry: Entry
    update: Update
    after: FragmentState
    residual: Residual | None
    unsent: Vector | None
    mean_norm: float | None
    contribution: Contribution | None
    participants: tuple[Participant, ...]
    joined_s: float = 0.0
    accepted_s: float = 0.0

    def sent(self, contribution: Contribution) -> Vector:
        """What of `contribution`, this peer's part of the entry, has arrived: without what encoding lost."""
        values = HostVector(contribution.values)
        return values if self.unsent is None else Difference(values, self.unsent)
