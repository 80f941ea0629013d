"""An island whose ranks train with DeepSpeed: ZeRO stages 1 to 3, with or without offload.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054) cuts flat fp32 masters of the parameters into equal
padded shards. What other islands see is the masters, whole and in the model's own shapes, so it does
not depend on the stage or the number of ranks. DeepSpeed's setters change the master alone; the
weight that the forward pass uses has to be written beside it.

The CUDA and NCCL paths are written for GPUs and were not run on one here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowcomm.errors import CheckpointError, ConfigError, ModelError
from lowcomm.islands.parameters import BUILD_OPTIMIZER, bare_name, check_groups, frozen_names
from lowcomm.islands.ranks import RanksIsland
from lowcomm.types import Json, TensorSpec


def recipe_config(
    given: Path | None,
    *,
    stage: int,
    offload: str,
    micro_batch: int,
    accumulation: int,
    clip_norm: float,
    bf16: bool,
    world_size: int,
) -> dict[str, Json]:
    """The ds_config of a recipe: a user's whole file, completed, or one of the settings alone.

    Args:
        given: a JSON file, or None; its ZeRO section stands instead of `stage` and `offload`.
        stage: 1, 2 or 3.
        offload: `none`, `optimizer`, or `all` for the parameters as well (stage 3).
        micro_batch: windows per rank in one forward pass.
        accumulation: forward passes per inner step.
        clip_norm: of the gradients; 0 = none.
        bf16: whether the forward and backward pass compute in bfloat16.

    Raises:
        ConfigError: the file can't be read, or says otherwise than the recipe; it names the keys.
    """
    if offload == "all" and stage < 3 and given is None:
        raise ConfigError(
            f"island.offload = all: expected island.zero_stage = 3, which shards the parameters, got {stage}"
        )
    zero: dict[str, Json] = {"stage": stage}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    config: dict[str, Json] = {} if given is None else _read(given)
    wanted: dict[str, tuple[Json, str]] = {
        "train_micro_batch_size_per_gpu": (micro_batch, "train.batch_size"),
        "gradient_accumulation_steps": (accumulation, "train.grad_accumulation"),
        "train_batch_size": (micro_batch * accumulation * world_size, "train.batch_size x ranks"),
        "gradient_clipping": (clip_norm, "shared.inner.clip_norm"),
        "bf16.enabled": (bf16, "train.precision"),
        "fp16.enabled": (False, "train.precision, which has no fp16"),
        "optimizer": (None, "shared.inner"),
        "scheduler": (None, "shared.inner"),
    }
    wrong = []
    for path, (value, setting) in wanted.items():
        found = _look_up(config, path)
        if found not in (_ABSENT, "auto") and found != value:
            says = "decides that" if value is None else f"says {json.dumps(value)}"
            wrong.append(f"{path} = {json.dumps(found)}, but {setting} {says}")
    stage_found = _look_up(config, "zero_optimization.stage")
    if given is not None and stage_found not in (_ABSENT, 1, 2, 3):
        wrong.append(f"zero_optimization.stage = {json.dumps(stage_found)}, but expected 1, 2 or 3")
    if wrong:
        raise ConfigError(
            f"{given}: contradicts the recipe: {'; '.join(wrong)}; remove these keys, or change the recipe"
        )
    config.setdefault("zero_optimization", zero)
    config |= {path: value for path, (value, _) in wanted.items() if "." not in path and value is not None}
    bf16_section = config.get("bf16")
    config["bf16"] = {**(bf16_section if isinstance(bf16_section, dict) else {}), "enabled": bf16}
    # the recipe's own AdamW, in torch: DeepSpeed's would be compiled at the start, on each machine
    config.setdefault("zero_allow_untested_optimizer", True)
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    return config


def initialize(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ds_config: Mapping[str, Json]
) -> DeepSpeedIsland:
    """`deepspeed.initialize` for a model on its device, under torchrun.

    Raises:
        ConfigError: DeepSpeed is not installed, or there is more than one inner optimizer.
        ModelError: the optimizer trains what is not of this model.
    """
    if len(optimizers) != 1:
        raise ConfigError(
            f"island.engine = deepspeed: expected one inner optimizer, got {len(optimizers)}; ZeRO shards "
            "flat tensors, in which Muon finds no matrices: set shared.inner.name = adamw"
        )
    # here, since DeepSpeed fails on it without a word of what is wrong
    check_groups([p for p in model.parameters() if p.requires_grad], optimizers, BUILD_OPTIMIZER)
    if next(model.parameters()).device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"island.engine = deepspeed: DeepSpeed is not installed here ({error}); "
            "pip install 'lowcomm[deepspeed]', after torch"
        ) from error
    if deepspeed.get_accelerator().device_name() == "cpu":
        # At its first start on a machine DeepSpeed compiles collectives of its own for CPUs, in a minute or
        # more. If it is killed meanwhile, all later starts wait for its lock for ever. gloo's do as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if dist.get_world_size() == 1:
        os.environ.setdefault("LOCAL_RANK", "0")  # which torchrun would have set, and DeepSpeed insists on
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizers[0], config=dict(ds_config))
    return DeepSpeedIsland(engine)


class DeepSpeedIsland(RanksIsland):
    """Ranks of one DeepSpeed engine; the first one leads. An `Island`.

    Args:
        engine: what `deepspeed.initialize` gave, with an optimizer, ZeRO stage 1, 2 or 3.

    Raises:
        ModelError: nothing is trainable, or a trainable parameter is in no parameter group.
        ConfigError: the engine has no ZeRO optimizer.
    """

    _watched = ("dtype",)  # ZeRO-3 takes their numbers away between uses

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        stage = engine.zero_optimization_stage()
        if stage not in (1, 2, 3):
            raise ConfigError(
                f"ds_config zero_optimization.stage: expected 1, 2 or 3, got {stage}; use island.engine = "
                "ddp for ranks that hold everything"
            )
        super().__init__(engine, [engine.basic_optimizer])
        self._stage = stage
        self._layout = tuple(
            TensorSpec(spec.name, tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for spec, parameter in zip(self._layout, self._parameters, strict=True)
        )
        for spec, parameter in zip(self._layout, self._parameters, strict=True):
            if not hasattr(parameter, "_z3_optimizer") and not hasattr(parameter, "_hp_mapping"):
                raise ModelError(
                    f"{spec.name}: expected every trainable parameter in a group of the optimizer, this one "
                    "is in none; add it, or freeze it (requires_grad_(False))"
                )

    @property
    def device(self) -> torch.device:
        return torch.device(self._engine.device)

    @property
    def bare_model(self) -> nn.Module:
        module: nn.Module = self._engine.module
        return module

    @property
    def casts(self) -> bool:
        """DeepSpeed keeps the weights in the low precision and the masters in fp32."""
        return bool(self._engine.bfloat16_enabled() or self._engine.fp16_enabled())

    def no_sync(self) -> AbstractContextManager[None]:
        """Not the boundary of an accumulation; stages 2 and 3 reduce all the same."""
        return self._accumulating()

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def backward(self, loss: Tensor) -> None:
        """The engine's own; the loss is divided by the number of micro-steps already."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, clip_norm: float) -> Tensor:
        """The engine's step, which clips to its own `gradient_clipping`, and the norm as it tells it.

        Raises:
            ConfigError: that is another norm than `clip_norm`.
        """
        if self._engine.gradient_clipping() != clip_norm:
            raise ConfigError(
                f"ds_config gradient_clipping: expected {clip_norm}, got {self._engine.gradient_clipping()}"
            )
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(math.nan if norm is None else norm, dtype=torch.float32, device=self.device)

    def is_finite(self) -> bool:
        """Over this rank's shards of the masters."""
        return all(bool(master.isfinite().all()) for master in self._masters())

    def state_dict(self, *, frozen: bool = True) -> dict[str, Any]:
        """The masters whole, buffers, what is `frozen`, each rank's optimizer state. Collective."""
        flat = self.read(range(len(self.layout)))
        base = self.optimizers[0]
        mine = {"shards": [dict(base.state.get(master, {})) for master in self._masters()]}
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in base.param_groups
        ]
        return {
            "masters": {spec.name: part.clone() for part, spec in self._named(flat)} if self.is_lead else {},
            "others": self._read_others(frozen),
            "ranks": self.gather(mine),
            "groups": groups,
            "stage": self._stage,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave, on as many ranks at the same ZeRO stage.

        Raises:
            CheckpointError: it is of another model, engine, stage or number of ranks; nothing is changed.
        """
        if "masters" not in state:
            raise CheckpointError(
                "expected a checkpoint of island.engine = deepspeed, this one is of another engine; train on "
                "with that, or leave the checkpoint aside and join the swarm"
            )
        found = {name: tuple(tensor.shape) for name, tensor in state["masters"].items()}
        for spec in self.layout:
            if found.get(spec.name) != spec.shape:
                raise CheckpointError(
                    f"the checkpoint is of another model: expected {spec.name} {spec.shape}, it has it "
                    f"{found.get(spec.name, 'not at all')}"
                )
        if (len(state["ranks"]), state["stage"]) != (self.world_size, self._stage):
            raise CheckpointError(
                f"expected a checkpoint of {self.world_size} ranks at ZeRO stage {self._stage}, it is of "
                f"{len(state['ranks'])} at stage {state['stage']}; use as many, or join the swarm without it"
            )
        whole = torch.cat([state["masters"][spec.name].flatten() for spec in self.layout])
        self.write(range(len(self.layout)), whole if self.is_lead else None)
        with torch.no_grad():
            left_out = frozen_names(self.bare_model) - state["others"].keys()
            for name, tensor in self._others(frozen=not left_out):
                with self._gathered(tensor, writes=True):
                    tensor.copy_(state["others"][name])
        base = self.optimizers[0]
        for master, saved in zip(self._masters(), state["ranks"][self.rank]["shards"], strict=True):
            base.state[master] = {
                key: value.to(master.device if value.ndim else value.device, copy=True)
                if isinstance(value, Tensor)
                else value
                for key, value in saved.items()
            }
        for group, saved_group in zip(base.param_groups, state["groups"], strict=True):
            group.update(saved_group)

    def _own_optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """The groups hold flat masters here; the constructor looks for each parameter's part of them."""
        return ()

    def _whole(self, index: int) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        whole: Tensor = safe_get_full_fp32_param(self._parameters[index])
        return whole.detach().view(self._layout[index].shape)

    def _overwrite(self, index: int, value: Tensor) -> None:
        from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        parameter: Any = self._parameters[index]
        if self._stage < 3:
            safe_set_full_fp32_param(parameter, value.to(parameter.device))
            parameter.data.copy_(value)
            return
        # ZeRO-3's setter of whole tensors refuses those that the ranks don't divide: pad, and cut here
        shard = parameter.ds_tensor
        size = shard.ds_numel
        padded = value.new_zeros(size * self.world_size)
        padded[: value.numel()].copy_(value.flatten())
        mine = padded[size * self.rank : size * (self.rank + 1)]
        safe_set_local_fp32_param(parameter, mine)
        shard.data.copy_(mine)
        if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # small ones are kept whole on every rank
            parameter.data.copy_(value)

    def _increase(self, index: int, value: Tensor) -> None:
        master = self._whole(index)
        self._overwrite(index, master + value.to(master.device))

    def _masters(self) -> list[Tensor]:
        """This rank's flat fp32 shards, one for each (sub)group of parameters."""
        zero = self._engine.optimizer
        names = (
            "fp32_partitioned_groups_flat",
            "single_partition_of_fp32_groups",
            "fp32_groups_flat_partition",
        )
        return list(next(getattr(zero, name) for name in names if hasattr(zero, name)))

    def _others(self, frozen: bool) -> list[tuple[str, Tensor]]:
        """Buffers and frozen parameters; the latter are sharded by ZeRO-3, without a master."""
        module = self.bare_model
        others = [(name, p) for name, p in module.named_parameters() if frozen and not p.requires_grad]
        return [(bare_name(name), tensor) for name, tensor in (*module.named_buffers(), *others)]

    def _read_others(self, frozen: bool) -> dict[str, Tensor]:
        values = {}
        for name, tensor in self._others(frozen):
            with self._gathered(tensor):
                values[name] = tensor.detach().cpu().clone()
        return values

    def _gathered(self, tensor: Tensor, *, writes: bool = False) -> AbstractContextManager[None]:
        """Inside it a frozen parameter is whole; the lead's is what all shard again after a writing."""
        if not hasattr(tensor, "ds_id"):
            return nullcontext()
        import deepspeed

        whole: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
            [tensor], modifier_rank=0 if writes else None
        )
        return whole

    @contextmanager
    def _whole_frozen(self, parameter: Tensor) -> Iterator[Tensor]:
        with self._gathered(parameter):
            yield parameter

    def _named(self, flat: Tensor) -> Iterator[tuple[Tensor, TensorSpec]]:
        for part, index in self._parts(flat, range(len(self.layout))):
            yield part, self.layout[index]


_ABSENT = object()


def _look_up(config: Mapping[str, Json], path: str) -> object:
    found: object = config
    for key in path.split("."):
        if not isinstance(found, dict) or key not in found:
            return _ABSENT
        found = found[key]
    return found


def _read(path: Path) -> dict[str, Json]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"island.deepspeed_config: expected a JSON file, {path}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"island.deepspeed_config: expected a JSON object in {path}, got {config!r:.60}")
    return config
