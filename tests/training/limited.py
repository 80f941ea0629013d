"""One island in a process whose memory ends: `python -m tests.training.limited FOLDER MIB [OVERRIDE ...]`.

The limit is the kernel's (RLIMIT_AS), so many MiB above what the process has when training begins.
"""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lowcomm import exchanges
from lowcomm.errors import OutOfMemoryError
from lowcomm.training.trainer import Trainer
from tests.training.islands import make_config

MIB = 2**20
SMALL = (
    "train.steps=4", "shared.schedule.inner_steps=2", "train.checkpoint_every=0", "train.log_every=1",
    "train.eval_windows=8",
)  # fmt: skip
SIZES = (
    "shared.model.context=256", "shared.model.dim=64", "shared.model.ffn_dim=512", "shared.model.layers=4",
    "train.batch_size=32", "train.grad_accumulation=1",
)  # fmt: skip


def limit(mib: int) -> None:
    """What the process may have beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(folder: Path, mib: int, overrides: list[str]) -> None:
    """Train, or say in one line why not."""
    torch.set_num_threads(1)
    train(folder / "small", *SMALL)  # whatever is loaded or allocated once is there before the limit
    if mib:
        limit(mib)
    try:
        train(folder, *SMALL, *SIZES, *overrides)
    except OutOfMemoryError as error:
        sys.exit(f"OutOfMemoryError: {error}")


def train(folder: Path, *overrides: str) -> None:
    """An island of its own, to the end."""
    folder.mkdir(exist_ok=True)
    config = replace(make_config(folder, *overrides), out=str(folder / "island"))
    exchange = exchanges.loopback(exchanges.hub(), run_id="small", peer_id="alone", founder=True)
    Trainer(config, exchange=exchange).fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
