"""A plain PyTorch loop, made one island of a swarm by the lines marked `# lowcomm`.

    python docs/examples/plain_loop.py                 the first island; it prints the shared string
    python docs/examples/plain_loop.py 'demo@/ip4/...' each further island, here or on another machine

The first one waits for the second for two minutes, and says so; then it goes on alone.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island  # lowcomm

STEPS = 400


def batches(seed: int, size: int = 64):
    """Points of a function that the model has to learn; every island draws others."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.rand(size, 4, generator=generator) * 2 - 1
        yield x, torch.sin(x.sum(dim=1, keepdim=True))


def main() -> None:
    """Train."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = batches(seed=os.getpid())

    # fmt: off
    exchange = exchanges.swarm(run_id="demo", initial_peers=sys.argv[1:])  # lowcomm
    with OuterLoop(wrap_island(model, optimizer), exchange, schedule=Schedule(inner_steps=20),  # lowcomm
                   codec=codecs.int8(), outer_optimizer=nesterov(),  # lowcomm
                   expected_peers=2, on_address=print) as outer:  # lowcomm
        # fmt: on
        while outer.inner_step < STEPS:
            x, y = next(data)
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for report in outer.step(tokens=len(x)):  # lowcomm
                print(f"outer step {report.outer_step}: loss {loss.item():.4f}, sent {report.bytes_sent:,} B")
        outer.finish()  # lowcomm
        print("anchor:", outer.digest)


if __name__ == "__main__":
    main()
