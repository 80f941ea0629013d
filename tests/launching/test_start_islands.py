"""The first island may take its time before it joins; no one waits for ever for its address."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from lowcomm.config.load import load_config
from lowcomm.launching.islands import ADDRESS_FILE, IslandProcess, IslandStartError, LaunchPlan, start_islands
from lowcomm.training.phases import PHASE_FILE
from tests.clocks import HandClock

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.toml"
TIMEOUT_S = 5.0


class Idle(LaunchPlan):
    """Islands that do nothing."""

    def command(self, index: int, initial_peers: Sequence[str], group_address: str) -> list[str]:
        return [sys.executable, "-c", "import signal; signal.pause()"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start two islands, of which the first goes through `phases`, each a minute long."""
    islands: list[IslandProcess] = []

    def start_all(*phases: str) -> int:
        config = load_config(RECIPE, [f"exchange.gather_timeout_s={TIMEOUT_S}"])
        plan = Idle(recipe=RECIPE, config=config, overrides=(), out=tmp_path, islands=2)
        clock, left = HandClock(), list(phases)

        def tick() -> bool:
            clock.now_s += 60.0
            if left:
                (tmp_path / "island-0" / PHASE_FILE).write_text(left.pop(0) + "\n")
            else:
                (tmp_path / "island-0" / ADDRESS_FILE).write_text("address\n")
            return True

        start_islands(plan, clock, islands.append, tick)
        return len(islands)

    yield start_all
    for island in islands:
        island.kill()


def test_the_others_wait_as_long_as_the_first_one_prepares(start: Callable[..., int]) -> None:
    assert (
        start("importing torch", "reading the text", "building the model", "joining, waits for 1 more") == 2
    )


def test_a_first_island_that_joins_and_gets_no_address_is_given_up(start: Callable[..., int]) -> None:
    joining = "joining, waits for 1 more"
    with pytest.raises(IslandStartError, match="island-0 joins, and was not reachable after 5 s"):
        start("reading the text", joining, joining)
