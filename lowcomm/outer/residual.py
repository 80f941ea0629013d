"""Error feedback: what encodings lost is added to what is sent next (1-bit SGD, EF-SGD arXiv:1901.09847).

Both legs lose: the sender's encoding of its pseudo-gradient, and the reducer's of the mean. A peer
keeps `sent` for its own pseudo-gradient and `mean` for the ranges that it reduced last. Where it
doesn't reduce any more what `mean` holds goes into its own pseudo-gradient, divided by its share, so
that nothing is lost when ranges move. `decay` multiplies what is kept, once a round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Residual:
    """What one peer's encodings of a fragment have lost; 1-D fp32 on the host.

    Attributes:
        sent: of the whole fragment.
        mean: of the range that was reduced here, which starts at `start`.
    """

    sent: Tensor
    mean: Tensor
    start: int

    @staticmethod
    def zero(elements: int, start: int, stop: int) -> Residual:
        """Nothing lost yet."""
        return Residual(torch.zeros(elements), torch.zeros(stop - start), start)

    @property
    def stop(self) -> int:
        return self.start + self.mean.numel()

    def for_part(self, start: int, stop: int, reduced: tuple[int, int], share: float) -> Tensor:
        """What to add to this peer's own pseudo-gradient in start..stop.

        Args:
            reduced: the range that this peer reduces now; what `mean` holds of it is added to the mean.
            share: this peer's part in the mean.
        """
        added = self.sent[start:stop].clone()
        if share > 0:
            for low, high in (
                (self.start, min(self.stop, reduced[0])),
                (max(self.start, reduced[1]), self.stop),
            ):
                low, high = max(low, start), min(high, stop)
                if low < high:
                    lost = self.mean[low - self.start : high - self.start]
                    added[low - start : high - start].add_(lost / share)
        return added

    def for_mean(self, start: int, stop: int) -> Tensor | None:
        """What to add to the mean of start..stop, which this peer reduces; None for nothing."""
        low, high = max(self.start, start), min(self.stop, stop)
        if low >= high:
            return None
        added = torch.zeros(stop - start)
        added[low - start : high - start] = self.mean[low - self.start : high - self.start]
        return added

    def norm(self) -> float:
        """L2 norm over both parts."""
        return float((self.sent.norm() ** 2 + self.mean.norm() ** 2) ** 0.5)

    def state_dict(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"sent": self.sent, "mean": self.mean, "start": self.start}
