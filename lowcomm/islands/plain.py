"""An island of one rank: a whole model on one device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lowcomm.algorithms.outer_optimizers import CACHED_ELEMENTS
from lowcomm.errors import CheckpointError, ModelError
from lowcomm.islands.frozen import WeightsDigest
from lowcomm.islands.parameters import BUILD_OPTIMIZER, Exchanged, bare_name, frozen_names
from lowcomm.islands.recycled import RecycledMemory
from lowcomm.islands.vectors import HostVectors, Vector, Vectors, spans
from lowcomm.types import Layout

T = TypeVar("T")


class PlainIsland:
    """One rank that holds everything; an `Island`.

    Args:
        model: any module; its trainable parameters are exchanged, buffers stay local.
        optimizers: the inner optimizers, all of them.

    Raises:
        ModelError: nothing is trainable, or an optimizer trains what would not be exchanged; `read`, `write`
            and `add` raise it, too, when the model's parameters have changed since.
    """

    _advice = BUILD_OPTIMIZER
    _watched: Sequence[str] = ("dtype", "device", "shape")
    """What of a parameter must not change."""

    def __init__(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._model, self._optimizers = model, tuple(optimizers)
        self._memory = RecycledMemory()
        self._exchanged = Exchanged(self.bare_model, self._own_optimizers(), self._advice, self._watched)
        self._parameters, self._layout = self._exchanged.parameters, self._exchanged.layout

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
    def casts(self) -> bool:
        return False

    def backward(self, loss: Tensor) -> None:
        """Plain autograd."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, clip_norm: float) -> Tensor:
        """Clip, step, clear."""
        parameters = list(self._model.parameters())
        if clip_norm > 0:
            norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return norm.detach()

    def is_finite(self) -> bool:
        """Over all parameters, frozen ones included."""
        return all(bool(parameter.isfinite().all()) for parameter in self.bare_model.parameters())

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        return self._optimizers

    @property
    def layout(self) -> Layout:
        return self._layout

    @torch.no_grad()
    def read(self, indices: Sequence[int]) -> Tensor:
        """The tensors at `indices`, flat: a new 1-D fp32 tensor on the host."""
        self._check(contributes=True)
        flat = self._memory.empty(sum(self._layout[index].elements for index in indices))
        for part, index in self._parts(flat, indices):
            part.copy_(self._whole(index))
        return flat

    @torch.no_grad()
    def write(self, indices: Sequence[int], values: Tensor | None) -> None:
        """Overwrite the tensors at `indices`."""
        assert values is not None
        self._check(contributes=False)
        for part, index in self._parts(values, indices):
            self._overwrite(index, part)

    @torch.no_grad()
    def add(self, indices: Sequence[int], values: Vector | None) -> None:
        """Add to the tensors at `indices`."""
        assert values is not None
        self._check(contributes=False)
        first = 0
        for index in indices:
            parameter = self._parameters[index].detach()
            if parameter.is_contiguous():
                flat = parameter.view(-1)
                for start, stop in spans(flat.numel(), CACHED_ELEMENTS):
                    part = values.load(first + start, first + stop)
                    flat[start:stop].add_(part.to(parameter.device))
            else:
                whole = values.load(first, first + parameter.numel()).view(parameter.shape)
                parameter.add_(whole.to(parameter.device))
            first += parameter.numel()

    def _own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Those whose groups hold the model's own parameters."""
        return self._optimizers

    def _check(self, *, contributes: bool) -> None:
        """Stop before anything diverges where the model is not as it was wrapped. Collective.

        Args:
            contributes: see `Exchanged.change`.

        Raises:
            ModelError: it names the parameter, and what has become of it.
        """
        problem = self._exchanged.change(self.bare_model, contributes=contributes)
        if self.any_rank(bool(problem)):
            raise ModelError(
                problem
                or "another rank of this island found that its model has changed since wrap_island, and says "
                "how; this rank stops with it"
            )

    def _whole(self, index: int) -> Tensor:
        """The whole tensor at `index`, wherever the ranks hold it. Collective."""
        return self._parameters[index].detach()

    def _overwrite(self, index: int, value: Tensor) -> None:
        """Take this rank's part of the whole fp32 `value`, which all ranks pass. Collective."""
        self._parameters[index].copy_(value)

    def _part(self, value: Tensor, like: Tensor) -> Tensor:
        """What this rank holds of a whole tensor out of a checkpoint, where it holds `like` now."""
        return value

    def broadcast(self, value: T | None) -> T:
        """One rank agrees with itself."""
        return cast(T, value)

    def any_rank(self, flag: bool) -> bool:
        """One rank agrees with itself."""
        return flag

    @torch.no_grad()
    def frozen_digest(self) -> str:
        """Over the whole tensors, one at a time, in the order of their names. Collective."""
        digest = WeightsDigest()
        frozen = {bare_name(n): p for n, p in self.bare_model.named_parameters() if not p.requires_grad}
        for name in sorted(frozen):
            with self._whole_frozen(frozen[name]) as tensor:
                if self.is_lead:
                    digest.add(name, tensor)
        return str(digest)

    def _whole_frozen(self, parameter: Tensor) -> AbstractContextManager[Tensor]:
        """Inside it a frozen parameter as a whole tensor. Collective."""
        return nullcontext(parameter)

    def open_vectors(self) -> Vectors | None:
        """All on this rank."""
        return HostVectors(self._memory)

    def gather(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """One rank's state."""
        return [state]

    def state_dict(self, *, frozen: bool = True) -> dict[str, Any]:
        """Model, buffers and inner optimizers; without what is not trained, where that is made anew."""
        left_out = set() if frozen else frozen_names(self.bare_model)
        state = {bare_name(name): value for name, value in self.bare_model.state_dict().items()}
        return {
            "model": {name: value for name, value in state.items() if name not in left_out},
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            CheckpointError: it belongs to another model or to other inner optimizers; nothing is changed.
        """
        mine, saved = self.bare_model.state_dict(), state["model"]
        names = {bare_name(name): name for name in mine}
        left_out = frozen_names(self.bare_model) - saved.keys()
        for name in sorted((names.keys() | saved.keys()) - left_out):
            expected = tuple(mine[names[name]].shape) if name in names else "not at all"
            found = tuple(saved[name].shape) if name in saved else "not at all"
            if expected != found:
                raise CheckpointError(
                    f"the checkpoint is of another model: expected {name} {expected}, it has it {found}"
                )
        expected_groups = [_group_sizes(optimizer.state_dict()) for optimizer in self._optimizers]
        found_groups = [_group_sizes(optimizer) for optimizer in state["optimizers"]]
        if expected_groups != found_groups:
            raise CheckpointError(
                "the checkpoint is of other inner optimizers: expected parameter groups of "
                f"{expected_groups} tensors, it has {found_groups}"
            )
        self.bare_model.load_state_dict(
            {names[name]: self._part(value, mine[names[name]]) for name, value in saved.items()},
            strict=not left_out,
        )
        for optimizer, saved_optimizer in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(
                {**saved_optimizer, "state": self._parts_of(optimizer, saved_optimizer)}
            )

    def _parts_of(self, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[int, dict[str, Any]]:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return {
            number: {
                key: self._part(value, parameters[number])
                if isinstance(value, Tensor) and value.shape == parameters[number].shape
                else value
                for key, value in state.items()
            }
            for number, state in saved["state"].items()
        }

    def _parts(self, flat: Tensor, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        parts, start = [], 0
        for index in indices:
            spec = self._layout[index]
            parts.append((flat[start : start + spec.elements].view(spec.shape), index))
            start += spec.elements
        return parts


def _group_sizes(optimizer_state: dict[str, Any]) -> list[int]:
    return [len(group["params"]) for group in optimizer_state["param_groups"]]
