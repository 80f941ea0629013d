"""An island's own work in entries that were committed with members absent, as long as these may come back.

Each side of a split goes on by itself, and of two histories one stands. What an island has put into entries
of the other one is lost with them, so it is kept until nobody is absent any more, and brought in again where
the other history is taken over ("Forks" in docs/design/0019-rounds.md).

How many tokens an island is credited the entries of both histories say. For the values it keeps sums, each
of contributions that followed each other and had the same participants: a history can only part where some
of them are gone, so it is mostly a whole sum that is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from lowcomm.in_order import InOrder
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.chain import KEPT_HEADS
from lowcomm.ledger.entry import ContributionId, Entry
from lowcomm.recovery.forks import Switch
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import PeerId

MOST_SUMS = 4
"""Sums that are kept; each is a whole vector. Of more, neighbours are added up."""
MOST_NAMES = KEPT_HEADS // MOST_SUMS
"""Contributions in one sum. Where histories part is not found further back than all of them reach."""
MOST_OPEN = 4
"""Contributions that are kept since others may commit them yet; each is a whole vector."""


class _Vector:
    """Contributions added up; changed in worker threads only, one after the other."""

    def __init__(self, values: Tensor | None = None) -> None:
        self.values = values

    def add(self, more: Tensor | None) -> None:
        if more is not None:
            self.values = more.clone() if self.values is None else self.values.add_(more)


def tokens_of(names: Collection[ContributionId]) -> int:
    """Of some contributions."""
    return sum(name.tokens for name in names)


@dataclass(slots=True)
class _Sum:
    """Of contributions that followed each other: their names, and the values of all."""

    names: set[ContributionId] = field(default_factory=set)
    vector: _Vector = field(default_factory=_Vector)

    def share(self, names: Collection[ContributionId]) -> float:
        """How much of it these are: exactly all of it, or by tokens."""
        whole = tokens_of(self.names)
        return tokens_of(names) / whole if whole and len(names) < len(self.names) else 1.0


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a switch to another history has changed of this island's work.

    Attributes:
        lost, back: tokens that only the history before credited, and that only this one does.
        dropped: tokens of the lost ones whose values aren't kept any more.
        unknown: tokens of those that came back whose values aren't kept any more.
    """

    lost: int
    back: int
    dropped: int
    unknown: int
    _lost: Sequence[tuple[_Vector, float]]
    _back: Sequence[tuple[_Vector, float]]
    _added: Future[None]

    async def summed(self) -> None:
        """Wait until all that was committed before is in the sums."""
        await asyncio.wrap_future(self._added)

    def taken(self, progress: Tensor, tokens: int) -> Tensor | None:
        """What local progress is less now: what came back, without what was lost; None for nothing.

        In a worker thread.

        Args:
            progress: a part of it, 1-D fp32, of so many tokens. Where only the tokens of what came back are
                known, it is taken to be like that.
        """
        parts = [(vector, -share) for vector, share in self._lost] + list(self._back)
        if self.unknown and tokens:
            parts.append((_Vector(progress), self.unknown / tokens))
        if not parts:
            return None
        taken = torch.zeros_like(progress)
        for vector, share in parts:
            if vector.values is not None:
                taken.add_(vector.values, alpha=share)
        return taken


class AtRisk:
    """One fragment's work at risk; call only from the exchange's loop.

    Args:
        pool: adds vectors up.
    """

    def __init__(self, pool: Executor) -> None:
        self._adding = InOrder(pool)
        self._absent: set[PeerId] = set()
        self._sums: list[_Sum] = []
        self._open: dict[ContributionId, _Vector] = {}
        self._growing: tuple[PeerId, ...] = ()
        self._sent: dict[ContributionId, None] = {}

    def sends(self, name: ContributionId) -> None:
        """A contribution of this life of the island is on its way."""
        self._sent[name] = None
        if len(self._sent) > KEPT_HEADS:
            del self._sent[next(iter(self._sent))]

    def committed(self, accepted: Accepted, certificate: Certificate, sent: Sequence[Contribution]) -> None:
        """An entry was committed here.

        Args:
            sent: contributions to its outer step that others may hold, too.
        """
        members = tuple(peer for peer, _ in accepted.entry.participants)
        self._absent |= set(certificate.absent)
        self._absent -= set(members)
        if not self._absent:
            self.clear()
            return
        own = accepted.contribution
        self._hold({one.id: one.values for one in sent if own is None or one.id != own.id})
        if own is None:
            return
        if members != self._growing or len(self._sums[-1].names) >= MOST_NAMES:
            self._growing = members
            self._make_room()
            self._sums.append(_Sum())
        self._sums[-1].names.add(own.id)
        vector = self._sums[-1].vector
        self._adding.submit(lambda: vector.add(accepted.sent(own).load()))

    def clear(self) -> None:
        """Nobody is absent any more."""
        self._absent, self._sums, self._open, self._growing = set(), [], {}, ()

    def switched(self, switch: Switch, me: PeerId) -> Settlement | None:
        """Another history was taken over; None where it isn't known what of this island's work is in it."""
        self._hold(switch.sent)
        self._growing = ()
        if switch.left is None:
            return None
        for certified in switch.taken:
            self._absent |= set(certified.certificate.absent) if certified.certificate else set()
            self._absent -= {peer for peer, _ in certified.entry.participants}
        self._absent |= {peer for left in switch.left for peer, _ in left.entry.participants}
        self._absent.discard(me)
        before = [one.entry.contribution_of(me) for one in switch.left]
        now = [one.entry.contribution_of(me) for one in switch.taken]
        return self._settlement({name for name in before if name}, {name for name in now if name})

    def found(self, entry: Entry, me: PeerId) -> Settlement | None:
        """An entry names this island without its knowing: what is settled then, if it is of this life."""
        name = entry.contribution_of(me)
        return self._settlement(set(), {name}) if name in self._sent and name is not None else None

    def _settlement(self, before: set[ContributionId], now: set[ContributionId]) -> Settlement:
        # what an earlier life has sent there is counted where a life begins, or never
        lost, back = before - now, (now - before) & self._sent.keys()
        lost_parts, dropped = self._parts_of(lost)
        back_parts, unknown = self._parts_of(back)
        return Settlement(
            tokens_of(lost),
            tokens_of(back),
            dropped,
            unknown,
            lost_parts,
            back_parts,
            self._adding.done(),
        )

    def _parts_of(self, names: Collection[ContributionId]) -> tuple[list[tuple[_Vector, float]], int]:
        """The sums that hold these, with their shares, and the tokens of those that none holds."""
        parts, left = [], set(names)
        for kept in self._sums:
            if found := kept.names & left:
                parts.append((kept.vector, kept.share(found)))
                left -= found
        for name in [name for name in left if name in self._open]:
            parts.append((self._open[name], 1.0))
            left.discard(name)
        return parts, tokens_of(left)

    def _hold(self, sent: Mapping[ContributionId, Tensor]) -> None:
        self._open.update((name, _Vector(values)) for name, values in sent.items())
        for name in list(self._open)[:-MOST_OPEN]:
            del self._open[name]

    def _make_room(self) -> None:
        """For one sum more: add the two smallest neighbours up, or forget what is too far back."""
        if len(self._sums) < MOST_SUMS:
            return
        pairs = [len(one.names) + len(other.names) for one, other in pairwise(self._sums)]
        least = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[least] > MOST_NAMES:
            del self._sums[0]
            return
        one, other = self._sums[least], self._sums[least + 1]
        merged = _Sum(one.names | other.names)

        def add() -> None:
            merged.vector.add(one.vector.values)
            merged.vector.add(other.vector.values)

        self._adding.submit(add)
        self._sums[least : least + 2] = [merged]
