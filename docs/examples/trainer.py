"""Any model on any data set, trained on several islands with checkpoints, metrics and evaluation.

    python docs/examples/trainer.py runs/a                     the first island; it says what others join with
    python docs/examples/trainer.py runs/b 'rings@/ip4/...'    each further island, here or on another machine

`lowcomm report runs/a` draws what happened, `lowcomm export runs/a --out exported` writes the weights.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.utils.data import TensorDataset

from lowcomm import Trainer


def points(count: int, seed: int) -> TensorDataset:
    """Points of a plane, and in which of two rings they are."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.randint(2, (count,), generator=generator)
    angle = 2 * torch.pi * torch.rand(count, generator=generator)
    radius = 1 + ring + 0.2 * torch.randn(count, generator=generator)
    return TensorDataset(torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), ring)


def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    """Of a batch."""
    x, ring = batch
    return nn.functional.cross_entropy(model(x), ring)


def main() -> None:
    """Train."""
    torch.manual_seed(0)  # the same weights on all islands
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    trainer = Trainer(
        model,
        points(2_000, seed=1),  # the same on all islands: each takes a part
        loss=loss,
        eval_data=points(500, seed=2),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        run_id="rings",
        out=sys.argv[1],
        join=sys.argv[2:],
        steps=400,
        batch_size=16,
        settings={"shared.schedule.inner_steps": 20, "exchange.expected_peers": 2},
    )
    summary = trainer.fit()
    print(f"{summary.islands} islands: loss {summary.first_loss:.3f} -> {summary.eval_loss:.3f}")
    print("anchor:", summary.digest)


if __name__ == "__main__":
    main()
