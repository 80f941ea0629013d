"""Checkpoints: written aside and renamed into place, verified before they are loaded.

A checkpoint is a folder `step-000000300` with one file per part and a manifest that names each
file's size and blake3 hash. The folder gets its name only when everything is on the disk, so one
that has its name is complete; the older ones are removed after that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import blake3
import torch

from lowcomm.errors import CheckpointError, StorageError

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{9,})")


class Checkpoints:
    """The checkpoints of one island.

    Args:
        path: the folder they lie in; made when the first is saved.
        keep: how many of the newest are kept.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        self._path, self._keep = path, keep

    def steps(self) -> list[int]:
        """Inner steps of the complete checkpoints, ascending."""
        if not self._path.is_dir():
            return []
        found = [(NAME.fullmatch(item.name), item) for item in self._path.iterdir()]
        return sorted(int(match[1]) for match, item in found if match and (item / MANIFEST).is_file())

    def save(self, step: int, parts: Mapping[str, Any]) -> None:
        """Write a checkpoint of `parts`, each loadable with `torch.load(weights_only=True)`.

        Raises:
            StorageError: the disk is full or the folder can't be written; the others are as before.
        """
        target = self._folder(step)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            files = {}
            for name, part in parts.items():
                file = partial / f"{name}.pt"
                with file.open("wb") as stream:
                    torch.save(part, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                files[file.name] = {"bytes": file.stat().st_size, "blake3": _hash(file)}
            with (partial / MANIFEST).open("w", encoding="utf-8") as stream:
                json.dump({"step": step, "files": files}, stream, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            _sync_folder(self._path)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            shutil.rmtree(partial, ignore_errors=True)
            reason = (
                error.strerror
                if isinstance(error, OSError) and error.strerror
                else str(error).splitlines()[0]
            )
            raise StorageError(f"{target}: the checkpoint could not be written: {reason}") from error
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self._folder(old), ignore_errors=True)

    def load(self, step: int) -> dict[str, Any]:
        """The parts of a checkpoint, after every file's size and hash were checked.

        Raises:
            CheckpointError: a file is missing, truncated or damaged; it says which, and what to do.
        """
        folder = self._folder(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = {str(name): (int(f["bytes"]), str(f["blake3"])) for name, f in manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(step, f"{folder / MANIFEST} can't be read ({error!r})") from error
        parts = {}
        for name, (size, digest) in files.items():
            file = folder / name
            if not file.is_file():
                raise self._damaged(step, f"{file} is missing")
            if file.stat().st_size != size:
                raise self._damaged(step, f"{file} has {file.stat().st_size} bytes, expected {size}")
            if _hash(file) != digest:
                raise self._damaged(step, f"{file} has other content than was written")
            parts[file.stem] = torch.load(file, map_location="cpu", weights_only=True)
        return parts

    def _folder(self, step: int) -> Path:
        return self._path / f"step-{step:09d}"

    def _damaged(self, step: int, what: str) -> CheckpointError:
        older = [other for other in self.steps() if other < step]
        hint = f"the one of step {older[-1]} is the next older" if older else "there is no older one"
        return CheckpointError(f"{what}; remove {self._folder(step)} to go on without it ({hint})")


def _hash(file: Path) -> str:
    return str(blake3.blake3().update_mmap(file).hexdigest())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
