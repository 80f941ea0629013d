"""`train.micro_batch`: the inner step cut to the memory there is, by the kernel's own limit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError, OutOfMemoryError, StorageError
from lowcomm.tasks.base import Facts
from lowcomm.training.build import build_task
from lowcomm.training.fitting import (
    FILE,
    Fit,
    FitNotes,
    check_host_memory,
    fit_to_memory,
    is_out_of_memory,
    ladder,
    out_of_memory,
)
from tests.training.islands import losses, make_config

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
PLENTY = 0
FACTS = Facts(sample="window", sample_tokens=16)


def fitted(config: Config, device: torch.device, folder: Path | None) -> Config:
    task = build_task(config)
    return fit_to_memory(config, task, task.data(), device, folder)


def train(folder: Path, mib: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    """An island in a process that gets so many MiB beyond what it has at the start."""
    folder.mkdir()
    # glibc gives back what is freed: one heap, and large blocks outside of it
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "131072",
    }
    command = [sys.executable, "-m", "tests.training.limited", str(folder), str(mib), *overrides]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def noted(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "island" / FILE).read_text())
    return found


@pytest.mark.slow
def test_halves_until_it_fits_and_trains_on_the_same_windows(tmp_path: Path) -> None:
    limited = train(tmp_path / "limited", 75, "train.micro_batch=auto")  # 8 windows need some 105, 4 some 60
    assert limited.returncode == 0, limited.stderr
    note = noted(tmp_path / "limited")
    assert note["fits"] is True
    assert note["checkpointing"] is False
    assert note["micro_batch"] in (2, 4, 8)
    free = train(tmp_path / "free", PLENTY)
    assert free.returncode == 0, free.stderr
    expected = losses(tmp_path / "free" / "island")
    assert losses(tmp_path / "limited" / "island") == pytest.approx(expected, rel=1e-3)


@pytest.mark.processes
def test_recomputes_blocks_where_a_single_window_does_not_fit(tmp_path: Path) -> None:
    deep = (
        "shared.model.layers=24",
        "shared.model.dim=32",
        "shared.model.ffn_dim=256",
        "shared.model.context=512",
    )
    ran = train(tmp_path / "deep", 90, *deep, "train.batch_size=2", "train.micro_batch=auto")
    assert ran.returncode == 0, ran.stderr
    assert noted(tmp_path / "deep")["checkpointing"] is True


@pytest.mark.processes
def test_not_even_one_window_is_one_line(tmp_path: Path) -> None:
    ran = train(tmp_path / "none", 4, "train.micro_batch=auto")
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(
        "OutOfMemoryError: train.micro_batch = auto: one window of 256 tokens does not fit"
    )
    assert "not even with activation checkpointing" in last
    assert not (tmp_path / "none" / "island" / FILE).exists()


@pytest.mark.processes
def test_a_fixed_batch_that_does_not_fit_names_the_way_out(tmp_path: Path) -> None:
    ran = train(tmp_path / "fixed", 40)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith(
        "OutOfMemoryError: 32 windows in one forward pass do not fit"
    )
    assert 'set train.micro_batch = "auto"' in ran.stderr


def test_the_order_of_trials() -> None:
    sizes = [(fit.micro_batch, fit.checkpointing) for fit in ladder(12, False)]
    assert sizes == [(size, again) for again in (False, True) for size in (12, 6, 3, 1)]
    assert [fit.micro_batch for fit in ladder(7, True)] == [7, 1]
    assert all(fit.checkpointing for fit in ladder(7, True))


def test_a_trial_that_took_the_process_with_it_is_known_at_the_next_start(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, "train.batch_size=4", "train.grad_accumulation=2", "train.micro_batch=auto"
    )
    FitNotes(tmp_path, config, CPU).write(Fit(micro_batch=8, checkpointing=False), fits=False)
    found = fitted(config, CPU, tmp_path)
    assert (found.train.batch_size, found.train.grad_accumulation) == (4, 2)
    assert found.island.activation_checkpointing is False
    # what fits is not tried again, also where more would
    FitNotes(tmp_path, config, CPU).write(Fit(micro_batch=1, checkpointing=True), fits=True)
    found = fitted(config, CPU, tmp_path)
    assert (found.train.batch_size, found.train.grad_accumulation) == (1, 8)
    assert found.island.activation_checkpointing is True
    # of no use to an island that is set up otherwise
    other = replace(config, train=replace(config.train, grad_accumulation=1))
    assert fitted(other, CPU, tmp_path).train.batch_size == 4
    # after the last one has failed, too, all begins anew
    FitNotes(tmp_path, config, CPU).write(Fit(micro_batch=1, checkpointing=True), fits=False)
    with pytest.raises(OutOfMemoryError, match="as tried before"):
        fitted(config, CPU, tmp_path)
    assert fitted(config, CPU, tmp_path).train.batch_size == 8


def test_out_of_memory_in_mid_run_is_remembered(tmp_path: Path) -> None:
    config = replace(make_config(tmp_path, "train.batch_size=4", "train.micro_batch=auto"), out=str(tmp_path))
    used = fitted(config, CPU, tmp_path)
    assert used.train.batch_size == 4
    error = out_of_memory(config, used, FACTS, CPU, torch.OutOfMemoryError("CUDA out of memory.\nTried ..."))
    assert "4 windows without activation checkpointing do not fit" in str(error)
    assert "\n" not in str(error)
    assert fitted(config, CPU, tmp_path).train.batch_size == 2


def test_a_number_cuts_the_same_windows(tmp_path: Path) -> None:
    config = make_config(tmp_path, "train.batch_size=4", "train.grad_accumulation=3", "train.micro_batch=6")
    found = fitted(config, CPU, None)
    assert (found.train.batch_size, found.train.grad_accumulation) == (6, 2)
    with pytest.raises(
        ConfigError, match=r"train\.micro_batch: expected a divisor of the 12 windows .* got 5"
    ):
        make_config(tmp_path, "train.batch_size=4", "train.grad_accumulation=3", "train.micro_batch=5")


def test_a_damaged_note_is_said(tmp_path: Path) -> None:
    config = make_config(tmp_path, "train.micro_batch=auto")
    (tmp_path / FILE).write_text("{")
    with pytest.raises(StorageError, match="remove it to try anew"):
        fitted(config, CPU, tmp_path)


def test_other_errors_are_not_taken_for_it() -> None:
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.processes
def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    large = ("shared.model.dim=1024", "shared.model.ffn_dim=4096", "shared.model.layers=1")
    ran = train(tmp_path / "model", 60, *large)
    assert ran.returncode == 1
    assert re.search(
        r"^OutOfMemoryError: the memory was used up while building the model \(an allocation of [\d.]+ MB "
        r"was refused\); this process can have [\d.]+ [MG]B now and [\d.]+ [MG]B at most; use a smaller",
        ran.stderr.splitlines()[-1],
    )


def test_a_model_that_no_host_holds_is_refused_before_it_is_built(tmp_path: Path) -> None:
    config = make_config(
        tmp_path, "shared.model.dim=65536", "shared.model.ffn_dim=262144", "shared.model.layers=99"
    )
    with pytest.raises(
        OutOfMemoryError, match=r"parameters needs at least [\d.]+ TB of the host's memory; this"
    ):
        check_host_memory(config, build_task(config).facts, CPU)
    check_host_memory(config, build_task(make_config(tmp_path)).facts, CPU)
