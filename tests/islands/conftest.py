"""What the tests of islands share: one run of real ranks for each engine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.islands.ranks import ENGINES, run_ranks

SLOW = ("deepspeed-zero2", "deepspeed-offload3")
"""Run by `-m slow` only."""


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(engine, marks=pytest.mark.slow if engine in SLOW else pytest.mark.processes)
        for engine in ENGINES
    ],
)
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Any]]]:
    """What each of two ranks of an island saw, by task."""
    return run_ranks(2, tmp_path_factory.mktemp("ranks"), request.param)
