"""An island's own work in entries that were committed with members absent, as long as these may come back.

Each side of a split goes on by itself, and of two histories one stands. What an island has put into entries
of the other one is lost with them, so it is kept until nobody is absent any more, as one sum, and goes into
the next contribution where the other history is taken over ("Forks" in docs/design/0019-rounds.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from torch import Tensor

from lowcomm.in_order import InOrder
from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.chain import KEPT_HEADS, Certified
from lowcomm.ledger.entry import ContributionId
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import PeerId


@dataclass(slots=True)
class _Sum:
    """What entries since the common one hold of this island; `total` is changed in worker threads."""

    entries: int = 0
    tokens: int = 0
    total: Tensor | None = None

    def add(self, accepted: Accepted, own: Contribution) -> None:
        arrived = accepted.sent(own).load()
        self.total = arrived.clone() if self.total is None else self.total.add_(arrived)


class AtRisk:
    """One fragment's work at risk; call only from the exchange's loop.

    Args:
        pool: adds vectors up.
    """

    def __init__(self, pool: Executor) -> None:
        self._adding = InOrder(pool)
        self._sum = _Sum()
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
            self._open = {contribution.id: contribution.values for contribution in sent}
        self._sum.entries += 1
        if self._sum.entries >= KEPT_HEADS:  # where the histories part can't be found any more
            self._sum, self._open = _Sum(KEPT_HEADS), {}
        elif accepted.contribution is not None:
            own, sum_ = accepted.contribution, self._sum
            sum_.tokens += own.tokens
            self._adding.submit(lambda: sum_.add(accepted, own))

    async def lost(self) -> tuple[Tensor | None, int]:
        """The other history is taken over: what is in no entry any more, and how many tokens it is."""
        await asyncio.wrap_future(self._adding.done())
        return self._sum.total, self._sum.tokens

    def named(
        self, entries: Sequence[Certified], me: PeerId, sent: Mapping[ContributionId, Tensor]
    ) -> list[tuple[ContributionId, Tensor]]:
        """Contributions of this island, of those that others held, that are in these entries."""
        held = {**self._open, **sent}
        names = (certified.entry.contribution_of(me) for certified in entries)
        return [(name, held[name]) for name in names if name is not None and name in held]

    def clear(self) -> None:
        """Nobody is absent any more, or the other history was taken over."""
        self._sum, self._absent, self._open = _Sum(), set(), {}
