"""What codecs without blocks share."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lowcomm.errors import CodecError


def add_weighted_(total: Tensor, part: Tensor, weight: float) -> None:
    """total += weight * part in fp32, rounded after each; overwrites `part`.

    The weight is rounded to fp32 first: torch would multiply by the double and round once.
    """
    total.detach().add_(part.to(total.device).mul_(float(np.float32(weight))))


def not_finite(name: str, start: int, stop: int) -> CodecError:
    """What to raise for a payload with numbers that no finite input gives."""
    return CodecError(f"{name}: the payload has a NaN or Inf in {start}..{stop - 1}")
