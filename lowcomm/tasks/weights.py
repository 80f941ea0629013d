"""Weights in files, for the exports of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lowcomm.errors import CheckpointError

WEIGHTS = "model.safetensors"


def check_shapes(anchor: Mapping[str, Tensor], expected: Iterable[tuple[str, Tensor]]) -> None:
    """Let no anchor pass for another model's.

    Args:
        expected: the model's named parameters.

    Raises:
        CheckpointError: a parameter is missing, one too much, or of another shape.
    """
    found = {name: tuple(tensor.shape) for name, tensor in anchor.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in expected}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CheckpointError(
                f"the model of config.toml has {name} {wanted.get(name, 'not at all')}, the "
                f"checkpoint {found.get(name, 'not at all')}; the task is not the one that was trained"
            )


def save_weights(anchor: Mapping[str, Tensor], folder: Path) -> None:
    """Write `model.safetensors`."""
    # fragments are views of one buffer each; safetensors wants tensors of their own
    owned = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in anchor.items()}
    save_file(owned, folder / WEIGHTS, metadata={"format": "pt"})
