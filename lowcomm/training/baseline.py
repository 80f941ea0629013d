"""Data-parallel training, which a run over the swarm is compared with: equal tokens, equal text.

One process takes, in each inner step, the batch that every island would have drawn from its own
shard, and makes one optimizer step on their mean gradient: what N islands would do if they
averaged their gradients in each inner step (Stich 2019, arXiv:1805.09767, with H = 1). Initial
weights, model, data order, number of steps and evaluation windows are those of the run; the
learning rate is data-parallel's own best, from a recipe.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from blake3 import blake3
from torch import Tensor, nn

from lowcomm.algorithms.learning_rate import set_lr
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.config.shared import LATER
from lowcomm.data.loader import Batches, open_loader
from lowcomm.data.samples import joined, map_batch
from lowcomm.errors import ConfigError, LossError
from lowcomm.tasks.base import LOSS, Task
from lowcomm.training.build import build_lr_schedule, build_model, build_optimizers, build_task
from lowcomm.training.device import choose_device
from lowcomm.training.evaluation import evaluate
from lowcomm.training.inner_step import checked_loss
from lowcomm.training.loading import micro_steps
from lowcomm.training.trainer import EVAL_BATCH
from lowcomm.types import Json


def baseline_config(config: Config, recipe: Path | None) -> Config:
    """The run's configuration with data-parallel's own inner settings.

    Args:
        config: of the run that is compared.
        recipe: its `[shared.inner]` is taken if it is for the same inner optimizer; else, or without
            one, the run's own settings stay.

    Raises:
        ConfigError: the recipe can't be read.
    """
    if recipe is None:
        return config
    inner = load_config(recipe).shared.inner
    if inner.name != config.shared.inner.name:
        return config
    return dataclasses.replace(config, shared=dataclasses.replace(config.shared, inner=inner))


def baseline_key(config: Config, islands: int, recipe: Path | None) -> str:
    """A digest of all that the baseline's figures depend on; committed ones are found by it.

    Raises:
        ConfigError: the recipe can't be read.
    """
    compared = baseline_config(config, recipe)
    inner = {
        name: value
        for name, value in dataclasses.asdict(compared.shared.inner).items()
        if value != LATER.get(f"shared.inner.{name}")
    }
    text = compared.shared.data
    settings = {
        "islands": islands,
        "shared": {
            name: value
            for name, value in dataclasses.asdict(compared.shared).items()
            if name in ("seed", "model") or (name == "task" and compared.shared.task.kind != "gpt")
        }
        | {
            "inner": inner,
            "data": {
                "shards": compared.shared.data.shards,
                "holdout_fraction": compared.shared.data.holdout_fraction,
            },
        },
        "train": {
            name: value
            for name, value in dataclasses.asdict(compared.train).items()
            if name in ("steps", "batch_size", "grad_accumulation", "eval_windows")
        },
        "data": {"source": compared.data.source, "text_key": compared.data.text_key}
        | ({"manifest": text.manifest, "packing": text.packing} if text.manifest else {})
        | ({"global_batch_tokens": text.global_batch_tokens} if text.global_batch_tokens else {}),
    }
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return blake3(canonical.encode("utf-8")).hexdigest()


def run_baseline(
    config: Config,
    islands: int,
    recipe: Path | None,
    *,
    threads: int = 0,
    on_step: Callable[[int], None] = lambda step: None,
    clock: Clock | None = None,
) -> dict[str, Json]:
    """Train data-parallel with the batches of all islands, in this process.

    Args:
        config: of the run that is compared.
        islands: how many shards are drawn from in each step.
        recipe: see `baseline_config`.
        threads: CPU threads; 0 = one for each core, as the islands together have them.
        on_step: called after each inner step.
        clock: measures `wall_s`.

    Returns:
        `eval_loss` (nats per token; None without held-out text), `tokens`, `train` (a list of
        [tokens, mean training loss]), `parameters`, `wall_s`, `python` (its sources are the text of
        the quickstart) and `text` (the digest of the documents).

    Raises:
        DataError: the text can't be used.
        LossError: the loss is not finite.
    """
    clock = clock if clock is not None else SystemClock()
    began_s = clock.monotonic_s()
    config = baseline_config(config, recipe)
    task = build_task(config)
    data = task.data()
    if islands > data.num_shards:
        raise ConfigError(f"expected at most shared.data.shards = {data.num_shards} islands, got {islands}")
    size = config.train.batch_size
    loaders = [open_loader(data.training(index), batch_size=size) for index in range(islands)]
    batches = micro_steps(config, loaders[0].batch_tokens, islands)
    train = dataclasses.replace(config.train, grad_accumulation=batches)
    config = dataclasses.replace(config, train=train)
    device = choose_device(config.train.device)
    with _threads(threads or len(os.sched_getaffinity(0))):
        model = build_model(config, task).to(device)
        curve = _train(config, task, model, loaders, device, on_step)
        found = evaluate(task, model, data.evaluation(config.train.eval_windows, EVAL_BATCH), device)
    return {
        "eval_loss": found.get(LOSS),
        "tokens": sum(loader.tokens for loader in loaders),
        "train": [[tokens, loss] for tokens, loss in curve],
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "wall_s": clock.monotonic_s() - began_s,
        "python": platform.python_version(),
        "text": data.digest,
    }


def _train(
    config: Config,
    task: Task,
    model: nn.Module,
    loaders: list[Batches],
    device: torch.device,
    on_step: Callable[[int], None],
) -> list[tuple[int, float]]:
    """All inner steps; (tokens, mean loss since the last entry) at each `train.log_every`."""
    optimizers = build_optimizers(config, model)
    inner, steps = config.shared.inner, config.train.steps
    if config.train.tokens:
        step_tokens = config.train.grad_accumulation * sum(loader.batch_tokens for loader in loaders)
        steps = -(-config.train.tokens // step_tokens)
    precision = config.train.precision
    autocast = precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    schedule = build_lr_schedule(config)
    curve: list[tuple[int, float]] = []
    losses: list[Tensor] = []
    for step in range(steps):
        set_lr(optimizers, schedule.factor(step, steps))
        for _ in range(config.train.grad_accumulation):
            batch = joined([loader.next_batch() for loader in loaders])
            batch = map_batch(lambda tensor: tensor.to(device), batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = checked_loss(task.loss(model, batch)) / config.train.grad_accumulation
            torch.autograd.backward(loss)
            losses.append(loss.detach() * config.train.grad_accumulation)
        if inner.clip_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), inner.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % config.train.log_every == 0 or step + 1 == steps:
            mean = torch.stack(losses).mean()
            if not torch.isfinite(mean):
                raise LossError(
                    f"data-parallel: the loss is not finite at inner step {step + 1}; lower its lr"
                )
            curve.append((sum(loader.tokens for loader in loaders), float(mean)))
            losses.clear()
        on_step(step + 1)
    return curve


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
