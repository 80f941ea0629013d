"""The process group of an island's ranks, through all lives that torchrun gives them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch._C._distributed_c10d import HashStore, PrefixStore
from torch.distributed.rendezvous import rendezvous


@contextlib.contextmanager
def process_group(device: torch.device, *, offloaded: bool = False) -> Iterator[None]:
    """The process group inside the island, torchrun's or one of this process alone: NCCL or Gloo.

    With parameters that FSDP2 has `offloaded` both, since clipping is a collective of host tensors then
    (pytorch/pytorch#148532). Not run here, for want of GPUs.
    """
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl" if offloaded else "nccl"
    if "WORLD_SIZE" not in os.environ:
        torch.distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    elif os.environ["WORLD_SIZE"] == os.environ.get("LOCAL_WORLD_SIZE"):
        # torchrun's store outlives a restart (torch 2.13), with the addresses of the ranks that died.
        # Machines of one island count their restarts apart: there launch/island.sh has to see to it.
        shared, rank, world_size = next(rendezvous("env://"))
        life = f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store_of_life = PrefixStore(life, shared)
        torch.distributed.init_process_group(backend, store=store_of_life, rank=rank, world_size=world_size)
    else:
        torch.distributed.init_process_group(backend)
    try:
        yield
        # ranks leave together, with nothing under way
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
