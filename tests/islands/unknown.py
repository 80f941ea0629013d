"""Models spread in ways that no engine knows; `python -m tests.islands.unknown RANK WORLD FOLDER` is a rank.

Each rank tries `wrap_island` on each, and writes what was said and whether its weights were touched.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lowcomm.errors import LowcommError
from lowcomm.islands import wrap_island

CPU = torch.device("cpu")


def make_model(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, width))


def fsdp1(rank: int) -> nn.Module:
    return FullyShardedDataParallel(make_model(), device_id=CPU)


def fsdp1_with_original_parameters(rank: int) -> nn.Module:
    return FullyShardedDataParallel(make_model(), device_id=CPU, use_orig_params=True)


def fsdp1_inside(rank: int) -> nn.Module:
    model = make_model()
    model[0] = FullyShardedDataParallel(model[0], device_id=CPU)
    return model


def tensor_parallel(rank: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    return parallelize_module(make_model(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def tensor_parallel_in_fsdp2(rank: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(make_model(), mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["data"])


def fsdp2_on_a_part_of_the_ranks(rank: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("stage", "data"))
    return fully_shard(make_model(), mesh=mesh["data"])


def fsdp2_on_a_part_of_the_model(rank: int) -> nn.Module:
    model = make_model()
    fully_shard(model[0])
    return model


def data_parallel(rank: int) -> nn.Module:
    return nn.DataParallel(make_model())


def ddp_inside(rank: int) -> nn.Module:
    model = make_model()
    model[0] = DistributedDataParallel(model[0])
    return model


def pipeline(rank: int) -> nn.Module:
    """Each rank has its own stage."""
    return make_model()[:1] if rank == 0 else make_model()[2:]


def megatron(rank: int) -> nn.Module:
    model = make_model()
    model[0].weight.tensor_model_parallel = True
    return model


WAYS: tuple[Callable[[int], nn.Module], ...] = (
    fsdp1, fsdp1_with_original_parameters, fsdp1_inside, tensor_parallel, tensor_parallel_in_fsdp2,
    fsdp2_on_a_part_of_the_ranks, fsdp2_on_a_part_of_the_model, data_parallel, ddp_inside, pipeline, megatron,
)  # fmt: skip


def look(way: Callable[[int], nn.Module], rank: int) -> dict[str, Any]:
    """What `wrap_island` says, and whether it left this rank's weights alone."""
    model = way(rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    try:
        said = f"taken for {type(wrap_island(model, optimizer)).__name__}"
    except LowcommError as error:
        said = f"{type(error).__name__}: {error}"
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return {"said": said, "same": same}


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size
    )
    torch.save({way.__name__: look(way, rank) for way in WAYS}, folder / f"rank-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
