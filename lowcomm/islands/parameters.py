"""What an island exchanges: its trainable parameters, chosen when it is wrapped and watched from then on.

The layout is fixed at the first greeting, so what a program changes in its model later would be trained here
and not exchanged, or exchanged and not trained: the islands would drift apart with equal digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lowcomm.errors import ModelError
from lowcomm.types import Layout, TensorSpec

COMPILED = "_orig_mod"
"""What `torch.compile` adds to the path of a parameter, wherever a module was compiled."""

WRAPPERS = (COMPILED, "_checkpoint_wrapped_module")
"""The same, and what torch's activation checkpointing adds."""

BUILD_OPTIMIZER = (
    "build the optimizer from the parameters of this model, and unfreeze them before wrap_island"
)
WRAP_AGAIN = (
    "change the model before wrap_island, on all islands; load_state_dict without assign=True, and copying "
    "into a parameter, keep its tensor"
)
LEAST_BITS = 16


def bare_name(name: str) -> str:
    """A parameter's name without what `torch.compile` and activation checkpointing have added to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by their bare names, in the model's own order; tied ones once."""
    return {bare_name(name): p for name, p in model.named_parameters() if p.requires_grad}


def frozen_names(model: nn.Module) -> set[str]:
    """The bare names of what is not trained; of tied ones all."""
    named = model.named_parameters(remove_duplicate=False)
    return {bare_name(name) for name, parameter in named if not parameter.requires_grad}


def check_groups(
    exchanged: Sequence[Tensor], optimizers: Sequence[torch.optim.Optimizer], advice: str
) -> None:
    """Refuse what would be trained here and never exchanged: the islands would silently drift apart.

    Args:
        exchanged: the model's trainable parameters.
        optimizers: the inner optimizers.
        advice: what to do, for the error.

    Raises:
        ModelError: a parameter group has a trainable parameter that is none of these, or an optimizer has
            none of them.
    """
    for problem in _group_problems({id(parameter) for parameter in exchanged}, optimizers, advice):
        raise ModelError(problem)


def _group_problems(
    known: set[int], optimizers: Sequence[torch.optim.Optimizer], advice: str
) -> Iterator[str]:
    for optimizer in optimizers:
        name, held = type(optimizer).__name__, 0
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                held += id(parameter) in known
                if parameter.requires_grad and id(parameter) not in known:
                    yield (
                        f"{name}, parameter group {number}: expected parameters that the islands exchange, "
                        f"got one of shape {tuple(parameter.shape)} that is not among them; {advice}"
                    )
        if not held:
            yield f"{name}: expected parameters that the islands exchange, got none of them; {advice}"


class Exchanged:
    """The parameters of one island.

    Args:
        model: without the wrapper that ties the ranks together.
        optimizers: all whose groups hold these very parameters.
        advice: what to do where they don't.
        watched: attributes of a parameter that must stay as they are.

    Attributes:
        parameters: in the order of `layout`.

    Raises:
        ModelError: nothing is trainable, a parameter can't be exchanged, or an optimizer trains what isn't.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        advice: str,
        watched: Sequence[str],
    ) -> None:
        named = trainable(model)
        if not named:
            raise ModelError(f"{type(model).__name__}: expected trainable parameters, found none to exchange")
        for name, parameter in named.items():
            _require_numbers(name, parameter)
        self.parameters = list(named.values())
        self.layout: Layout = tuple(TensorSpec(name, tuple(p.shape)) for name, p in named.items())
        self._optimizers, self._advice, self._watched = tuple(optimizers), advice, tuple(watched)
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._frozen = {id(parameter) for parameter in model.parameters()} - self._names.keys()
        self._were = [self._look(parameter) for parameter in self.parameters]
        check_groups(self.parameters, self._optimizers, advice)

    def change(self, model: nn.Module, *, contributes: bool) -> str:
        """What has changed since the island was wrapped, in words; empty if nothing has.

        Args:
            contributes: what is trained has to be what is exchanged; else it is enough that the parameters
                are still those of the model.
        """
        problem = next(self._changes(model, contributes), "")
        if problem:
            return f"{problem}; {WRAP_AGAIN}"
        if contributes:
            return next(_group_problems(set(self._names), self._optimizers, self._advice), "")
        return ""

    def _changes(self, model: nn.Module, contributes: bool) -> Iterator[str]:
        now = {id(p): (bare_name(name), p.requires_grad) for name, p in model.named_parameters()}
        names = {name for name, _ in now.values()}
        for parameter, (key, name) in zip(self.parameters, self._names.items(), strict=True):
            if key not in now and name in names:
                yield _changed(name, "the tensor that is exchanged", "another was put in its place")
            elif key not in now:
                yield _changed(name, "it in the model", "it was taken out")
            elif contributes and not parameter.requires_grad:
                yield _changed(name, "it to be trained", "it was frozen")
        for key, (name, trains) in now.items():
            if contributes and trains and key in self._frozen:
                yield _changed(name, "it frozen", "it was unfrozen")
            elif contributes and trains and key not in self._names:
                yield _changed(name, "no such one", "it was added")
        for parameter, name, was in zip(self.parameters, self._names.values(), self._were, strict=True):
            for what, before, after in zip(self._watched, was, self._look(parameter), strict=True):
                if before != after:
                    yield _changed(name, f"{what} {before}", f"it became {after}")

    def _look(self, parameter: nn.Parameter) -> tuple[object, ...]:
        return tuple(getattr(parameter, what) for what in self._watched)


def _changed(name: str, expected: str, happened: str) -> str:
    return f"parameter {name}: expected {expected}, as when it was wrapped; {happened} since wrap_island"


def _require_numbers(name: str, parameter: nn.Parameter) -> None:
    """Refuse what fp32 numbers can't stand for.

    Raises:
        ModelError: the parameter is complex, of low precision, sparse, or has no values yet.
    """
    lazy: bool = is_lazy(parameter)
    if lazy:
        found, then = "one without a shape yet", "run a forward pass before wrap_island"
    elif parameter.is_meta:
        found, then = "one on the meta device", "load or initialise the weights before wrap_island"
    elif parameter.layout != torch.strided:
        found, then = str(parameter.layout), "make it dense, or freeze it (requires_grad_(False))"
    elif not parameter.is_floating_point() or 8 * parameter.dtype.itemsize < LEAST_BITS:
        found = f"{parameter.dtype}"
        then = "freeze it (requires_grad_(False))"
        if parameter.is_complex():
            then = "keep it as real numbers (torch.view_as_real), or freeze it (requires_grad_(False))"
    else:
        return
    raise ModelError(
        f"parameter {name}: expected a dense tensor of real floating-point numbers of at least {LEAST_BITS} "
        f"bits, got {found}; {then}"
    )
