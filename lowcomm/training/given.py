"""From a model, data and a few words to what `Trainer` takes: settings, a task, optimizers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypedDict

import torch
from torch import nn

from lowcomm import arguments
from lowcomm.arguments import show, split_join
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.data.items import Collate
from lowcomm.errors import ArgumentError, ConfigError
from lowcomm.tasks.given import Evaluate, GivenTask, Loss, is_map_style

Optimizer = torch.optim.Optimizer
MakeOptimizer = Callable[[nn.Module], Optimizer | Sequence[Optimizer]]
DEFAULTS = ("shared.task.kind=given", "shared.inner.name=adamw", "shared.inner.lr=3e-4")
"""What holds with a given model where `settings` say nothing else."""
WORDS = {"steps": "train.steps", "batch_size": "train.batch_size", "run_id": "shared.run_id", "out": "out"}


class Given(TypedDict, total=False):
    """What `Trainer` takes beside a model and data."""

    loss: Loss
    eval_data: Any
    evaluate: Evaluate
    collate: Collate
    optimizer: Optimizer | Sequence[Optimizer] | MakeOptimizer
    sample_tokens: int
    run_id: str
    join: str | Sequence[str]
    out: str | PathLike[str]
    steps: int
    batch_size: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a `Trainer` needs.

    Attributes:
        optimizer: given optimizers, or what makes them of the model; None = those of the settings.
    """

    config: Config
    task: GivenTask
    optimizer: Optimizer | Sequence[Optimizer] | MakeOptimizer | None


def recipe_of(model: nn.Module, data: Any, given: Given) -> Recipe:
    """See `Trainer`.

    Raises:
        ConfigError: a word or a setting is unknown or wrong, or two of them say the same.
    """
    known = Given.__optional_keys__
    for name in given:
        if name not in known:
            raise ArgumentError(f"Trainer: {name}: expected one of {', '.join(sorted(known))}")
    config = load_config(None, _overrides(given, own=not is_map_style(data)))
    optimizer = given.get("optimizer")
    if isinstance(optimizer, Sequence):
        optimizer = list(optimizer)
    made = optimizer if isinstance(optimizer, list) else [optimizer]
    if optimizer is not None and not callable(optimizer) and not all(isinstance(o, Optimizer) for o in made):
        raise ArgumentError(
            f"Trainer: optimizer: expected one of torch.optim, several, or a function of the model, got "
            f"{show(optimizer)}"
        )
    task = GivenTask(
        model,
        data,
        eval_data=given.get("eval_data"),
        loss=given.get("loss"),
        evaluate=given.get("evaluate"),
        collate=given.get("collate"),
        sample_tokens=arguments.whole("Trainer: sample_tokens", given.get("sample_tokens", 1), least=1),
        shards=config.shared.data.shards if config.shared.data.same or config.data.shard >= 0 else 1,
        seed=config.shared.seed,
    )
    return Recipe(config, task, optimizer)


def make_optimizers(
    optimizer: Optimizer | Sequence[Optimizer] | MakeOptimizer, model: nn.Module, engine: str
) -> list[Optimizer]:
    """Optimizers whose groups keep the peak in `peak_lr`, for `learning_rate.set_lr`.

    Raises:
        ConfigError: they were made of parameters that the engine replaces, or hold others than the model's.
    """
    made: Any = optimizer
    if not isinstance(optimizer, Optimizer) and callable(optimizer):
        made = optimizer(model)
    elif engine in ("fsdp2", "deepspeed"):
        raise ConfigError(
            f"Trainer: optimizer: expected a function of the model with island.engine = {engine}, which "
            "shards parameters first, e.g. lambda model: torch.optim.AdamW(model.parameters(), lr=3e-4), got "
            f"{show(optimizer)}"
        )
    optimizers = list(made) if isinstance(made, Sequence) else [made]
    for each in optimizers:
        if not isinstance(each, Optimizer):
            raise ArgumentError(f"Trainer: optimizer: expected optimizers of torch, got {show(each)}")
        for group in each.param_groups:
            group.setdefault("peak_lr", group["lr"])
    return optimizers


def _overrides(given: Given, *, own: bool) -> list[str]:
    settings = given.get("settings", {})
    if not isinstance(settings, Mapping):
        raise ArgumentError(
            f'Trainer: settings: expected a dict, e.g. {{"shared.codec.name": "int4"}}, got {show(settings)}'
        )
    values: dict[str, Any] = {}
    if own:  # an iterable data set has no parts to divide
        values["shared.data.same"] = False
    values["out"] = "runs/given"
    for word, setting in WORDS.items():
        if word in given:
            if setting in settings:
                raise ConfigError(f"Trainer: {word}: expected it here or as {setting} in settings, got both")
            values[setting] = given[word]  # type: ignore[literal-required]
    if "out" in given:
        values["out"] = str(arguments.path("Trainer: out", given["out"]))
    if join := given.get("join"):
        run_id, addresses = split_join([join] if isinstance(join, str) else list(join), "Trainer: join")
        values["exchange.initial_peers"] = addresses
        if run_id is not None and values.setdefault("shared.run_id", run_id) != run_id:
            raise ConfigError(
                f"Trainer: run_id: expected {run_id}, that of join, got {values['shared.run_id']}"
            )
    values.update(settings)
    return [*DEFAULTS, *(f"{name}={_toml(value)}" for name, value in values.items())]


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(each)}" for name, each in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
