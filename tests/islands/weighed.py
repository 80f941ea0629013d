"""One rank of an island that weighs itself: what the outer state takes on its host, as the kernel counts it.

`python -m tests.islands.weighed SETTINGS [PEER]` runs rounds with another island; see `tests.outer.weighed`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, nesterov
from lowcomm.islands.base import Island
from tests.islands.ranks import wrap
from tests.outer.weighed import Weights, forget_peak, resident_bytes

FRAGMENTS = 8
TENSORS = 4 * FRAGMENTS
SHAPE = (256, 1024)
INNER_STEPS = 2 * FRAGMENTS
STEPS = 2 * INNER_STEPS
DELAY = 1


def make_island(engine: str, shape: tuple[int, ...]) -> Island:
    """An island with as many tensors in each fragment, as engines gather a tensor at a time."""
    torch.manual_seed(0)
    return wrap(Weights(TENSORS, shape), engine)


def train(island: Island, islands: int, peers: list[str], settings: dict[str, Any]) -> Iterator[OuterLoop]:
    """Yields before the first step and after each one. A step is the same numbers with any engine."""
    exchange = None
    if island.is_lead:
        exchange = exchanges.swarm(run_id="weighed", initial_peers=peers, relay=False)
    outer = OuterLoop(
        island,
        exchange,
        schedule=Schedule(inner_steps=INNER_STEPS, num_fragments=FRAGMENTS, delay=DELAY),
        codec=codecs.by_name(settings["codec"], error_feedback=settings["error_feedback"]),
        outer_optimizer=nesterov(),
        round_policy=RoundPolicy(min_participants=islands, deadline_s=60.0),
        expected_peers=islands,
        chunk_bytes=1 << 18,
    )
    try:
        outer.connect(on_address=lambda address: print(address, flush=True))
        outer.join()
        yield outer
        while outer.inner_step < STEPS:
            for index in range(TENSORS):
                values = island.read((index,))
                island.write((index,), values.mul_(0.999) if island.is_lead else None)
                del values
            for report in outer.step(tokens=8):
                assert report.committed, f"fragment {report.fragment}: {report.reason}"
            yield outer
        outer.finish()
        yield outer
    finally:
        outer.close()


def main() -> None:
    """One rank; the world is one process without `ranks`."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    if settings["ranks"] > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=settings["store"], rank=settings["rank"], world_size=settings["ranks"]
        )
    for _ in train(make_island(settings["engine"], (16, 1024)), 1, [], settings):
        pass  # what is compiled and loaded in a round is there now
    island = make_island(settings["engine"], SHAPE)
    elements = sum(spec.elements for spec in island.layout)
    forget_peak()
    before = resident_bytes("VmRSS")
    steps = train(island, 2, sys.argv[2:], settings)
    outer = next(steps)
    forget_peak()
    rest = resident_bytes("VmRSS")
    for _ in steps:
        pass
    peak = resident_bytes("VmHWM")
    said = {"rest": (rest - before) / elements, "peak": (peak - before) / elements}
    if island.is_lead:
        said |= {"digest": outer.digest, "head": outer.head}
    print(json.dumps(said))
    if settings["ranks"] > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
