"""Training windows in a seeded random order, resumable to the window; and fixed evaluation windows.

In each epoch the text is cut, from a random offset on, into windows of context + 1 tokens that
overlap by one, so that every token is predicted once; the windows come in a random order. Batches
run on over the end of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from numpy.typing import NDArray
from torch import Tensor

from lowcomm.data.order import permutation, random_below
from lowcomm.errors import DataError

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, each (batch, context) int64; targets are the inputs one token later."""


class Loader:
    """The stream of one rank of one island. All ranks draw in step and take disjoint windows.

    Args:
        text: (tokens,) of the island's shard.
        context: tokens in a window.
        batch_size: windows per rank and batch.
        seed: the same seed gives the same stream on any machine.
        rank, world_size: of this process within the island.
        name: what errors call the text.

    Raises:
        DataError: the text is too short for one window.
    """

    def __init__(
        self,
        text: NDArray[np.uint8],
        *,
        context: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        name: str = "the island's shard",
    ) -> None:
        _require_window(text, context, name)
        if not 0 <= rank < world_size:
            raise DataError(f"expected 0 <= rank < world size = {world_size}, got rank {rank}")
        self._text, self._name = text, name
        self._context, self._batch_size, self._seed = context, batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._digest = blake3(np.ascontiguousarray(text).data).hexdigest()
        self._tokens = 0
        self._enter(epoch=0, position=0)

    @property
    def epoch(self) -> int:
        """How often the whole text was drawn."""
        return self._epoch

    @property
    def tokens(self) -> int:
        """Tokens drawn so far by all ranks of the island, skipped ones included."""
        return self._tokens

    @property
    def epoch_tokens(self) -> int:
        """Tokens of the whole text."""
        return len(self._text)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one batch, over all ranks of the island."""
        return self._batch_size * self._world_size * self._context

    def next_batch(self) -> Batch:
        """The next batch of this rank; tensors on the host."""
        drawn = self._draw(self._batch_size * self._world_size)
        first = self._rank * self._batch_size
        return _cut(self._text, drawn[first : first + self._batch_size], self._context)

    def skip(self, tokens: int) -> None:
        """Leave out the next `tokens` tokens of the island's stream, e.g. those credited before a restart.

        Raises:
            DataError: not a whole number of windows.
        """
        windows, rest = divmod(tokens, self._context)
        if tokens < 0 or rest:
            raise DataError(f"skip: expected whole windows of {self._context} tokens, got {tokens} tokens")
        self._tokens += tokens
        while windows >= len(self._starts) - self._position:
            windows -= len(self._starts) - self._position
            self._enter(self._epoch + 1, 0)
        self._position += windows

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and of what text it is; the same on all ranks."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "tokens": self._tokens,
            "seed": self._seed,
            "context": self._context,
            "text_digest": self._digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken; batch and world size may be others.

        Raises:
            DataError: the state is of another text, context or seed.
        """
        mine = self.state_dict()
        for key in ("text_digest", "context", "seed"):
            if state[key] != mine[key]:
                raise DataError(
                    f"{self._name}: the checkpoint was made with {key} {state[key]}, this run has "
                    f"{mine[key]}; resume with the same text and settings, or start in a new run folder"
                )
        self._tokens = int(state["tokens"])
        self._enter(int(state["epoch"]), int(state["position"]))

    def _enter(self, epoch: int, position: int) -> None:
        context, key = self._context, ("windows", self._seed, epoch)
        # shifting by up to a window makes the cuts fall elsewhere in each epoch
        offset = random_below(min(context, len(self._text) - context), "offset", self._seed, epoch)
        count = (len(self._text) - offset - 1) // context
        self._starts = offset + context * permutation(count, *key)
        self._epoch, self._position = epoch, position

    def _draw(self, windows: int) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = []
        self._tokens += windows * self._context
        while windows:
            part = self._starts[self._position : self._position + windows]
            parts.append(part)
            windows -= len(part)
            self._position += len(part)
            if self._position == len(self._starts):
                self._enter(self._epoch + 1, 0)
        return np.concatenate(parts)


def eval_batches(
    text: NDArray[np.uint8],
    *,
    context: int,
    num_windows: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    name: str = "the held-out text",
) -> Iterator[Batch]:
    """Fixed windows, evenly spread over the text and not overlapping; always the same ones.

    Args:
        text: (tokens,) that nobody trains on.
        context: tokens in a window.
        num_windows: how many in all; fewer where the text is short.
        batch_size: windows in a batch; the last one may be smaller.
        rank, world_size: ranks share the windows, each takes every `world_size`-th.
        name: what errors call the text.

    Raises:
        DataError: the text is too short for one window; raised before the first batch is drawn.
    """
    _require_window(text, context, name)
    room = (len(text) - 1) // context
    count = min(num_windows, room)
    starts = context * (np.arange(count, dtype=np.int64) * room // count)[rank::world_size]
    return (_cut(text, starts[i : i + batch_size], context) for i in range(0, len(starts), batch_size))


def _cut(text: NDArray[np.uint8], starts: NDArray[np.int64], context: int) -> Batch:
    windows = text[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    inputs, targets = np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _require_window(text: NDArray[np.uint8], context: int, name: str) -> None:
    if len(text) <= context:
        raise DataError(
            f"{name}: expected at least {context + 1} bytes of text, one window of shared.model.context = "
            f"{context} and the byte after it, got {len(text)}; give more text, or fewer shards, or a "
            "shorter context"
        )
