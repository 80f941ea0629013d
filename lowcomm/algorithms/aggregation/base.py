"""The seam of the aggregation rules: what a reducer makes of the contributions to one chunk.

A reducer sees its byte range of every contribution, and of that one chunk at a time. So a rule is
a function of `[n, elements]` numbers in roster order. It runs at one peer only, which encodes the
outcome once; all others decode those bytes. So no rule can break the bit-identity of the anchors
(guarantee G1), and a rule may use any arithmetic. Rules that need norms or distances take them over
the chunk: the seam gives no statistics of whole vectors (docs/design/0002-robust-means.md says why).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Aggregation(Protocol):
    """One rule.

    Attributes:
        min_participants: with fewer contributions the rule can't keep what it promises.
    """

    @property
    def settings(self) -> dict[str, float | str]:
        """Name and parameters; must be equal on all peers."""
        ...

    @property
    def min_participants(self) -> int: ...

    def combine(self, parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """The aggregate of one chunk.

        Args:
            parts: finite, 1-D fp32 of equal length, in roster order; may be overwritten.
            shares: each participant's part of the tokens, adding up to 1.

        Raises:
            ValueError: fewer parts than `min_participants`.
        """
        ...


def check_count(rule: Aggregation, parts: Sequence[Tensor]) -> None:
    """See whether there are parts enough.

    Raises:
        ValueError: there are not.
    """
    if len(parts) < rule.min_participants:
        raise ValueError(
            f"{rule.settings['name']}: expected at least {rule.min_participants} contributions, "
            f"got {len(parts)}"
        )
