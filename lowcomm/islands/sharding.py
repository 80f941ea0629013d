"""Which engine a model was made for, and the ways of spreading one over ranks that no engine here knows.

What is not refused here would be taken for a model that each rank holds whole, and its weights overwritten
with those of another rank's part.
"""

from __future__ import annotations

from torch import nn

from lowcomm.errors import ModelError
from lowcomm.islands.parameters import COMPILED, bare_name

KNOWN = (
    "an island's ranks hold the whole model each (DistributedDataParallel), or what fully_shard (FSDP2, also "
    "with replicas) or deepspeed.initialize (ZeRO) made of it"
)
LIBRARIES = ("torch", "deepspeed", "fairscale")
INSTEAD = {
    # a class anywhere in the model -> what it is, what to do
    "FullyShardedDataParallel": ("sharded by FSDP1", "shard it with torch.distributed.fsdp.fully_shard"),
    "DataParallel": ("wrapped in DataParallel", "run a process for each GPU under torchrun"),
    "PipelineEngine": ("cut into DeepSpeed's pipeline", "use ZeRO"),
    "PipelineModule": ("cut into DeepSpeed's pipeline", "use ZeRO"),
}


def made_for(model: nn.Module) -> str | None:
    """The engine whose wrapper or sharding a model has; None if it has none.

    Raises:
        ModelError: it is spread over ranks in a way that no engine knows; it names the way.
    """
    engine = None
    top = getattr(model, COMPILED, model)
    if "DistributedDataParallel" in _classes(top):
        engine = "ddp"
    elif type(model).__module__.startswith("deepspeed."):
        engine = "deepspeed"
    for name, module in model.named_modules():
        classes = _classes(module)
        for kind in classes & INSTEAD.keys():
            what, instead = INSTEAD[kind]
            _refuse(_place(name, model), what, instead)
        if "DistributedDataParallel" in classes and module is not top:
            what = "a DistributedDataParallel inside a model"
            _refuse(_place(name, model), what, "wrap the whole model in one")
        if "FSDPModule" in classes and engine is None:
            engine = "fsdp2"
    for name, parameter in model.named_parameters():
        where = f"parameter {bare_name(name)}"
        if getattr(parameter, "tensor_model_parallel", False):
            _refuse(where, "tensor-parallel", "use fully_shard or ZeRO in place of tensor parallelism")
        if "DTensor" in _classes(parameter):
            _require_shards(where, parameter, engine)
        elif engine == "fsdp2" and parameter.requires_grad:
            what = "on no shard, so that nothing averages the ranks' gradients for it"
            _refuse(where, what, "call fully_shard on the whole model, last")
    return engine


def _require_shards(where: str, parameter: nn.Parameter, engine: str | None) -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate, Shard

    assert isinstance(parameter, DTensor)
    placements, ranks = parameter.placements, parameter.device_mesh.size()
    kinds = [type(placement) for placement in placements]  # a strided shard is a subclass, and another thing
    if engine != "fsdp2" or set(kinds) - {Replicate, Shard} or kinds.count(Shard) > 1:
        _refuse(
            where,
            f"a DTensor with placements {tuple(map(str, placements))} (tensor parallelism?)",
            "shard it with fully_shard alone",
        )
    if ranks != dist.get_world_size():
        _refuse(
            where,
            f"spread over {ranks} of {dist.get_world_size()} ranks",
            "use a mesh of all ranks, or start an island for each part of them",
        )


def _refuse(where: str, what: str, instead: str) -> None:
    raise ModelError(
        f"{where}: expected a model spread over ranks as an engine knows it, it is {what}; {instead}. Known: "
        f"{KNOWN}"
    )


def _place(name: str, model: nn.Module) -> str:
    bare = bare_name(name)
    return f"module {bare}" if bare else type(model).__name__


def _classes(thing: object) -> set[str]:
    """Of these libraries, the names of all classes that it is an instance of."""
    return {base.__name__ for base in type(thing).__mro__ if base.__module__.split(".")[0] in LIBRARIES}
