"""Which seeds are tried."""

from __future__ import annotations

from typing import Any

import pytest

STEP = 5


def fives(quick: int, most: int) -> list[Any]:
    """Every fifth seed below `most`, for a test that tries it and the next four; from `quick` on if slow."""
    slow = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, most, STEP)]
    return [*range(0, quick, STEP), *slow]
