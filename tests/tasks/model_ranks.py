"""Two ranks of an island that train models of transformers beside a plain one:
`python -m tests.tasks.model_ranks RANK WORLD FOLDER ENGINE` is a rank.

The lead process holds the swarm, a loopback hub; the plain island trains in a thread of it.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowcomm import exchanges
from lowcomm.clock import SystemClock
from lowcomm.config.schema import Config
from lowcomm.data.loader import Loader
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.islands.base import Island
from lowcomm.tasks.base import Task
from lowcomm.training.build import build_island, build_model, build_outer_loop, build_task
from lowcomm.training.evaluation import evaluate
from lowcomm.training.inner_step import inner_step
from lowcomm.types import PeerId
from tests.islands.rank import main
from tests.tasks.models import MODELS_AND_LORA, recipe

WAIT_S = 100.0
ROUNDS, INNER_STEPS = 2, 2
CPU = torch.device("cpu")
POOL = ThreadPoolExecutor(1)
"""Where the plain island trains."""


def models_of(engine: str) -> list[str]:
    """What an engine is tried with: DeepSpeed takes no weights in bf16, and compiling takes long."""
    if engine.endswith("compiled"):
        return ["llama"]
    return [name for name in MODELS_AND_LORA if not (engine.startswith("deepspeed") and "bf16" in name)]


def settings(folder: Path, model: str, engine: str) -> Config:
    name, _, option = engine.partition("-")
    overrides = [f"island.engine={name}"]
    if name == "deepspeed":
        overrides.append(f"island.zero_stage={option[-1]}")
    if engine != "plain":
        overrides.append("island.activation_checkpointing=true")
    if option == "compiled":
        overrides.append("train.compile=true")
    return recipe(
        folder, *MODELS_AND_LORA[model], *overrides, "exchange.expected_peers=2",
        f"data.shard={int(engine == 'plain')}",
        f"shared.schedule.inner_steps={INNER_STEPS}", "shared.round.min_participants=2",
    )  # fmt: skip


def make(config: Config) -> tuple[Task, Island]:
    """Random numbers are the process's, so both islands are made before one of them trains."""
    task = build_task(config)
    return task, build_island(config, build_model(config, task), CPU)


def train(config: Config, made: tuple[Task, Island], hub: LoopbackHub | None, name: str) -> dict[str, Any]:
    """One island from its start to its end."""
    (task, island), exchange = made, None
    if hub is not None and island.is_lead:
        exchange = exchanges.loopback(
            hub, run_id=config.shared.run_id, peer_id=PeerId(name), founder=name == "founder"
        )
    data = task.data()
    loader = Loader(
        data.training(config.data.shard), batch_size=4, rank=island.rank, world_size=island.world_size
    )
    digests, losses = [], []
    with build_outer_loop(config, island, exchange, folder=None, clock=SystemClock()) as outer:
        for _ in range(ROUNDS * INNER_STEPS):
            loss, _ = inner_step(
                island, task, loader.next_batch, micro_steps=1, clip_norm=1.0, autocast=False
            )
            losses.append(float(loss))
            reports = outer.step(loader.batch_tokens)
            assert all(report.committed for report in reports), [report.reason for report in reports]
            digests += [report.digest for report in reports]
        outer.finish()
        with outer.anchor_weights():
            told = evaluate(task, island.bare_model, data.evaluation(8, 4), CPU)
        anchor: dict[str, Tensor] = outer.anchor() if island.is_lead else {}
        found = {"digest": outer.digest if island.is_lead else "", "eval": told["loss"], "losses": losses}
    return {**found, "digests": digests, "anchor": {name: tensor.clone() for name, tensor in anchor.items()}}


def beside_a_plain_one(model: str, rank: int, folder: Path, engine: str) -> dict[str, Any]:
    hub, other = None, None
    config, plain = (
        settings(folder / f"rank-{rank}", model, engine),
        settings(folder / f"rank-{rank}", model, "plain"),
    )
    made = make(config)
    if rank == 0:
        hub = exchanges.hub()
        other = POOL.submit(train, plain, make(plain), hub, "partner")
    mine = train(config, made, hub, "founder")
    return {"mine": mine, "plain": other.result(WAIT_S) if other else {}}


TASKS = {
    model: lambda rank, folder, engine, model=model: beside_a_plain_one(model, rank, folder, engine)
    for model in MODELS_AND_LORA
}

if __name__ == "__main__":
    (Path(sys.argv[3]) / f"rank-{sys.argv[1]}").mkdir()
    chosen = {name: TASKS[name] for name in models_of(sys.argv[4])}
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], chosen)
