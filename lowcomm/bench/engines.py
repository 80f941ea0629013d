"""Islands of unlike engines in one run: `lowcomm bench engines`.

A plain island, one of two FSDP2 ranks and one of two DeepSpeed ZeRO-3 ranks train a small GPT over the real
swarm; then three plain islands do, with the same shards, batches and seed, and again with other seeds.
Compared after every outer step:

    digests     of the outer state, on all islands of a run
    loss        of the anchor on held-out text, unlike against plain islands
    anchor      norm of the difference between the two, over the norm of how far the plain one has moved

The seeds give the spread that the loss at the end has anyhow.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import EngineBench
from lowcomm.clock import SystemClock
from lowcomm.config.load import load_config, to_toml
from lowcomm.config.schema import Config
from lowcomm.launching.islands import LaunchPlan
from lowcomm.launching.session import train_together
from lowcomm.metrics.factory import METRICS_FILE
from lowcomm.storage.checkpoint import Checkpoints, saved_fragments
from lowcomm.training.build import build_model, build_task
from lowcomm.types import Json

UNLIKE = (("plain", 1), ("fsdp2", 2), ("deepspeed", 2))
"""Engine and ranks of each island; DeepSpeed's stage is 3."""
PLAIN = (("plain", 1),) * len(UNLIKE)
BATCH = 4
"""Windows of an inner step of an island, all its ranks together."""
SMALL_GPT = (
    "shared.model.dim=64", "shared.model.layers=2", "shared.model.heads=4", "shared.model.kv_heads=4",
    "shared.model.ffn_dim=176", "shared.model.context=64", "shared.inner.name=adamw", "shared.inner.lr=0.003",
    "train.eval_windows=256", "train.threads=1", "train.device=cpu", "metrics.wandb=off",
)  # fmt: skip


def bench_config(bench: EngineBench, seed: int) -> Config:
    """Of a run, for islands of one rank."""
    count, steps = len(UNLIKE), bench.outer_steps * bench.inner_steps
    return load_config(
        None,
        [
            *SMALL_GPT,
            "shared.run_id=bench-engines",
            f"shared.seed={seed}",
            f"shared.data.shards={count}",
            f"shared.schedule.inner_steps={bench.inner_steps}",
            f"shared.round.min_participants={count}",
            "exchange.lease_s=30",
            f"train.steps={steps}",
            f"train.batch_size={BATCH}",
            "train.eval_every=1",
            "train.checkpoint_every=1",
            f"train.keep_checkpoints={bench.outer_steps}",
        ],
    )


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What came of one run, by outer step from the first one on.

    Attributes:
        digests: of each island.
        losses: of the anchor.
        anchors: flat, fp32.
        start: the initial weights, flat.
    """

    digests: tuple[tuple[str, ...], ...]
    losses: tuple[float, ...]
    anchors: tuple[Tensor, ...]
    start: Tensor

    @property
    def equal_digests(self) -> int:
        """Outer steps after which the outer state was the same bits on all islands."""
        return sum(len(set(row)) == 1 for row in zip(*self.digests, strict=True))


@dataclass(frozen=True, kw_only=True)
class Engines:
    """The figures.

    Attributes:
        unlike: the run of unlike islands.
        plain: those of plain islands, by seed.
    """

    bench: EngineBench
    unlike: EngineRun
    plain: Mapping[int, EngineRun]

    HEADINGS: ClassVar[tuple[str, ...]] = ("outer step", "unlike", "plain", "losses apart", "anchors apart")

    @property
    def twin(self) -> EngineRun:
        """The plain islands with the data of the unlike ones."""
        return self.plain[0]

    @property
    def losses_apart(self) -> list[float]:
        """|unlike / plain - 1| after each outer step."""
        pairs = zip(self.unlike.losses, self.twin.losses, strict=True)
        return [abs(unlike / plain - 1.0) for unlike, plain in pairs]

    @property
    def anchors_apart(self) -> list[float]:
        """Norm of the difference over the norm of the plain islands' way from the initial weights."""
        pairs = zip(self.unlike.anchors, self.twin.anchors, strict=True)
        return [float((a - b).norm() / (b - self.twin.start).norm()) for a, b in pairs]

    @property
    def spread(self) -> float:
        """Of the last loss over the seeds, highest over lowest - 1."""
        last = [run.losses[-1] for run in self.plain.values()]
        return max(last) / min(last) - 1.0

    def rows(self) -> list[tuple[str, ...]]:
        """Under `HEADINGS`."""
        apart = zip(self.losses_apart, self.anchors_apart, strict=True)
        losses = zip(self.unlike.losses, self.twin.losses, strict=True)
        return [
            (str(step), f"{unlike:.4f}", f"{plain:.4f}", f"{loss:.1e}", f"{anchor:.1e}")
            for step, ((unlike, plain), (loss, anchor)) in enumerate(zip(losses, apart, strict=True), 1)
        ]

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {
            "islands": [f"{engine} x{ranks}" for engine, ranks in UNLIKE],
            "bench": self.bench.to_dict(),
            "codec": bench_config(self.bench, 0).shared.codec.name,
            "parameters": self.twin.start.numel(),
            "equal_digests": self.unlike.equal_digests,
            "digests": list(self.unlike.digests[0]),
            "losses": list(self.unlike.losses),
            "plain_losses": {str(seed): list(run.losses) for seed, run in self.plain.items()},
            "losses_apart": list(self.losses_apart),
            "anchors_apart": list(self.anchors_apart),
            "spread": self.spread,
        }


def run(bench: EngineBench, tell: Tell) -> Outcome:
    """For `lowcomm bench engines`."""
    result = measure_engines(bench, tell)
    return Outcome(
        log={"engines": result.to_dict()},
        headings=Engines.HEADINGS,
        rows=result.rows(),
        notes=[
            "digests equal on all islands after "
            f"{result.unlike.equal_digests} of {bench.outer_steps} outer steps",
            f"the last loss over {bench.seeds} seeds of plain islands: {result.spread:.1e} apart",
        ],
    )


def measure_engines(bench: EngineBench, tell: Tell) -> Engines:
    """Train the unlike islands, then plain ones with each seed.

    Args:
        tell: of each run as soon as it is over.

    Raises:
        LowcommError: an island failed; it says what its log ends with.
    """

    def train(name: str, seed: int, engines: Sequence[tuple[str, int]]) -> EngineRun:
        done = _run(bench, seed, engines)
        tell(f"{name}: loss {done.losses[-1]:.4f}, digests equal after {done.equal_digests} outer steps")
        return done

    unlike = train("unlike engines", 0, UNLIKE)
    plain = {seed: train(f"plain, seed {seed}", seed, PLAIN) for seed in range(bench.seeds)}
    return Engines(bench=bench, unlike=unlike, plain=plain)


@dataclass(frozen=True, kw_only=True)
class _Plan(LaunchPlan):
    """Islands that differ in engine and ranks and have equal batches.

    Attributes:
        engines: and ranks, of each island.
    """

    engines: Sequence[tuple[str, int]]

    def command(self, index: int, initial_peers: Sequence[str], group_address: str) -> list[str]:
        """See `LaunchPlan`."""
        engine, ranks = self.engines[index]
        own = (f"island.engine={engine}", "island.zero_stage=3", f"train.batch_size={BATCH // ranks}")
        alike = LaunchPlan(
            recipe=self.recipe,
            config=self.config,
            overrides=own,
            out=self.out,
            islands=self.islands,
            ranks=ranks,
        )
        return alike.command(index, initial_peers, group_address)


def _run(bench: EngineBench, seed: int, engines: Sequence[tuple[str, int]]) -> EngineRun:
    config = bench_config(bench, seed)
    with tempfile.TemporaryDirectory(prefix="lowcomm-engines-") as folder:
        recipe, out = Path(folder) / "recipe.toml", Path(folder) / "run"
        recipe.write_text(to_toml(config), encoding="utf-8")
        plan = _Plan(
            recipe=recipe, config=config, overrides=(), out=out, islands=len(engines), engines=engines
        )
        train_together(plan, SystemClock())
        lines = [_lines(plan.folder(index)) for index in range(plan.islands)]
        return EngineRun(
            digests=tuple(
                tuple(line["digest"] for line in one if line["kind"] == "round" and line["committed"])
                for one in lines
            ),
            losses=tuple(_losses(lines[0], bench.outer_steps)),
            anchors=tuple(_anchors(plan.folder(0), bench)),
            start=_flat(dict(build_model(config, build_task(config)).named_parameters())),
        )


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text("utf-8").splitlines()]


def _losses(lines: Sequence[Mapping[str, Any]], outer_steps: int) -> list[float]:
    by_step = {line["outer_step"]: float(line["eval_loss"]) for line in lines if line["kind"] == "eval"}
    return [by_step[step] for step in range(1, outer_steps + 1)]


def _anchors(folder: Path, bench: EngineBench) -> list[Tensor]:
    checkpoints = Checkpoints(folder / "checkpoints", keep=bench.outer_steps)
    anchors = []
    for outer_step in range(1, bench.outer_steps + 1):
        named: dict[str, Tensor] = {}
        for saved in saved_fragments(checkpoints, outer_step * bench.inner_steps, 1):
            named.update(saved["tensors"])
        anchors.append(_flat(named))
    return anchors


def _flat(named: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([named[name].detach().flatten().float() for name in sorted(named)])
