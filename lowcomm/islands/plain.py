"""An island of one rank: a whole model on one device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lowcomm.errors import ModelError
from lowcomm.types import Layout, TensorSpec

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DDP and `torch.compile` put before parameter names."""


def bare_name(name: str) -> str:
    """A parameter's name without what wrappers have put before it."""
    for prefix in WRAPPERS:
        name = name.replace(prefix, "")
    return name


class PlainIsland:
    """One rank that holds everything; an `Island`.

    Args:
        model: any module; its trainable parameters are exchanged, buffers stay local.
        optimizers: the inner optimizers, all of them.

    Raises:
        ModelError: nothing is trainable.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        named = [(bare_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ModelError(f"{type(model).__name__}: expected trainable parameters, found none to exchange")
        self._model, self._optimizers = model, tuple(optimizers)
        self._parameters = [parameter for _, parameter in named]
        self._layout = tuple(TensorSpec(name, tuple(parameter.shape)) for name, parameter in named)

    @property
    def rank(self) -> int:
        return 0

    @property
    def world_size(self) -> int:
        return 1

    @property
    def is_lead(self) -> bool:
        return True

    @property
    def device(self) -> torch.device:
        return self._parameters[0].device

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def bare_model(self) -> nn.Module:
        return self._model

    def no_sync(self) -> AbstractContextManager[None]:
        """One rank has nothing to sync."""
        return nullcontext()

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return self._optimizers

    @property
    def layout(self) -> Layout:
        return self._layout

    @torch.no_grad()
    def read(self, indices: Sequence[int]) -> Tensor:
        """The tensors at `indices`, flat: a new 1-D fp32 tensor on the host."""
        flat = torch.empty(sum(self._layout[index].elements for index in indices), dtype=torch.float32)
        for part, index in self._parts(flat, indices):
            part.copy_(self._parameters[index].detach())
        return flat

    @torch.no_grad()
    def write(self, indices: Sequence[int], values: Tensor | None) -> None:
        """Overwrite the tensors at `indices`."""
        assert values is not None
        for part, index in self._parts(values, indices):
            self._parameters[index].copy_(part)

    def broadcast(self, values: Sequence[int] | None, count: int) -> list[int]:
        """One rank agrees with itself."""
        assert values is not None
        assert len(values) == count
        return list(values)

    def any_rank(self, flag: bool) -> bool:
        """One rank agrees with itself."""
        return flag

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """One rank's state."""
        return [state]

    def state_dict(self) -> dict[str, Any]:
        """Model, buffers and inner optimizers."""
        return {
            "model": {bare_name(name): value for name, value in self._model.state_dict().items()},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        names = {bare_name(name): name for name in self._model.state_dict()}
        self._model.load_state_dict({names[name]: value for name, value in state["model"].items()})
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _parts(self, flat: Tensor, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        parts, start = [], 0
        for index in indices:
            spec = self._layout[index]
            parts.append((flat[start : start + spec.elements].view(spec.shape), index))
            start += spec.elements
        return parts
