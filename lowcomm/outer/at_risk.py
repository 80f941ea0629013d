"""An island's own work in entries that were committed with members absent, as long as these may come back.

Each side of a split goes on by itself, and of two histories one stands. What an island has put into entries
of the other one is lost with them, so it is kept until nobody is absent any more, as one sum, and goes into
the next contribution where the other history is taken over ("Forks" in docs/design/0019-rounds.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from torch import Tensor

from lowcomm.in_order import InOrder
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.chain import KEPT_HEADS, Certified
from lowcomm.ledger.entry import ContributionId
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import PeerId

MOST_OPEN = 4
"""Contributions that are kept since it is not known whether they were committed; each is a whole vector."""


@dataclass(slots=True)
class _Total:
    """Of vectors; changed in worker threads only, and by one after the other."""

    values: Tensor | None = None

    def add(self, accepted: Accepted, own: Contribution) -> None:
        arrived = accepted.sent(own).load()
        self.values = arrived.clone() if self.values is None else self.values.add_(arrived)


@dataclass(slots=True)
class _Sum:
    """What entries since the common one hold of this island."""

    entries: int = 0
    tokens: int = 0
    total: _Total = field(default_factory=_Total)
    names: set[ContributionId] = field(default_factory=set)


class AtRisk:
    """One fragment's work at risk; call only from the exchange's loop.

    Args:
        pool: adds vectors up.
    """

    def __init__(self, pool: Executor) -> None:
        self._adding = InOrder(pool)
        self._sum, self._left = _Sum(), _Sum()
        self._absent: set[PeerId] = set()
        self._open: dict[ContributionId, Tensor] = {}

    def committed(self, accepted: Accepted, certificate: Certificate, sent: Sequence[Contribution]) -> None:
        """An entry was committed here.

        Args:
            sent: contributions to its outer step that others may hold, too.
        """
        first = not self._absent
        self._absent |= set(certificate.absent)
        self._absent -= {peer for peer, _ in accepted.entry.participants}
        if not self._absent:
            self.clear()
            return
        if first:
            self._hold({contribution.id: contribution.values for contribution in sent})
        self._sum.entries += 1
        if self._sum.entries >= KEPT_HEADS:  # where the histories part can't be found any more
            self._sum, self._open = _Sum(KEPT_HEADS), {}
        elif accepted.contribution is not None:
            own, sum_ = accepted.contribution, self._sum
            sum_.tokens += own.tokens
            sum_.names.add(own.id)
            self._adding.submit(lambda: sum_.total.add(accepted, own))

    async def settle(
        self, entries: Sequence[Certified], me: PeerId, sent: Mapping[ContributionId, Tensor], *, left: bool
    ) -> tuple[Tensor | None, int, list[tuple[int, Tensor]]]:
        """The other history is taken over: what of this island's work is in no entry any more, and what is.

        Args:
            entries: of the other history.
            sent: contributions that others hold.
            left: this history is not the beginning of that one.

        Returns:
            What is lost (None for nothing), its tokens, and tokens and sums of what is in these entries.
        """
        await asyncio.wrap_future(self._adding.done())
        names = {certified.entry.contribution_of(me) for certified in entries} - {None}
        held, here, before = {**self._open, **sent}, self._sum, self._left
        self.clear()
        self._hold(held)
        named = []
        back = before.total.values  # of the side that it had left, and comes back to
        if back is not None and before.names <= names:
            named.append((before.tokens, back))
            names -= before.names
        lost = left and not here.names <= names
        if not lost:
            names -= here.names
        self._left = here if lost else before
        named += [(name.tokens, held[name]) for name in names if name is not None and name in held]
        return (here.total.values, here.tokens, named) if lost else (None, 0, named)

    def clear(self) -> None:
        """Nobody is absent any more."""
        self._sum, self._left, self._absent, self._open = _Sum(), _Sum(), set(), {}

    def _hold(self, sent: Mapping[ContributionId, Tensor]) -> None:
        self._open = dict([*self._open.items(), *sent.items()][-MOST_OPEN:])
