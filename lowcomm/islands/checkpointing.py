"""What is done to each block of a model: activation checkpointing, and torch.compile.

With activation checkpointing blocks keep their inputs only, and run forward again in the backward pass.

(Chen et al. 2016, arXiv:1604.06174: memory of one block instead of all, for about a third more time.)
A block is a member of an outermost `nn.ModuleList`, as ours and those of transformers are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lowcomm.errors import ConfigError


def checkpoint_blocks(model: nn.Module) -> None:
    """Let each block of a model be recomputed, in place: in the model's own way, if it has transformers' one,
    else by wrapping it. The names and values of its parameters stay as they are.

    Raises:
        ConfigError: the model has no blocks.
    """  # fmt: skip
    if getattr(model, "supports_gradient_checkpointing", False):
        enable: Any = model.gradient_checkpointing_enable
        enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return
    lists = list(outermost_lists(model))
    if not lists:
        raise ConfigError(
            "island.activation_checkpointing: expected a model with its blocks in an nn.ModuleList, "
            f"{type(model).__name__} has none; switch it off"
        )
    for blocks in lists:
        for number, block in enumerate(blocks):
            blocks[number] = checkpoint_wrapper(block)


def compile_blocks(model: nn.Module) -> None:
    """Compile each block, in place, so that equal ones are compiled once; or the model, if it has none."""
    blocks = [block for blocks in outermost_lists(model) for block in blocks]
    for block in blocks or [model]:
        block.compile()


def outermost_lists(model: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of blocks, without lists inside of blocks."""
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from outermost_lists(child)
