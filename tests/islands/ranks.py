"""Real ranks for tests: what each of them does, and `run_ranks`, which starts them.

A rank, `tests.islands.rank`, does all tasks and writes what it saw to FOLDER/rank-N.pt; `run_ranks` waits and
loads that. (All tasks in one go: what takes long is to start Python with torch.)
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov
from lowcomm.data.shards import load_text
from lowcomm.errors import DataError, LossError, ModelError
from lowcomm.islands import wrap_island
from lowcomm.islands.base import Island
from lowcomm.islands.deepspeed_zero import initialize, recipe_config
from lowcomm.islands.fsdp2 import shard
from lowcomm.training.opening import require_same_data

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 250
"""A guard against a hang."""


def make_model(seed: int = 0) -> nn.Module:
    """A float network with a buffer, a frozen layer, and a submodule whose name holds `module.`."""
    torch.manual_seed(seed)
    model = nn.Sequential()
    model.add_module("submodule", nn.Linear(6, 8))
    model.add_module("frozen", nn.Linear(8, 8).requires_grad_(False))
    model.add_module("norm", nn.LayerNorm(8))
    model.add_module("head", nn.Linear(8, 3, bias=False))
    model.register_buffer("mean", torch.arange(3.0))
    return model


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(8, 6) inputs and (8, 3) targets: the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 6, generator=generator), torch.randn(8, 3, generator=generator)


def train(island: Island, steps: range, *, micro_steps: int = 1) -> list[float]:
    """AdamW steps on this rank's part of the global batches, accumulated; the gradients' norm in each."""
    norms = []
    for step in steps:
        inputs, targets = (
            part.chunk(island.world_size)[island.rank].to(island.device) for part in batch(step)
        )
        pieces = zip(inputs.chunk(micro_steps), targets.chunk(micro_steps), strict=True)
        for number, (x, y) in enumerate(pieces):
            loss = nn.functional.mse_loss(island.model(x), y) / micro_steps
            if number < micro_steps - 1:
                with island.no_sync():
                    island.backward(loss)
            else:
                island.backward(loss)
        norms.append(float(island.update(0.0)))
    return norms


def make_island(seed: int = 0, device: str = "cpu", engine: str = "auto") -> Island:
    return wrap(make_model(seed).to(device), engine)


def wrap(model: nn.Module, engine: str, optimizer: torch.optim.Optimizer | None = None) -> Island:
    """An island of an engine; without an optimizer with AdamW for what is trainable."""
    name, _, option = engine.partition("-")
    if name == "fsdp2":
        shard(model)
    if optimizer is None:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=0.01)
    if name == "deepspeed":
        stage, offload = int(option[-1]), "all" if option.startswith("offload") else "none"
        ds_config = recipe_config(
            None, stage=stage, offload=offload, micro_batch=4, accumulation=1, clip_norm=0.0, bf16=False,
            world_size=torch.distributed.get_world_size(),
        )  # fmt: skip
        return initialize(model, [optimizer], ds_config)
    return wrap_island(model, optimizer, engine=name)


def everything(island: Island) -> torch.Tensor:
    return island.read(range(len(island.layout)))


@torch.no_grad()
def outputs(island: Island) -> torch.Tensor:
    """What this rank computes with the weights that are in use, whatever it holds of them."""
    return island.bare_model(batch(99)[0])


def task_train(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """Other initial weights on each rank: the first's must be taken by all."""
    island = make_island(seed=rank, engine=engine)
    start = everything(island)
    norms = train(island, range(3)) + train(island, range(3, 6), micro_steps=2)
    return {
        "start": start,
        "norms": norms,
        "layout": [(spec.name, spec.shape) for spec in island.layout],
        "end": everything(island),
        "outputs": outputs(island),
        "lead": island.is_lead,
        "size": island.world_size,
        "finite": island.is_finite(),
    }


def task_write(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """What is written is what is read, what the forward pass uses, and where training goes on from."""
    island = make_island(engine=engine)
    outputs(island)  # leaves whole copies behind, which must not survive the writing
    new = torch.linspace(-1, 1, sum(spec.elements for spec in island.layout))
    island.write(range(len(island.layout)), new if island.is_lead else None)
    seen = {"written": everything(island), "outputs": outputs(island)}
    train(island, range(2))
    return {**seen, "trained": everything(island), "frozen": island.frozen_digest()}


def task_non_finite(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """A NaN that one round would send: every rank stops, and none waits for another."""
    island = make_island(engine=engine)
    exchange = exchanges.loopback(exchanges.hub(), run_id="nan", peer_id="alone", founder=True)
    with OuterLoop(
        island,
        exchange if island.is_lead else None,
        schedule=Schedule(inner_steps=1),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(lr=0.7, momentum=0.6),
    ) as outer:
        committed = [report.committed for report in outer.step(tokens=8)]
        values = everything(island)
        if island.is_lead:
            values[0] = float("nan")
        island.write(range(len(island.layout)), values if island.is_lead else None)
        try:
            outer.step(tokens=8)
        except LossError as error:
            return {"committed": committed, "error": str(error), "finite": island.is_finite()}
    raise AssertionError("the NaN was sent")


def task_collectives(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    island = make_island(engine=engine)
    new = torch.arange(float(sum(island.layout[i].elements for i in (1, 3))))
    island.write((1, 3), new if island.is_lead else None)
    numbers = island.broadcast([3, -1, 2**40] if island.is_lead else None)
    flags = [island.any_rank(False), island.any_rank(rank == island.world_size - 1), island.any_rank(True)]
    gathered = island.gather({"rank": rank, "tensor": torch.full((2,), float(rank))})
    return {
        "written": island.read((1, 3)),
        "numbers": numbers,
        "flags": flags,
        "gathered": gathered,
    }


def task_resume(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """A restart from the lead's state equals going on, on every rank; also with what is frozen made anew."""
    island = make_island(engine=engine)
    train(island, range(3))
    paths = {frozen: folder / f"state-{frozen}.pt" for frozen in (True, False)}
    for frozen, path in paths.items():
        state = island.state_dict(frozen=frozen)
        if island.is_lead:
            torch.save(state, path)
    island.any_rank(False)  # the files are there when all have come here
    train(island, range(3, 6))
    again, remade = make_island(seed=7, engine=engine), make_island(engine=engine)
    for other, path in ((again, paths[True]), (remade, paths[False])):
        other.load_state_dict(torch.load(path, weights_only=True))
        train(other, range(3, 6))
    return {
        "went on": everything(island),
        "restarted": everything(again),
        "remade": everything(remade),
        "outputs": [outputs(island), outputs(again), outputs(remade)],
    }


def task_limits(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """A model of fewer elements than ranks, and an optimizer of another model: an island, or why not."""
    tiny, other = nn.Linear(1, 1, bias=False), make_model()
    foreign = torch.optim.AdamW(make_model().parameters(), lr=0.01)

    def attempt(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> str:
        try:
            island = wrap(model, engine, optimizer)
        except ModelError as error:
            return str(error)
        loss = island.model(torch.ones(4, 1)).square().mean()
        island.backward(loss)
        island.update(0.0)
        everything(island)
        return "trained"

    return {"engine": engine, "tiny": attempt(tiny, None), "foreign": attempt(other, foreign)}


def task_changed(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """A model that the last rank alone changes: every rank stops, and says why as far as it knows."""
    island = make_island(engine=engine)
    outputs(island)  # an evaluation is no change
    everything(island)
    model, last = island.bare_model, rank == island.world_size - 1
    model.frozen.requires_grad_(last)  # type: ignore[union-attr]
    try:
        everything(island)
    except ModelError as error:
        model.frozen.requires_grad_(False)  # type: ignore[union-attr]
        return {"said": str(error), "read": len(everything(island))}
    raise AssertionError("nobody saw it")


ENGINES = ("ddp", "fsdp2", "deepspeed-zero2", "deepspeed-zero3", "deepspeed-offload3")


def task_texts(rank: int, folder: Path, engine: str) -> dict[str, Any]:
    """What is said of one text for all ranks, and of another one on the second."""
    island, said = make_island(engine=engine), []
    for word in ("same", f"rank {rank}"):
        source = folder / f"{word} of {rank}.txt"
        source.write_text(word)
        text = load_text(str(source), shards=1, holdout_fraction=0.0, seed=0)
        try:
            require_same_data(island, text)
            said.append("")
        except DataError as error:
            said.append(str(error))
    return {"said": said}


TASKS: dict[str, Callable[[int, Path, str], dict[str, Any]]] = {
    "train": task_train,
    "write": task_write,
    "non-finite": task_non_finite,
    "collectives": task_collectives,
    "resume": task_resume,
    "limits": task_limits,
    "changed": task_changed,
    "texts": task_texts,
}


def run_ranks(
    world_size: int, folder: Path, *options: str, module: str = "tests.islands.rank"
) -> list[dict[str, dict[str, Any]]]:
    """What each task returned, by rank and name; `options` are the module's, here the engine."""
    command = [sys.executable, "-m", module]
    children = [
        subprocess.Popen(
            [*command, str(rank), str(world_size), str(folder), *options],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        errors = [child.communicate(timeout=TIMEOUT_S)[1] for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0] * world_size, "\n".join(errors)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]
