"""Whether others are ready is read, not asked: the training thread waits for no busy network thread."""

import threading

import pytest
import torch

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island


@pytest.mark.parametrize("mode", ["fixed", "matched"])
def test_a_step_waits_for_no_busy_network_thread(mode: str) -> None:
    model = torch.nn.Linear(2, 2)
    island = wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1))
    exchange = exchanges.loopback(exchanges.hub(), run_id="run", peer_id="a", founder=True)
    schedule = Schedule(inner_steps=1_000, mode=mode)
    busy, free = threading.Event(), threading.Event()

    async def work() -> None:
        busy.set()
        free.wait(60.0)

    with OuterLoop(
        island, exchange, schedule=schedule, codec=codecs.fp32(), outer_optimizer=nesterov()
    ) as outer:
        done = outer._network._thread.submit(work())
        busy.wait(60.0)
        try:
            step = threading.Thread(target=outer.step, kwargs={"tokens": 8}, daemon=True)
            step.start()
            step.join(30.0)
            assert not step.is_alive()
        finally:
            free.set()
            done.result(60.0)
