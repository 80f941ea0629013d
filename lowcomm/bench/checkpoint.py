"""For how long training stands still for a checkpoint: `lowcomm bench checkpoint`.

A GPT around a real `OuterLoop` takes inner steps; every few of them a checkpoint is saved as the trainer does
it, copied and then written beside the next steps, and, in turn, written while training waits. What the disk
takes is the same in both.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.overhead import Step, outer_loop
from lowcomm.bench.settings import CheckpointBench
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.load import load_config
from lowcomm.storage.checkpoint import Checkpoints, fragment_part
from lowcomm.storage.saving import Saver

BYTES_PER_PARAMETER = 20
"""Parameters, AdamW's two moments, anchor and outer momentum, in fp32."""
DIM, CONTEXT = 512, 64


@dataclass(frozen=True, kw_only=True)
class Stalls:
    """The figures; seconds, medians over the saves.

    Attributes:
        step_s: a step with no save under way.
        beside_s, beside_longest_s: steps while a checkpoint is written, median and longest.
        stall_s, stall_longest_s: for which training stood still for one that is written beside it.
        written_s: from then until it was whole.
        waiting_s: for which training stands still where it waits for the disk.
    """

    checkpoint_bytes: int
    parameters: int
    threads: int
    saves: int
    step_s: float
    beside_s: float
    beside_longest_s: float
    stall_s: float
    stall_longest_s: float
    written_s: float
    waiting_s: float


def run(bench: CheckpointBench, tell: Tell) -> Outcome:
    """Measure, and lay the figures out."""
    with tempfile.TemporaryDirectory(prefix="lowcomm-bench-") as folder:
        found = measure(bench, Path(folder), tell)
    rows = (
        ("checkpoint", f"{found.checkpoint_bytes / 1e6:.0f} MB, {found.parameters:,} parameters"),
        ("inner step", f"{found.step_s:.3f} s"),
        ("training stands still", f"{found.stall_s:.3f} s (longest {found.stall_longest_s:.3f} s)"),
        ("whole after", f"{found.written_s:.3f} s"),
        ("inner step meanwhile", f"{found.beside_s:.3f} s (longest {found.beside_longest_s:.3f} s)"),
        ("where training waits for the disk", f"{found.waiting_s:.3f} s"),
    )
    return Outcome(log={"checkpoint": asdict(found)}, headings=("", ""), rows=rows)


def measure(bench: CheckpointBench, folder: Path, tell: Tell, clock: Clock | None = None) -> Stalls:
    """Save `bench.saves` checkpoints each way, with `bench.steps` steps between two."""
    clock = clock or SystemClock()
    now_s = clock.monotonic_s
    layers = max(1, round(bench.mb * 1e6 / BYTES_PER_PARAMETER / (12 * DIM**2)))
    sizes = {
        "dim": DIM,
        "layers": layers,
        "heads": 8,
        "kv_heads": 8,
        "ffn_dim": DIM * 8 // 3,
        "context": CONTEXT,
    }
    overrides = [f"shared.model.{name}={value}" for name, value in sizes.items()]
    config = load_config(
        None, [*overrides, "shared.inner.name=adamw", f"train.batch_size={bench.batch_size}"]
    )
    step = Step(config, clock)
    checkpoints = Checkpoints(folder, keep=2)
    saver = Saver(checkpoints)
    alone: list[float] = []
    beside: list[float] = []
    stalls: list[float] = []
    whole: list[float] = []
    waits: list[float] = []
    with outer_loop(step.island, "loopback") as outer:
        for number in range(1, 2 * bench.saves + 1):
            alone += [step(outer)[0] for _ in range(bench.steps)]
            parts: dict[str, Any] = {"outer": outer.state_dict(fragments=False)}
            began_s = now_s()
            parts["island"] = step.island.state_dict()
            parts |= {
                fragment_part(index): partial(outer.fragment_state, index)
                for index in range(outer.num_fragments)
            }
            if number % 2:
                saver.save(number, parts)
                stalls.append(now_s() - began_s)
                while saver.is_busy:
                    beside.append(step(outer)[0])
                saver.wait()
                whole.append(now_s() - began_s)
            else:
                checkpoints.save(number, parts)
                waits.append(now_s() - began_s)
                tell(f"{number // 2} of {bench.saves} saves each way")
        size = sum(file.stat().st_size for file in checkpoints.folder(2 * bench.saves).iterdir())
        parameters = outer.parameters
    saver.close()
    return Stalls(
        checkpoint_bytes=size,
        parameters=parameters,
        threads=torch.get_num_threads(),
        saves=bench.saves,
        step_s=statistics.median(alone),
        beside_s=statistics.median(beside) if beside else 0.0,
        beside_longest_s=max(beside, default=0.0),
        stall_s=statistics.median(stalls),
        stall_longest_s=max(stalls),
        written_s=statistics.median(whole),
        waiting_s=statistics.median(waits),
    )
