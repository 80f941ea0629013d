"""One island in a process of its own that weighs itself: the most memory that its rounds took, by cycles.

Run with malloc settings under which freed memory goes back at once (`MALLOC`), so that the kernel's count
is that of what is live: tensors, byte strings and the buffers of libraries alike.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, wrap_island

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
TENSOR = (1024, 1024)
FRAGMENTS = 4
CYCLE = 2 * FRAGMENTS
"""Inner steps in which each fragment has one round."""
STEPS = 5 * CYCLE


class Weights(nn.Module):
    """Parameters with gradients, and nothing that computes."""

    def __init__(self, tensors: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape) for _ in range(tensors))
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)


def resident_bytes(kind: str) -> int:
    """`VmRSS` (now) or `VmHWM` (the most since `forget_peak`) of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{kind}:")[2].split()[0]) << 10


def forget_peak() -> None:
    """From here on `VmHWM` counts anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def train(islands: int, peers: list[str], model: Weights, settings: dict[str, Any]) -> Iterator[None]:
    """Yields before the first step and after each one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    codec = codecs.by_name(settings["codec"], error_feedback=settings["error_feedback"])
    outer = OuterLoop(
        wrap_island(model, optimizer),
        exchanges.swarm(run_id="weighed", initial_peers=peers, relay=False),
        schedule=Schedule(inner_steps=CYCLE, **settings["schedule"]),
        codec=codec,
        outer_optimizer=settings.get("optimizer", "nesterov"),
        round_policy=RoundPolicy(min_participants=islands, deadline_s=60.0),
        expected_peers=islands,
        chunk_bytes=1 << 16,
    )
    try:
        outer.connect(on_address=lambda address: print(address, flush=True))
        outer.join()
        yield
        while outer.inner_step < STEPS:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.999)
            for report in outer.step(tokens=8):
                assert report.committed, (
                    f"step {outer.inner_step}, fragment {report.fragment}: {report.reason}"
                )
            yield
        outer.finish()
    finally:
        outer.close()


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for _ in train(1, [], Weights(2 * FRAGMENTS, (64, 1024)), settings):
        pass  # what is compiled and loaded in a round is there now
    model = Weights(2 * FRAGMENTS, TENSOR)
    elements = sum(parameter.numel() for parameter in model.parameters())
    forget_peak()
    before = resident_bytes("VmRSS")
    steps = train(2, sys.argv[2:], model, settings)
    next(steps)
    forget_peak()
    rest = (resident_bytes("VmRSS") - before) / elements
    peaks = []
    while deque(islice(steps, CYCLE), maxlen=1):
        peaks.append((resident_bytes("VmHWM") - before) / elements)
        forget_peak()
    print(json.dumps({"rest": rest, "peaks": peaks}))


if __name__ == "__main__":
    main()
