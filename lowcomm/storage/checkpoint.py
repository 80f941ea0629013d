"""Checkpoints: written aside and renamed into place, verified before they are loaded.

A checkpoint is a folder `step-000000300` with one file per part and a manifest that names each
file's size and blake3 hash. The folder gets its name only when everything is on the disk, so one
that has its name is complete; the older ones are removed after that.

The manifest also names the version that wrote it, and the `FORMAT` of what the parts hold. A newer format is
refused; an older one, or one from before formats were noted, is read if it has all that is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import blake3
import torch

from lowcomm import __version__
from lowcomm.errors import CheckpointError, StorageError
from lowcomm.storage.files import io_reason, sync_folder

FORMAT = 1
"""Raise it when an older version would misread what a part holds, not when something is added."""
MANIFEST = "manifest.json"
SLOTS = "slots"
"""Of a fragment: what the outer optimizer keeps, by name."""
NAME = re.compile(r"step-(\d{9,})")


class Checkpoints:
    """The checkpoints of one island. Only one process at a time may save.

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

        Args:
            parts: by name, written one after the other; a function is called when its part's turn has
                come, so that not all need to be in memory at once.

        Raises:
            StorageError: the disk is full or the folder can't be written; the others are as before.
        """
        target = self.folder(step)
        partial = target.with_name(f".{target.name}.new")
        try:
            self._remove_leftovers()
            partial.mkdir(parents=True)
            files = {}
            for name, part in parts.items():
                file = partial / f"{name}.pt"
                with file.open("wb") as stream:
                    torch.save(part() if callable(part) else part, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                files[file.name] = {"bytes": file.stat().st_size, "blake3": _hash(file)}
            with (partial / MANIFEST).open("w", encoding="utf-8") as stream:
                facts = {"format": FORMAT, "version": __version__, "step": step, "files": files}
                json.dump(facts, stream, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(partial)
            self._hide(step)
            partial.rename(target)
            sync_folder(self._path)
            for old in self.steps()[: -self._keep]:
                self._hide(old)
            self._remove_leftovers()
        except (OSError, RuntimeError) as error:  # torch.save wraps the OSError of a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(
                f"{target}: the checkpoint could not be written: {io_reason(error)}"
            ) from error

    def load(self, step: int, *, only: Collection[str] | None = None) -> dict[str, Any]:
        """The parts of a checkpoint, after the size and hash of their files were checked.

        Args:
            step: one of `steps()`.
            only: names of parts; None = all.

        Raises:
            CheckpointError: there is none of this step, a file is missing, truncated or damaged, or
                another version wrote it and has other parts; it says which, and what to do.
        """
        folder = self.folder(step)
        if not folder.is_dir():
            raise CheckpointError(
                f"{self._path}: expected a checkpoint of inner step {step}, found those of {self.steps()}"
            )
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if (found_format := int(manifest.get("format", 0))) > FORMAT:
                raise self._of_another_version(
                    step, f"its format is {found_format}, and this version reads up to {FORMAT}"
                )
            files = {str(name): (int(f["bytes"]), str(f["blake3"])) for name, f in manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(step, f"{folder / MANIFEST} can't be read ({error!r})") from error
        for name in only or ():
            if f"{name}.pt" not in files:
                raise self._of_another_version(step, f"it has no {name}.pt, which this version needs")
        parts = {}
        for name, (size, digest) in files.items():
            file = folder / name
            if only is not None and file.stem not in only:
                continue
            if not file.is_file():
                raise self._damaged(step, f"{file} is missing")
            if file.stat().st_size != size:
                raise self._damaged(step, f"{file} has {file.stat().st_size} bytes, expected {size}")
            found = _hash(file)
            if found != digest:
                raise self._damaged(step, f"{file} has blake3 {found[:12]}, expected {digest[:12]}")
            try:
                parts[file.stem] = torch.load(file, map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError) as error:  # the file is whole, as its hash says
                reason = (
                    f"{file.name} holds what this version can't read ({' '.join(str(error).split())[:200]})"
                )
                raise self._of_another_version(step, reason) from error
        return parts

    @contextlib.contextmanager
    def understood(self, step: int) -> Iterator[None]:
        """Within this, what a checkpoint holds is taken over; what it lacks is said by name.

        Raises:
            CheckpointError: a value that this version wants isn't there, or is of another kind.
        """
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            reason = f"this version wants another content ({type(error).__name__}: {error})"
            raise self._of_another_version(step, reason) from error

    def folder(self, step: int) -> Path:
        """Where the checkpoint of an inner step is, or would be."""
        return self._path / f"step-{step:09d}"

    def _hide(self, step: int) -> None:
        """Take a checkpoint's name away, in one step: it is whole or not there."""
        folder = self.folder(step)
        if folder.is_dir():
            folder.rename(folder.with_name(f".{folder.name}.old"))

    def _remove_leftovers(self) -> None:
        """What a process that was killed has left, and what was hidden."""
        for item in self._path.glob(".step-*"):
            shutil.rmtree(item, ignore_errors=True)

    def _of_another_version(self, step: int, what: str) -> CheckpointError:
        try:
            version = json.loads((self.folder(step) / MANIFEST).read_text(encoding="utf-8"))["version"]
        except (OSError, ValueError, KeyError, TypeError):
            version = "of a version that noted no number"
        return CheckpointError(
            f"{self.folder(step)} was written by lowcomm {version}, this is lowcomm {__version__}: {what}; "
            "go on with the version that wrote it, or choose a new --out and join the swarm as a new island"
        )

    def _damaged(self, step: int, what: str) -> CheckpointError:
        older = [other for other in self.steps() if other < step]
        hint = f"the one of step {older[-1]} is the next older" if older else "there is no older one"
        return CheckpointError(f"{what}; remove {self.folder(step)} to go on without it ({hint})")


def fragment_part(index: int) -> str:
    """The name of the part that holds the outer state of one fragment."""
    return f"fragment-{index}"


def named_slots(saved: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """What the outer optimizer keeps of a fragment, by name; before slots had names, it was one momentum."""
    slots: Mapping[str, torch.Tensor] = (
        {"momentum": saved["momentum"]} if "momentum" in saved else saved[SLOTS]
    )
    return slots


def saved_fragments(
    checkpoints: Checkpoints, step: int, num_fragments: int, wants: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """The outer state in a checkpoint, fragment by fragment, each loaded when it is asked for.

    Args:
        wants: what each must have.

    Raises:
        CheckpointError: see `Checkpoints.load`.
    """
    for index in range(num_fragments):
        name = fragment_part(index)
        with checkpoints.understood(step):
            saved = checkpoints.load(step, only=(name,))[name]
            for key in wants:  # a KeyError names what another version has not saved
                if key == SLOTS:
                    named_slots(saved)
                else:
                    saved[key]
        yield saved


def _hash(file: Path) -> str:
    return str(blake3.blake3().update_mmap(file).hexdigest())
