"""What memory this process has had."""

from __future__ import annotations

import resource
import sys

import torch


def host_memory_bytes() -> int:
    """The most memory of the host that this process has had at once."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def device_memory_bytes(device: torch.device) -> int | None:
    """The most memory that this process's tensors have had on a GPU at once; None for processors."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
