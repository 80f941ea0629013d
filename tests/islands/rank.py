"""One of `tests.islands.ranks`: `python -m tests.islands.rank RANK WORLD FOLDER ENGINE` does all tasks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.islands import joined, ranks

TASKS = {**ranks.TASKS, **joined.TASKS}


def main(
    rank: int,
    world_size: int,
    folder: Path,
    engine: str,
    tasks: Mapping[str, Callable[[int, Path, str], dict[str, Any]]] = TASKS,
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ["GROUP_RANK"] = str(rank)  # each a host of its own, as torchrun says it
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    torch.save({name: task(rank, folder, engine) for name, task in tasks.items()}, folder / f"rank-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
