"""Watches the network threads of this process: what keeps them from the others' messages."""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import blake3
import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowcomm.outer.thread import LoopThread

DISK = frozenset(
    ("open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir")
)
FILES = ("pread", "pwrite", "fsync")

_found: list[str] | None = None


def _watched() -> bool:
    return _found is not None and threading.current_thread().name == "lowcomm-network"


def _note(what: str) -> None:
    assert _found is not None
    frames = [frame for frame in traceback.extract_stack() if "/lowcomm/" in frame.filename]
    where = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.name}" for frame in frames[:-5:-1])
    _found.append(f"{what} in {where}")


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event in DISK and _watched() and not str(args[0]).endswith((".py", ".pyc")):
        _note(f"{event} {args[0]!r:.80}")


sys.addaudithook(_audit)


class _Operations(TorchDispatchMode):
    """Notes what is done with large tensors; views, and memory that nobody has touched, cost nothing."""

    def __init__(self, most_elements: int) -> None:
        super().__init__()
        self._most = most_elements

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        touched = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        takes_long = not function.is_view and not str(function).startswith("aten.empty")
        if takes_long and any(leaf.numel() > self._most for leaf in touched) and _watched():
            _note(f"{function}")
        return out


@contextmanager
def watching(patch: pytest.MonkeyPatch, *, most_bytes: int) -> Iterator[list[str]]:
    """What network threads did that may take long: files, and work on more than `most_bytes`."""
    global _found
    gc.collect()  # what other tests have left removes its files wherever it is collected
    original, run_forever = blake3.blake3, LoopThread.start

    class Hasher:
        AUTO = original.AUTO

        def __init__(self, data: Any = b"", **settings: Any) -> None:
            self._hasher = original(**settings)
            self.update(data)

        def update(self, data: Any) -> Hasher:
            if memoryview(data).nbytes > most_bytes and _watched():
                _note(f"hash of {memoryview(data).nbytes} bytes")
            self._hasher.update(data)
            return self

        def digest(self) -> bytes:
            return self._hasher.digest()

        def hexdigest(self) -> str:
            return self._hasher.hexdigest()

    def start(thread: LoopThread) -> None:
        run_forever(thread)
        assert thread._loop is not None
        thread._loop.call_soon_threadsafe(_Operations(most_bytes // 4).__enter__)

    patch.setattr(blake3, "blake3", Hasher)
    patch.setattr(LoopThread, "start", start)
    for name in FILES:
        patch.setattr(os, name, _noting(name, getattr(os, name)))
    _found = []
    try:
        yield _found
    finally:
        _found = None


def _noting(name: str, call: Any) -> Any:
    def noted(*args: Any) -> Any:
        if _watched():
            _note(f"os.{name}")
        return call(*args)

    return noted
