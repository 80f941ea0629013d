"""A run of many thousand rounds: does what a round costs, in memory and time, stay what it was?

Real processes over the real swarm, as `lowcomm launch` starts them, with a model so small that a round is all
there is; or, with `--virtual`, the same round on the simulator's clock, in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import SoakBench
from lowcomm.bench.soak_figures import REFERENCE, TENTHS, Sample, figures, grown, reference_s, rows
from lowcomm.clock import SystemClock, process_cpu_s
from lowcomm.config.load import load_config
from lowcomm.errors import LowcommError
from lowcomm.launching.islands import IslandProcess, LaunchPlan
from lowcomm.launching.process_table import children_of, usage
from lowcomm.launching.session import launch
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.swarm import SimSwarm
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.training.garbage import exempt_from_collection

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
GROWING = ("metrics.jsonl", "ledger.jsonl", "log.txt")
"""Each has a line for every round."""
MIB = 2**20
LOOKS = 40
"""In each tenth of the rounds, at least."""


def run(bench: SoakBench, tell: Tell) -> Outcome:
    """For `lowcomm bench soak`."""
    samples = _virtual_run(bench, tell) if bench.virtual else _real_run(bench, tell)
    log = figures(samples, bench.rounds)
    return Outcome(
        log={"soak": {**bench.to_dict(), "measures": log}},
        headings=("measure", "second tenth", "last tenth", "growth"),
        rows=rows(log),
        errors=grown(log),
    )


# -- real processes ------------------------------------------------------------------------------------


def _real_run(bench: SoakBench, tell: Tell) -> list[Sample]:
    settings = [
        f"shared.data.shards={bench.islands}",
        *(f"shared.model.{key}={value}" for key, value in _MODEL.items()),
        "shared.schedule.inner_steps=1",
        "train.batch_size=1",
        "train.grad_accumulation=1",
        f"train.steps={bench.rounds}",
        "train.eval_every=0",
        "metrics.wandb=off",
        f"data.source={Path(sysconfig.get_path('stdlib')) / '[a-b]*.py'}",
    ]
    with tempfile.TemporaryDirectory(prefix="lowcomm-soak-") as folder:
        plan = LaunchPlan(
            recipe=RECIPE,
            config=load_config(RECIPE, settings),
            overrides=settings,
            out=Path(folder),
            islands=bench.islands,
        )
        looks = _Looks(plan, bench, tell)
        result = launch(plan, SystemClock(), looks, together=True)
        if result.interrupted:
            raise KeyboardInterrupt
        if result.failures:
            raise LowcommError(f"bench soak: {result.failures[0]}")
        return looks.samples


_MODEL = {"dim": 16, "layers": 1, "heads": 1, "kv_heads": 1, "ffn_dim": 32, "context": 16}


class _Looks:
    """Looks at the islands while they run; see `Watcher`."""

    def __init__(self, plan: LaunchPlan, bench: SoakBench, tell: Tell) -> None:
        self._plan, self._bench, self._tell = plan, bench, tell
        self._clock, self._offset, self._rounds = SystemClock(), 0, 0
        self.samples: list[Sample] = []

    def show(self, islands: Sequence[IslandProcess]) -> None:
        """See `Watcher`."""
        rounds = self._committed()
        last = self.samples[-1].rounds if self.samples else 0
        few = rounds - last < self._bench.rounds / (TENTHS * LOOKS)
        if few or rounds >= self._bench.rounds:
            return
        with contextlib.suppress(FileNotFoundError):  # one has failed, as `launch` will say
            self.samples.append(self._look(islands, rounds))
        _tell_tenth(self._tell, last, rounds, self._bench.rounds)

    def stopping(self) -> None:
        """See `Watcher`."""

    def _committed(self) -> int:
        try:
            with (self._plan.folder(0) / "metrics.jsonl").open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return 0
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in map(json.loads, whole.splitlines()):
            if line["kind"] == "round" and line["committed"]:
                self._rounds = int(line["outer_step"])
        return self._rounds

    def _look(self, islands: Sequence[IslandProcess], rounds: int) -> Sample:
        trainers = [usage(island.process.pid) for island in islands]
        daemons = [usage(child.pid) for island in islands for child in children_of(island.process.pid)]
        files = [size for island in islands for size in _file_sizes(island.folder)]
        return Sample(
            rounds=rounds,
            times={
                "wall_s": self._clock.monotonic_s(),
                "processor_s": sum(process.processor_s for process in trainers + daemons),
            },
            sizes={
                REFERENCE: 1e3 * reference_s(),
                "islands_mib": sum(process.memory_bytes for process in trainers) / MIB,
                "p2pd_mib": sum(process.memory_bytes for process in daemons) / MIB,
                "threads": sum(process.threads for process in trainers),
                "open_files": sum(process.open_files for process in trainers + daemons),
                "files": len(files),
                "files_mib": sum(files) / MIB,
            },
        )


def _file_sizes(folder: Path) -> list[int]:
    """Bytes of each file of a run folder that has no line for every round."""
    sizes = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # of a checkpoint that has just gone
            if path.name not in GROWING and not path.is_dir():
                sizes.append(path.lstat().st_size)
    return sizes


def _tell_tenth(tell: Tell, before: int, rounds: int, of: int) -> None:
    if before * TENTHS // of < rounds * TENTHS // of:
        tell(f"{rounds:,} of {of:,} rounds")


# -- on the virtual clock ------------------------------------------------------------------------------

STEP_S = 1.0
DEADLINE_S = 60.0
LAST_KEPT = 8
"""Of what a simulated island remembers for checks, and a real one doesn't."""


def _virtual_run(bench: SoakBench, tell: Tell) -> list[Sample]:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=DEADLINE_S),
        schedule=toy_schedule(inner_steps=1, num_fragments=1, delay=0),
        step_s=STEP_S,
        lease_s=5 * STEP_S,
        error_feedback=False,
        unit_samples=0,
    )
    limit_s = 2 * STEP_S * bench.rounds + 10 * DEADLINE_S
    return run_virtually(_watch(bench, settings, limit_s, tell), limit_s)


async def _watch(bench: SoakBench, settings: IslandSettings, limit_s: float, tell: Tell) -> list[Sample]:
    exempt_from_collection()
    swarm = SimSwarm(bench.islands, Tape(0, (), (), quiet_s=limit_s), settings)
    running = asyncio.create_task(swarm.run())
    clock, samples, looked_s, looked_wall_s = SystemClock(), list[Sample](), 0.0, 0.0
    pid, rounds = os.getpid(), 0
    while rounds < bench.rounds:
        await asyncio.sleep(max(STEP_S, STEP_S * bench.rounds / (TENTHS * LOOKS)))
        if running.done():
            await running
        islands = swarm.outcome.lives
        before, rounds = rounds, min(island.node.state.chains[0].outer_step for island in islands)
        began_s, began_wall_s = process_cpu_s(), clock.monotonic_s()
        _forget(islands)
        gc.collect()
        samples.append(
            Sample(
                rounds=rounds,
                times={"wall_s": began_wall_s - looked_wall_s, "processor_s": began_s - looked_s},
                sizes={
                    REFERENCE: 1e3 * reference_s(),
                    "memory_mib": usage(pid).memory_bytes / MIB,
                    "objects": len(gc.get_objects()) - len(samples),
                },
            )
        )
        looked_s += process_cpu_s() - began_s
        looked_wall_s += clock.monotonic_s() - began_wall_s
        _tell_tenth(tell, before, rounds, bench.rounds)
    running.cancel()
    return samples


def _forget(islands: Sequence[SimIsland]) -> None:
    for island in islands:
        del island.record.entries[:-LAST_KEPT]
        del island.reports[:-LAST_KEPT]
        del island.intervals[:-LAST_KEPT]
