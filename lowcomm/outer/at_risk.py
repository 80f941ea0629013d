"""An island's own work in entries that were committed with members absent, as long as these may come back.

Each side of a split goes on by itself, and of two histories one stands. What an island has put into entries
of the other one is lost with them, so it is kept until nobody is absent any more, as one sum, and goes into
the next contribution where the other history is taken over ("Forks" in docs/design/0019-rounds.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lowcomm.ledger.certificate import Certificate
from lowcomm.ledger.chain import Certified
from lowcomm.ledger.entry import ContributionId
from lowcomm.rounds.contribution import Accepted, Contribution
from lowcomm.types import PeerId


class AtRisk:
    """One fragment's work at risk.

    Attributes:
        tokens: that entries with absent members credit to this island.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._total: Tensor | None = None
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
        own = accepted.contribution
        if own is not None:
            arrived = accepted.sent(own).load()
            self._total = arrived.clone() if self._total is None else self._total.add_(arrived)
            self.tokens += own.tokens

    def lost(self) -> tuple[Tensor | None, int]:
        """The other history is taken over: what is in no entry any more, and how many tokens it is."""
        return self._total, self.tokens

    def named(
        self, entries: Sequence[Certified], me: PeerId, sent: Mapping[ContributionId, Tensor]
    ) -> list[tuple[ContributionId, Tensor]]:
        """Contributions of this island, of those that others held, that are in these entries."""
        held = {**self._open, **sent}
        names = (certified.entry.contribution_of(me) for certified in entries)
        return [(name, held[name]) for name in names if name is not None and name in held]

    def clear(self) -> None:
        """Nobody is absent any more, or the other history was taken over."""
        self.tokens, self._total = 0, None
        self._absent, self._open = set(), {}
