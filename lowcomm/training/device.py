"""Which device a rank computes on, and what it can do."""

from __future__ import annotations

import os

import torch

from lowcomm.errors import ConfigError

PEAK_TERAFLOPS = (
    ("B200", 2250.0), ("GH200", 989.4), ("H200 NVL", 835.0), ("H200", 989.4), ("H100 NVL", 835.0),
    ("H100 PCIe", 756.0),
    ("H100", 989.4), ("A100", 312.0), ("A800", 312.0), ("H800", 989.4), ("L40S", 362.0), ("L4", 121.0),
    ("A40", 149.7), ("A10G", 70.0), ("A10", 125.0), ("RTX A6000", 154.8), ("RTX 4090", 165.2),
    ("RTX 3090", 71.0), ("MI300X", 1307.4), ("MI250X", 383.0),
)  # fmt: skip
"""Dense bfloat16 matrix products, as the makers' data sheets give them, by part of the device's name."""


def choose_device(name: str) -> torch.device:
    """The device that `train.device` names; under torchrun the rank's own GPU.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = f"cuda:{local_rank}"
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"train.device: expected a device that this machine has, got {name!r}: no CUDA here"
            )
        torch.cuda.set_device(device)
    return device


def peak_flops(device_name: str) -> float | None:
    """bfloat16 FLOP/s of one device at its best; None where that isn't known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
    """
    words = device_name.upper().replace("-", " ").split()
    if "LAPTOP" in words:  # a smaller chip under the same name
        return None
    for name, teraflops in PEAK_TERAFLOPS:
        part = name.upper().split()
        if any(words[start : start + len(part)] == part for start in range(len(words))):
            return teraflops * 1e12
    return None


def device_peak_flops(device: torch.device) -> float | None:
    """`peak_flops` of a device; None for processors."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
