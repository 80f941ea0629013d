"""`train.micro_batch = "auto"`: the largest micro-batch that fits into the memory of the device.

Starts with all windows of an inner step in one forward pass and halves at each "out of memory"; where
a single window does not fit, it starts again with activation checkpointing. The windows of an inner
step stay as the recipe says (micro-batch x accumulation), so that nothing changes but time and memory.

What is tried, and what fits, stands in the run folder. So a trial that took the process with it, by
the kernel's out-of-memory killer or because other ranks wait in a collective for the one that failed,
is known at the next start (torchrun makes it by itself) as one that did not fit.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from lowcomm.algorithms.outer_optimizers import slot_names
from lowcomm.config.schema import Config
from lowcomm.data.loader import open_loader
from lowcomm.errors import OutOfMemoryError, StorageError
from lowcomm.host_memory import available_bytes, total_bytes
from lowcomm.islands.base import Island
from lowcomm.islands.vectors import FP32_BYTES
from lowcomm.metrics.console import human_bytes
from lowcomm.storage.files import io_reason, write_atomically
from lowcomm.tasks.base import Data, Facts, Task
from lowcomm.training.build import autocast, build_island, build_model, build_outer_optimizer
from lowcomm.training.inner_step import inner_step
from lowcomm.types import Json

FILE = "micro_batch.json"
SHARDED = ("fsdp2", "deepspeed")
"""Engines whose ranks hold one model together, and meet in every pass."""
REPORTS = (
    "out of memory",  # CUDA and others
    "can't allocate memory",  # torch's allocator for the CPU
    "bad_alloc",  # C++
    "could not create a primitive",  # oneDNN, which says no more where its scratch memory is refused
)
"""What the errors of torch say that are of no class of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How an inner step is cut: windows per rank in a forward pass, and whether blocks are recomputed."""

    micro_batch: int
    checkpointing: bool


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that of an allocator, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REPORTS)


def ladder(windows: int, checkpointing: bool) -> Iterator[Fit]:
    """What to try, in order: divisors of `windows`, each at most half of the one before it."""
    for recompute in (True,) if checkpointing else (False, True):
        micro_batch = windows
        while True:
            yield Fit(micro_batch=micro_batch, checkpointing=recompute)
            if micro_batch == 1:
                break
            micro_batch = max(size for size in range(1, micro_batch // 2 + 1) if windows % size == 0)


class FitNotes:
    """What a run folder remembers of an island's memory; of no use to an island that is set up otherwise.

    Args:
        folder: the run folder.
        config: of this island, as asked for.
        device: where this rank computes.
    """

    def __init__(self, folder: Path, config: Config, device: torch.device) -> None:
        self._path = folder / FILE
        self._setting: dict[str, Json] = {
            "windows": config.train.batch_size * config.train.grad_accumulation,
            "ranks": _ranks(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "precision": config.train.precision,
            "island": asdict(config.island),
        }

    def where(self, steps: Sequence[Fit]) -> tuple[int, bool]:
        """(which of `steps` to begin with, whether it is known to fit)."""
        try:
            noted = json.loads(self._path.read_text(encoding="utf-8"))
            fit = Fit(micro_batch=int(noted["micro_batch"]), checkpointing=bool(noted["checkpointing"]))
            fits = bool(noted["fits"])
            if noted["setting"] != self._setting or fit not in steps:
                return 0, False
        except FileNotFoundError:
            return 0, False
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{self._path}: can't be read: {error!r}; remove it to try anew") from error
        return steps.index(fit) + (not fits), fits

    def write(self, fit: Fit, *, fits: bool) -> None:
        """Remember what is about to be tried, or that it fits.

        Raises:
            StorageError: the file can't be written.
        """
        noted = {**asdict(fit), "fits": fits, "setting": self._setting}
        try:
            write_atomically(self._path, (json.dumps(noted, indent=2) + "\n").encode())
        except OSError as error:
            raise StorageError(f"{self._path}: can't be written: {io_reason(error)}") from error

    def forget(self) -> None:
        """The trial was ended by something else."""
        self._path.unlink(missing_ok=True)


def cut(config: Config, fit: Fit) -> Config:
    """The configuration with its inner step cut that way."""
    windows = config.train.batch_size * config.train.grad_accumulation
    train = replace(
        config.train,
        batch_size=fit.micro_batch,
        grad_accumulation=windows // fit.micro_batch,
    )
    island = replace(config.island, activation_checkpointing=fit.checkpointing)
    return replace(config, train=train, island=island)


def check_host_memory(config: Config, facts: Facts, device: torch.device, nodes: int = 1) -> None:
    """Refuse a model that this host can't hold, before the kernel ends the process for it without a word.

    Counted is only what certainly comes: the anchor and the outer optimizer's slots in fp32, and the weights
    where training is on the CPU.

    Args:
        facts: of the task; without the number of its parameters nothing is refused.
        nodes: hosts of the island, among which its ranks divide the outer state.

    Raises:
        OutOfMemoryError: it needs more than this process can ever have.
    """
    parameters, most = facts.parameters, total_bytes()
    if parameters is None or most is None:
        return
    state = FP32_BYTES * (1 + len(slot_names(build_outer_optimizer(config))))
    needed = parameters * state // nodes + (parameters * 4 if device.type == "cpu" else 0)
    if needed > most:
        raise OutOfMemoryError(
            f"a model of {parameters:,} parameters needs at least {human_bytes(needed)} of the host's memory"
            f"{_have()}; use a smaller model, or a host with more memory"
        )


def out_of_host_memory(phase: str, error: BaseException) -> OutOfMemoryError:
    """What to raise for an allocator's error outside of the inner steps.

    Args:
        phase: what was under way, such as "building the model".
    """
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    what = f"an allocation of {human_bytes(int(asked[1]))} was refused" if asked else first_line(error)
    return OutOfMemoryError(
        f"the memory was used up while {phase} ({what}){_have()}; use a smaller model, fewer islands or "
        "ranks on this host, or a host with more memory"
    )


def _have() -> str:
    """What the host has, in words."""
    free, most = available_bytes(), total_bytes()
    if free is None or most is None:
        return ""
    return f"; this process can have {human_bytes(free)} now and {human_bytes(most)} at most"


def fit_to_memory(
    config: Config, task: Task, data: Data, device: torch.device, folder: Path | None
) -> Config:
    """The configuration with batch size, accumulation and checkpointing that fit. Collective.

    Args:
        config: with `train.micro_batch` of any kind.
        data: of the task; its first samples are what is tried.
        device: of this rank.
        folder: the run folder, on the lead rank; None on the others.

    Raises:
        OutOfMemoryError: not even one window with checkpointing fits; or, where several ranks hold one
            model, a trial didn't, and the next start tries the next one.
        StorageError: the run folder can't be written.
    """
    if config.train.micro_batch != "auto":
        size = config.train.micro_batch or config.train.batch_size
        return cut(config, Fit(micro_batch=size, checkpointing=config.island.activation_checkpointing))
    steps = _ladder(config)
    notes = FitNotes(folder, config, device) if folder is not None else None
    number, known = notes.where(steps) if notes is not None else (0, False)
    number, known, words = _highest(number, device), bool(_highest(int(known), device)), "as tried before"
    while number < len(steps) and not known:
        if notes is not None:
            notes.write(steps[number], fits=False)
        try:
            failure = _attempt(cut(config, steps[number]), task, data, device)
        except KeyboardInterrupt:
            if notes is not None:
                notes.forget()
            raise
        if failure and _ranks() > 1 and config.island.engine in SHARDED:
            # the other ranks may be in the middle of a collective, and wait for this one there
            raise OutOfMemoryError(
                f"{_words(steps[number], task.facts)} did not fit into the memory of {device} ({failure}); "
                "start again (torchrun does with --max-restarts) to try less"
            )
        known = not _highest(int(bool(failure)), device)
        words = failure or words
        number += not known
    if not known:
        if notes is not None:
            notes.forget()
        raise OutOfMemoryError(
            f"train.micro_batch = auto: one {task.facts.sample}{_tokens(task.facts)} does not fit into "
            f"the memory of {device}, not even with activation checkpointing ({words}); use a smaller model "
            "or context, island.offload, or more ranks with island.engine = fsdp2"
        )
    if notes is not None:
        notes.write(steps[number], fits=True)
    return cut(config, steps[number])


def out_of_memory(
    asked: Config, used: Config, facts: Facts, device: torch.device, error: BaseException
) -> OutOfMemoryError:
    """What to raise for an allocator's error in mid-run, remembered where the next start can do with less.

    Args:
        asked, used: before and after `fit_to_memory`.
    """
    reason = first_line(error)
    if asked.train.micro_batch != "auto":
        return OutOfMemoryError(
            f"{facts.samples(used.train.batch_size)} in one forward pass do not fit into the memory of "
            f'{device} ({reason}); set train.micro_batch = "auto", or a smaller number there'
        )
    fit = Fit(micro_batch=used.train.batch_size, checkpointing=used.island.activation_checkpointing)
    FitNotes(Path(asked.out), asked, device).write(fit, fits=False)
    return OutOfMemoryError(
        f"{_words(fit, facts)} do not fit into the memory of {device} any more ({reason}); start again to "
        "resume with less"
    )


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _attempt(config: Config, task: Task, data: Data, device: torch.device) -> str:
    """Two inner steps on an island that is thrown away; what the allocator said, or nothing."""
    loader = open_loader(data.training(0), batch_size=config.train.batch_size)
    island: Island | None = None
    try:
        island = build_island(config, build_model(config, task), device)
        # ranks that hold the whole model each need not meet in a trial that one of them may leave
        with contextlib.nullcontext() if config.island.engine in SHARDED else island.no_sync():
            for _ in range(2):  # gradients, then the optimizers' state are there from the second pass on
                inner_step(
                    island,
                    task,
                    loader.next_batch,
                    micro_steps=min(2, config.train.grad_accumulation),
                    clip_norm=config.shared.inner.clip_norm,
                    autocast=autocast(config, device),
                )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return first_line(error)
    finally:
        island = None
        _give_back(device)
    return ""


def _give_back(device: torch.device) -> None:
    """Free what the trial has left, and what the allocators keep of it, before the next one counts it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # glibc's
        trim(0)


def _ladder(config: Config) -> list[Fit]:
    windows = config.train.batch_size * config.train.grad_accumulation
    return list(ladder(windows, config.island.activation_checkpointing))


def _words(fit: Fit, facts: Facts) -> str:
    how = "with" if fit.checkpointing else "without"
    return f"train.micro_batch = auto: {facts.samples(fit.micro_batch)} {how} activation checkpointing"


def _tokens(facts: Facts) -> str:
    return f" of {facts.sample_tokens} tokens" if facts.sample_tokens > 1 else ""


def _ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _highest(number: int, device: torch.device) -> int:
    """The highest number of all ranks."""
    if _ranks() == 1:
        return number
    box = torch.tensor([number], dtype=torch.int64, device=device if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return int(box.item())
