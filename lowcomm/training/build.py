"""Configuration to objects: the one place where names become classes."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowcomm import codecs, exchanges, tasks
from lowcomm.algorithms import aggregation, outer_optimizers
from lowcomm.algorithms.aggregation import Aggregation
from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.inner_optimizers import make_inner_optimizers
from lowcomm.algorithms.learning_rate import LrSchedule
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.algorithms.schedule import Schedule
from lowcomm.arguments import show
from lowcomm.clock import Clock
from lowcomm.codecs.base import Codec
from lowcomm.config.load import run_settings
from lowcomm.config.schema import Config
from lowcomm.config.values import is_table, read_table
from lowcomm.errors import ModelError
from lowcomm.exchanges.base import Exchange
from lowcomm.exchanges.swarm.access import Gate, read_token
from lowcomm.islands import require_ranks, wrap_island
from lowcomm.islands.base import Island
from lowcomm.islands.checkpointing import checkpoint_blocks, compile_blocks
from lowcomm.ledger.state import OuterState
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.claims import Limits
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.tasks.base import Task
from lowcomm.tasks.own import make_own
from lowcomm.tasks.text import TextSource
from lowcomm.types import Json

logger = logging.getLogger(__name__)

_DRAWING = threading.Lock()
"""torch's random numbers are the process's, and islands may be threads of one."""


def build_task(config: Config) -> Task:
    """What the recipe trains; nothing of it is made or read yet.

    Raises:
        ConfigError: a task of the user's own can't be imported or called, or is none.
        ModelError: the sizes of the model don't fit together.
    """
    task, methods = config.shared.task, tasks.METHODS
    offered: dict[str, Any] = {
        "seed": config.shared.seed,
        "source": config.data.source,
        "text_key": config.data.text_key,
        "shards": config.shared.data.shards if _is_divided(config) else 1,
        "holdout_fraction": config.shared.data.holdout_fraction,
    }
    model = read_table(task.model) if is_table(task.model) else task.model
    if task.kind not in methods.names:
        settings = {} if isinstance(model, str) else model
        return make_own(task.kind, config.train.task_folder, offered, settings)
    text = TextSource(
        **{name: offered[name] for name in ("source", "text_key", "shards", "holdout_fraction")},
        manifest=config.shared.data.manifest,
        apart=config.shared.data.packing == "apart",
        unit_samples=config.shared.data.unit_samples,
        cache_gb=config.data.cache_gb,
    )
    adapter = read_table(task.adapter) if is_table(task.adapter) else {}
    offered |= {
        "sizes": _fields(config.shared.model),
        "model": model,
        "adapter": adapter,
        "dtype": task.dtype,
        "attention": config.train.attention,
        "text": text,
        "folder": config.train.task_folder,
    }
    wanted = methods.spec(task.kind).parameters
    return methods.make(task.kind, {name: offered[name] for name in wanted if name in offered})


def _is_divided(config: Config) -> bool:
    """Whether an island trains on one of several parts of what it has read."""
    return config.shared.data.same or config.data.shard >= 0


def build_model(config: Config, task: Task) -> nn.Module:
    """The task's model, with weights from `shared.seed`: the same bits on every island.

    Raises:
        ModelError: it is no model, or has nothing to train.
    """
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.shared.seed)
        model = task.make_model()
    kind = f"shared.task.kind = {config.shared.task.kind}"
    if not isinstance(model, nn.Module):
        raise ModelError(f"{kind}: expected a torch.nn.Module from make_model, got {show(model)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"{kind}: expected a model with parameters to train, got none in {type(model).__name__}"
        )
    saved = model.state_dict().keys()
    own = [name for name, buffer in model.named_buffers() if buffer.is_floating_point() and name in saved]
    if own:
        logger.warning(
            "the model keeps numbers that islands don't exchange and no export holds (buffers: %s); they "
            "differ from island to island: GroupNorm or LayerNorm has none, in place of BatchNorm",
            ", ".join(own[:3]) + (", ..." if len(own) > 3 else ""),
        )
    return model


def build_optimizers(config: Config, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The inner optimizers of the recipe for `model`."""
    inner = config.shared.inner
    return make_inner_optimizers(
        model,
        name=inner.name,
        lr=inner.lr,
        adamw_lr=inner.adamw_lr,
        muon_momentum=inner.muon_momentum,
        betas=(inner.beta1, inner.beta2),
        weight_decay=inner.weight_decay,
    )


def build_lr_schedule(config: Config) -> LrSchedule:
    """How the inner learning rate follows the swarm's progress."""
    inner = config.shared.inner
    return LrSchedule(
        name=inner.schedule,
        warmup_fraction=inner.warmup_fraction,
        decay_fraction=inner.decay_fraction,
        final_fraction=inner.final_lr_fraction,
    )


def build_codec(config: Config) -> Codec:
    """The codec of the recipe."""
    codec = config.shared.codec
    return codecs.by_name(
        codec.name,
        error_feedback={"auto": None, "on": True, "off": False}[codec.error_feedback],
        decay=None if codec.error_feedback_decay < 0 else codec.error_feedback_decay,
    )


def build_schedule(config: Config) -> Schedule:
    """The schedule of the recipe."""
    return Schedule(**_fields(config.shared.schedule))


def build_outer_optimizer(config: Config) -> OuterOptimizer:
    """The outer optimizer of the recipe."""
    given = {name: value for name, value in _fields(config.shared.outer).items() if value != "auto"}
    return outer_optimizers.by_name(**given)


def build_aggregation(config: Config) -> Aggregation:
    """The aggregation rule of the recipe."""
    return aggregation.by_name(config.shared.aggregation.name, faulty=config.shared.aggregation.faulty)


def build_limits(config: Config) -> Limits:
    """What the recipe lets a contribution claim."""
    rule = config.shared.aggregation
    return Limits(
        norm_limit=rule.norm_limit,
        clip_norm=rule.clip_norm,
        max_tokens=rule.max_tokens,
        max_rejections=rule.max_rejections,
        ban_s=rule.ban_s,
    )


def build_gate(config: Config) -> Gate | None:
    """Who may be in the run of this recipe; None = anybody."""
    access, settings = config.shared.access, config.exchange
    if access.mode == "open":
        return None
    return Gate(
        config.shared.run_id,
        owner=access.owner if access.mode == "invite" else "",
        allow=settings.allow if access.mode == "allowlist" else (),
        token=read_token(Path(settings.token_file)) if settings.token_file else "",
    )


def build_exchange(config: Config, identity_path: Path) -> Exchange:
    """The exchange of the recipe; `identity_path` holds the peer's key unless the recipe names one."""
    settings = config.exchange
    offered = {
        "run_id": config.shared.run_id,
        "initial_peers": settings.initial_peers,
        "listen": settings.listen,
        "announce": settings.announce,
        "identity_path": Path(settings.identity) if settings.identity else identity_path,
        "streams": settings.streams,
        "relay": settings.relay,
        "auto_relay": settings.relay,
        "nat_port_map": settings.nat_port_map,
        "gate": build_gate(config),
        "rank": settings.group_rank,
        "world_size": settings.group_size,
        "master": settings.group_address,
        "host": settings.group_listen,
        "join_timeout_s": settings.gather_timeout_s,
    }
    methods = exchanges.METHODS
    wanted = methods.spec(settings.kind).parameters
    return methods.make(settings.kind, {name: offered[name] for name in wanted if name in offered})


def build_outer_loop(
    config: Config,
    island: Island,
    exchange: Exchange | None,
    *,
    folder: Path | None,
    clock: Clock,
    data_digest: str = "",
    unit_samples: int = 0,
    agreed: Mapping[str, Json] | None = None,
) -> OuterLoop:
    """The outer loop of the recipe around `island`; `exchange` is None on ranks that don't lead.

    Args:
        data_digest: of the text; not compared where islands have their own.
        unit_samples: see `leased_units`.
        agreed: what is compared beside it and the settings, by name.
    """
    settings, policy = config.exchange, config.shared.round
    return OuterLoop(
        island,
        exchange,
        schedule=build_schedule(config),
        codec=build_codec(config),
        outer_optimizer=build_outer_optimizer(config),
        aggregation=build_aggregation(config),
        round_policy=RoundPolicy(**_fields(policy), limits=build_limits(config)),
        shared={**run_settings(config), **(agreed or {})},
        data_digest=data_digest if config.shared.data.same else "",
        expected_peers=settings.expected_peers,
        gather_timeout_s=settings.gather_timeout_s,
        heartbeat_s=settings.heartbeat_s,
        lease_s=settings.lease_s,
        chunk_bytes=settings.chunk_bytes,
        shard=config.data.shard,
        num_shards=config.shared.data.shards if config.shared.data.same and not unit_samples else 0,
        unit_samples=unit_samples,
        folder=folder,
        keep_updates=config.train.keep_updates,
        snapshot_mbit_s=settings.snapshot_mbit_s,
        name=config.island.name,
        clock=clock,
        found=settings.found,
        metrics=False,  # the trainer's journal has more in it
    )


def build_outer_state(config: Config) -> OuterState:
    """The outer state that a run of this recipe begins with, for audits."""
    model = build_model(config, build_task(config))
    island = wrap_island(model, build_optimizers(config, model), engine="plain")
    schedule = build_schedule(config)
    fragments = make_fragments(island.layout, schedule.num_fragments, schedule.fragmenting)
    return OuterState(
        config.shared.run_id,
        fragments,
        [island.read(fragment.tensors) for fragment in fragments],
        build_outer_optimizer(config),
        build_codec(config),
    )


def build_island(
    config: Config,
    model: nn.Module,
    device: torch.device,
    make_optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]] | None = None,
) -> Island:
    """The island of the recipe around a model: on its device, sharded, with its inner optimizers.

    Args:
        make_optimizers: in place of those of the recipe.

    Raises:
        ConfigError: the engine is not installed, needs torchrun, or its settings contradict the recipe.
    """
    settings, engine = config.island, config.island.engine
    model = model.to(device)
    if settings.activation_checkpointing:
        checkpoint_blocks(model)
    low_precision = autocast(config, device)
    if engine == "fsdp2":
        require_ranks(engine)
        from lowcomm.islands.fsdp2 import shard

        shard(
            model,
            precision="bf16" if low_precision else "fp32",
            replicas=settings.replicas,
            cpu_offload=settings.offload == "all",
        )
    if config.train.compile:
        compile_blocks(model)
    optimizers = make_optimizers(model) if make_optimizers else build_optimizers(config, model)
    if engine == "deepspeed":
        require_ranks(engine)
        from lowcomm.islands.deepspeed_zero import initialize, recipe_config

        # DeepSpeed calls collectives by names that torch has given up, several times a step
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        given = Path(settings.deepspeed_config) if settings.deepspeed_config else None
        ds_config = recipe_config(
            given,
            stage=settings.zero_stage,
            offload=settings.offload,
            micro_batch=config.train.batch_size,
            accumulation=config.train.grad_accumulation,
            clip_norm=config.shared.inner.clip_norm,
            bf16=low_precision,
            world_size=torch.distributed.get_world_size(),
        )
        return initialize(model, optimizers, ds_config)
    return wrap_island(model, optimizers, engine=engine)


def autocast(config: Config, device: torch.device) -> bool:
    """Whether `train.precision` means bfloat16 on this device."""
    if config.train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.train.precision == "bf16"


def _fields(part: object) -> dict[str, Any]:
    return dict(vars(part))
