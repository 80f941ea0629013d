"""What an island says while it waits for others, on a virtual clock."""

from __future__ import annotations

import logging

import pytest

from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import name
from lowcomm.sim.virtual_time import run_virtually


def test_a_wait_that_lasts_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever logs from WARNING on, the default of `logging.basicConfig()`, hears of it, too."""

    async def wait() -> None:
        exchange = LoopbackExchange(LoopbackHub(), "run", name(0), founder=True)
        island = SimIsland(0, exchange, IslandSettings(), MemoryPromises())
        await island.node.start()
        await island.node.joining.gather(2, 70.0)
        await island.node.close()

    with caplog.at_level(logging.INFO, logger="lowcomm"):
        run_virtually(wait(), 100.0)
    said = [r.levelno for r in caplog.records if r.getMessage().startswith("waiting for 1 more island")]
    assert said == [logging.INFO, logging.WARNING, logging.WARNING]
