"""Error feedback: what encodings lost is not given up (1-bit SGD, EF-SGD arXiv:1901.09847).

Both legs lose. What the encoding of a peer's own pseudo-gradient lost stays in its local parameters, so it is
part of the next pseudo-gradient, and the inner steps until then start from it
(docs/design/0016-residual.md). What the encoding of a mean lost is kept here by the peer that reduced it, and
added to the next mean. Where a peer doesn't reduce any more what it kept goes into its own pseudo-gradient,
divided by its share, so that nothing is lost when ranges move. `decay` multiplies what is kept, once a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowcomm.islands.vectors import Blank, Vectors


@dataclass(frozen=True, slots=True)
class Residual:
    """What the encodings of means have lost on the peer that reduced them; on the ranks' hosts.

    Attributes:
        mean: of the range of a fragment that was reduced here, which starts at `start`.
    """

    mean: Blank
    start: int

    @staticmethod
    def blank(start: int, stop: int, vectors: Vectors) -> Residual:
        """To be filled with what the encodings of a round's means lose."""
        return Residual(vectors.empty(stop - start), start)

    @staticmethod
    def of(saved: Mapping[str, Any], vectors: Vectors) -> Residual:
        """What `state_dict` gave."""
        return Residual(vectors.hold(saved["mean"]), saved["start"])

    @property
    def stop(self) -> int:
        return self.start + self.mean.elements

    def handed_over(self, start: int, stop: int, reduced: tuple[int, int], share: float) -> Tensor | None:
        """What to add to this peer's own pseudo-gradient in start..stop; None for nothing.

        Args:
            reduced: the range that this peer reduces now; what is kept of it is added to the mean.
            share: this peer's part in the mean.
        """
        if share <= 0:
            return None
        added: Tensor | None = None
        for low, high in (
            (self.start, min(self.stop, reduced[0])),
            (max(self.start, reduced[1]), self.stop),
        ):
            low, high = max(low, start), min(high, stop)
            if low < high:
                added = (
                    torch.zeros(stop - start, dtype=torch.float32, device="cpu") if added is None else added
                )
                lost = self.mean.load(low - self.start, high - self.start)
                added[low - start : high - start].add_(lost / share)
        return added

    def for_mean(self, start: int, stop: int) -> Tensor | None:
        """What to add to the mean of start..stop, which this peer reduces; None for nothing."""
        low, high = max(self.start, start), min(self.stop, stop)
        if low >= high:
            return None
        added = torch.zeros(stop - start, dtype=torch.float32, device="cpu")
        added[low - start : high - start] = self.mean.load(low - self.start, high - self.start)
        return added

    def norm(self) -> float:
        """L2 norm."""
        return float(self.mean.load().norm())

    def state_dict(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"mean": self.mean.load(), "start": self.start}
