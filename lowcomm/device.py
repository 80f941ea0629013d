"""Which device a rank computes on."""

from __future__ import annotations

import os

import torch

from lowcomm.errors import ConfigError


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
