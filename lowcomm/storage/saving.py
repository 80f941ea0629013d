"""Checkpoints that training doesn't wait for: what they hold is copied, and written beside the next steps."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from lowcomm.host_memory import available_bytes
from lowcomm.storage.checkpoint import Checkpoints

logger = logging.getLogger(__name__)

SPARE = 1.25
"""So many times what a copy weighs has to be free, or training waits until all is written."""


class Saver:
    """Saves one checkpoint at a time; whoever has the next one waits for the last.

    A process that dies meanwhile leaves what it had before: a checkpoint gets its name when it is whole.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._pool = ThreadPoolExecutor(1, "lowcomm-checkpoint")
        self._under_way: Future[None] | None = None
        self._told = False

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Copy what `Checkpoints.save` takes, and write it in the background.

        Raises:
            StorageError: the last one could not be written; or this one, where there is no room for a copy.
        """
        try:
            self.wait()
        finally:
            copies = self._copied(parts)
            if copies is None:
                self._checkpoints.save(step, parts)
            else:
                self._under_way = self._pool.submit(self._checkpoints.save, step, copies)

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return self._under_way is not None and not self._under_way.done()

    def wait(self) -> None:
        """Until all is written.

        Raises:
            StorageError: it could not be.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Let what is under way be written; what becomes of it nobody asks."""
        self._pool.shutdown(wait=True)

    def _copied(self, parts: Mapping[str, Any]) -> dict[str, Any] | None:
        """On the host; None where it has no room."""
        copies: dict[str, Any] = {}
        for name, part in parts.items():
            found = part() if callable(part) else part
            copy = _Copy()
            weight, free = copy.weigh(found), available_bytes()
            if free is not None and free < SPARE * weight:
                if not self._told:
                    self._told = True
                    logger.warning(
                        "a copy of part %s of a checkpoint takes %.1f MB, and %.1f MB are free: training "
                        "waits while checkpoints are written",
                        name,
                        weight / 1e6,
                        free / 1e6,
                    )
                return None
            copies[name] = copy.of(found)
        return copies


class _Copy:
    """With memory of its own on the host, in which tensors share what they shared, as in torch.save."""

    def __init__(self) -> None:
        self._storages: dict[tuple[torch.device, int], torch.UntypedStorage] = {}

    def weigh(self, part: Any) -> int:
        """Bytes that it will take."""
        storages = [tensor.untyped_storage() for tensor in _tensors(part)]
        return sum({(each.device, each.data_ptr()): each.nbytes() for each in storages}.values())

    def of(self, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            tensor = part.detach()
            storage = tensor.untyped_storage()
            key = storage.device, storage.data_ptr()
            if key not in self._storages:
                self._storages[key] = torch.UntypedStorage(storage.nbytes()).copy_(storage)  # type: ignore[no-untyped-call]
            empty = torch.empty(0, dtype=tensor.dtype, device="cpu")
            return empty.set_(self._storages[key], tensor.storage_offset(), tensor.shape, tensor.stride())
        if isinstance(part, Mapping):
            return {name: self.of(each) for name, each in part.items()}
        if isinstance(part, (list, tuple)):
            return type(part)(self.of(each) for each in part)
        return part


def _tensors(part: Any) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, (Mapping, list, tuple)):
        for each in part.values() if isinstance(part, Mapping) else part:
            yield from _tensors(each)
