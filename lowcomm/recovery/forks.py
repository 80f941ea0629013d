"""Two histories of one run: where they part, and which of them stands (docs/design/0019-rounds.md)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from lowcomm.ledger.certificate import is_quorum
from lowcomm.ledger.chain import Certified, Standing
from lowcomm.ledger.entry import ContributionId
from lowcomm.types import Digest, PeerId


@dataclass(frozen=True, slots=True)
class Branch:
    """What another peer has after the last entry that is common.

    Attributes:
        electorate: of the outer step after the common one; empty where that isn't known.
        mine: this peer's entry there; None where the other history only goes on with this one.
        theirs: the other peer's entries from there on, as far as it has them.
    """

    electorate: tuple[PeerId, ...]
    mine: Certified | None
    theirs: tuple[Certified, ...]


@dataclass(frozen=True, slots=True)
class Switch:
    """A state was taken over that is not the next one of this peer's history.

    Attributes:
        left: the entries of its own history since the one that both have; None where that is not known.
        taken: those that lead from there to the state.
        sent: what it had sent to the outer step that was decided next, and others may hold.
    """

    left: tuple[Certified, ...] | None
    taken: tuple[Certified, ...]
    sent: Mapping[ContributionId, Tensor]


@dataclass(frozen=True, slots=True)
class Side:
    """One of two histories: how far it is, its head, and how many live islands have that."""

    standing: Standing
    head: Digest
    support: int


def other_stands(branch: Branch, here: Side, there: Side) -> bool:
    """Whether the other history is the one to follow; both sides come to the same answer.

    The one that an operator's mandate has begun, as who was lost for good may have come back; then the one
    whose first entry has the votes of more than half of those who may decide; if neither has, the one with
    more credited tokens, then more outer steps, more live islands, the lesser head.
    """
    if branch.mine is None or not branch.theirs:
        return there.standing > here.standing
    mandated_here, mandated_there = (
        first.certificate is not None and first.certificate.mandate is not None
        for first in (branch.mine, branch.theirs[0])
    )
    if mandated_here != mandated_there:
        return mandated_there
    whole_here, whole_there = (
        _is_whole(first, branch.electorate) for first in (branch.mine, branch.theirs[0])
    )
    if whole_here != whole_there:
        return whole_there
    if there.standing != here.standing:
        return there.standing > here.standing
    return (-there.support, there.head) < (-here.support, here.head)


def _is_whole(first: Certified, electorate: Collection[PeerId]) -> bool:
    certificate = first.certificate
    return certificate is not None and bool(electorate) and is_quorum(certificate.voters, electorate, ())
