"""One rank of an island that weighs itself: what the outer state takes on its host, as the kernel counts it.

`python -m tests.islands.weighed SETTINGS` runs rounds of the island alone; see `tests.outer.weighed`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov
from lowcomm.islands.base import Island
from lowcomm.types import PeerId
from tests.islands.ranks import wrap
from tests.outer.weighed import Weights, forget_peak, resident_bytes

RANKS = 2
FRAGMENTS = 8
TENSORS = 4 * FRAGMENTS
SHAPE = (256, 1024)
INNER_STEPS = 2 * FRAGMENTS
STEPS = 2 * INNER_STEPS


def make_island(engine: str, shape: tuple[int, ...]) -> Island:
    """An island with several tensors in each fragment, as engines gather a tensor at a time."""
    torch.manual_seed(0)
    return wrap(Weights(TENSORS, shape), engine)


def train(island: Island, settings: dict[str, Any]) -> Iterator[None]:
    """Yields before the first step and after each one."""
    exchange = exchanges.loopback(exchanges.hub(), run_id="weighed", peer_id=PeerId("alone"), founder=True)
    with OuterLoop(
        island,
        exchange if island.is_lead else None,
        schedule=Schedule(inner_steps=INNER_STEPS, num_fragments=FRAGMENTS, delay=1),
        codec=codecs.int8(error_feedback=settings["error_feedback"]),
        outer_optimizer=nesterov(lr=0.7, momentum=0.6),
        chunk_bytes=1 << 18,
    ) as outer:
        yield
        while outer.inner_step < STEPS:
            moved = (outer.inner_step % TENSORS,)
            values = island.read(moved)
            island.write(moved, values.mul_(0.999) if island.is_lead else None)
            del values
            for report in outer.step(tokens=8):
                assert report.committed, f"fragment {report.fragment}: {report.reason}"
            yield
        outer.finish()
        yield


def main() -> None:
    """One rank."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=settings["store"], rank=settings["rank"], world_size=RANKS
    )
    for _ in train(make_island(settings["engine"], (16, 1024)), settings):
        pass  # what is compiled and loaded in a round is there now
    island = make_island(settings["engine"], SHAPE)
    elements = sum(spec.elements for spec in island.layout)
    forget_peak()
    before = resident_bytes("VmRSS")
    steps = train(island, settings)
    next(steps)
    forget_peak()
    rest = resident_bytes("VmRSS")
    for _ in steps:
        pass
    peak = resident_bytes("VmHWM")
    print(json.dumps({"rest": (rest - before) / elements, "peak": (peak - before) / elements}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
