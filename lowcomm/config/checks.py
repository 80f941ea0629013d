"""What must hold between settings, beyond the range of each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from lowcomm import tasks
from lowcomm.algorithms import outer_optimizers
from lowcomm.arguments import RUN_ID
from lowcomm.config.schema import Config, ExchangeConfig, OuterConfig
from lowcomm.config.values import fail, is_table, show
from lowcomm.names import NAME_RULE, is_name

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,4})?")
_PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HOST_PORT = re.compile(r"\S+:\d{1,5}")


def check(config: Config, source: str = "") -> None:
    """Check what must hold between the settings of one configuration.

    Args:
        config: as built from any source.
        source: named in the error, e.g. the recipe's path.

    Raises:
        ConfigError: the first rule that is broken, in one line.
    """
    for path, message in _broken(config):
        fail(source, path, message)


def _broken(config: Config) -> Iterator[tuple[str, str]]:
    yield from _texts(config)
    yield from _task(config)
    yield from _model(config)
    yield from _corpus(config)
    yield from _global_batch(config)
    yield from _shares(config)
    yield from _outer(config.shared.outer)
    yield from _aggregation(config)
    yield from _codec(config)
    yield from _operator(config)
    yield from _access(config)
    yield from _micro_batch(config)
    yield from _island(config)
    yield from _exchange(config.exchange)

    schedule = config.shared.schedule
    if schedule.delay != "auto" and schedule.delay >= schedule.inner_steps:
        yield (
            "shared.schedule.delay",
            f"expected less than inner_steps = {schedule.inner_steps}, got {schedule.delay}; "
            "a result has to be used before the fragment is due again",
        )
    if schedule.eager and schedule.delay == 0:
        yield (
            "shared.schedule.eager",
            "expected false with delay = 0, got true; no steps are taken beside a round, so there is nothing "
            "to preview. Set shared.schedule.delay above 0, or to auto",
        )
    given = (schedule.round_s > 0.0) + (schedule.round_tokens > 0)
    if given != (schedule.mode == "timed"):
        expected = "it or round_tokens above 0" if schedule.mode == "timed" else "neither it nor round_tokens"
        yield (
            "shared.schedule.round_s",
            f"expected {expected} with mode = {schedule.mode}, got {schedule.round_s:g} and "
            f"{schedule.round_tokens}",
        )
    if schedule.mode != "fixed" and not config.train.tokens:
        yield (
            "train.tokens",
            f"expected the tokens of the whole run with shared.schedule.mode = {schedule.mode}, got 0; then "
            "islands take unlike numbers of steps, which don't say when the run is over",
        )


def _texts(config: Config) -> Iterator[tuple[str, str]]:
    run_id, device = config.shared.run_id, config.train.device
    if not RUN_ID.fullmatch(run_id):
        yield "shared.run_id", f"expected 1 to 64 characters of A-Z a-z 0-9 . _ -, got {show(run_id)}"
    if not _DEVICE.fullmatch(device):
        yield "train.device", f'expected "auto", "cpu", "cuda" or "cuda:N", got {show(device)}'
    needed = {"out": config.out, "data.source": config.data.source, "data.text_key": config.data.text_key}
    for path, text in needed.items():
        if not text.strip():
            yield path, "expected text that is not empty"


def _task(config: Config) -> Iterator[tuple[str, str]]:
    task = config.shared.task
    own = re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", task.kind)
    if not own and task.kind not in tasks.METHODS.names:
        names = ", ".join(tasks.METHODS.names)
        yield (
            "shared.task.kind",
            f'expected one of {names}, or a function of your own such as "mymodule:make_task", got '
            f"{show(task.kind)}",
        )
    if own and task.model and not is_table(task.model):
        yield "shared.task.model", f"expected a table of what {task.kind} takes, got {show(task.model)}"
    if task.kind == "given" and task.model:
        yield "shared.task.model", "expected nothing with kind = given, whose model a Python program makes"
    if task.kind == "gpt" and task.model:
        yield "shared.task.model", "expected nothing with kind = gpt, whose sizes stand in [shared.model]"
    if task.adapter and task.kind != "peft":
        yield "shared.task.adapter", f"expected nothing with kind = {task.kind}, got {show(task.adapter)}"
    elif task.adapter and not is_table(task.adapter):
        yield "shared.task.adapter", f"expected a table such as {{r = 8}}, got {show(task.adapter)}"
    if task.kind not in ("hf", "peft"):
        for path, value, default in (
            ("shared.task.dtype", task.dtype, "fp32"),
            ("train.attention", config.train.attention, "auto"),
        ):
            if value != default:
                yield path, f"expected {default} with shared.task.kind = {task.kind}, got {show(value)}"
    if task.dtype != "fp32" and config.island.engine == "deepspeed":
        yield (
            "shared.task.dtype",
            "expected fp32 with island.engine = deepspeed, which keeps fp32 masters, got bf16; "
            "train.precision = bf16 lets it compute in bf16",
        )


def _model(config: Config) -> Iterator[tuple[str, str]]:
    model = config.shared.model
    if model.dim % model.heads:
        yield "shared.model.dim", f"expected a multiple of heads = {model.heads}, got {model.dim}"
    elif model.dim // model.heads % 2:
        yield (
            "shared.model.dim",
            f"expected an even head size (rotary positions pair its elements), got dim / heads = "
            f"{model.dim} / {model.heads} = {model.dim // model.heads}",
        )
    if model.heads % model.kv_heads:
        yield "shared.model.kv_heads", f"expected a divisor of heads = {model.heads}, got {model.kv_heads}"


def _corpus(config: Config) -> Iterator[tuple[str, str]]:
    data, kind = config.shared.data, config.shared.task.kind
    if data.manifest and not _DIGEST.fullmatch(data.manifest):
        yield (
            "shared.data.manifest",
            f"expected 64 digits of 0-9 a-f, as `lowcomm data build` prints them, got {show(data.manifest)}",
        )
    if data.packing == "apart" and not data.manifest:
        yield "shared.data.packing", "expected across without shared.data.manifest, got apart"
    if data.unit_samples and not data.manifest:
        yield "shared.data.unit_samples", f"expected 0 without shared.data.manifest, got {data.unit_samples}"
    if data.manifest and kind == "given":
        yield "shared.data.manifest", "expected nothing with kind = given, whose data a Python program has"


def _global_batch(config: Config) -> Iterator[tuple[str, str]]:
    asked, train = config.shared.data.global_batch_tokens, config.train
    if asked and train.grad_accumulation > 1:
        yield (
            "train.grad_accumulation",
            f"expected 1 with shared.data.global_batch_tokens = {asked}, which says how many batches are "
            f"accumulated, got {train.grad_accumulation}",
        )
    if asked and config.island.engine == "deepspeed":
        yield (
            "shared.data.global_batch_tokens",
            "expected 0 with island.engine = deepspeed, which accumulates a fixed number of batches, got "
            f"{asked}",
        )


def _shares(config: Config) -> Iterator[tuple[str, str]]:
    shards = config.shared.data.shards
    if config.data.shard >= shards:
        yield (
            "data.shard",
            f"expected -1, or from 0 to below shared.data.shards = {shards}, got {config.data.shard}",
        )
    islands = {
        "exchange.expected_peers": config.exchange.expected_peers,
        "exchange.group_size": config.exchange.group_size,
        "shared.round.min_participants": config.shared.round.min_participants,
    }
    claims = config.shared.data.same and config.data.shard < 0
    for path, number in islands.items():
        if claims and number > shards:
            yield (
                path,
                f"expected at most shared.data.shards = {shards}, got {number}; each island trains on a "
                "shard of its own: raise shared.data.shards, or, if each has its own documents, set "
                "shared.data.same = false",
            )


def _aggregation(config: Config) -> Iterator[tuple[str, str]]:
    rule, least = config.shared.aggregation, config.shared.round.min_participants
    needed = {"trimmed_mean": 2 * rule.faulty + 1, "krum": 2 * rule.faulty + 3}.get(rule.name, 1)
    if least < needed:
        yield (
            "shared.round.min_participants",
            f"expected at least {needed}, since {rule.name} with faulty = {rule.faulty} keeps no promise "
            f"below that, got {least}",
        )


def _codec(config: Config) -> Iterator[tuple[str, str]]:
    if config.shared.codec.name == "topk" and config.shared.aggregation.clip_norm:
        yield (
            "shared.aggregation.clip_norm",
            "expected 0 with codec topk, whose payloads everyone sums as they are, got "
            f"{config.shared.aggregation.clip_norm}",
        )


def _operator(config: Config) -> Iterator[tuple[str, str]]:
    operator, path = config.shared.round.operator, "shared.round.operator"
    if not operator:
        return
    if not _PEER_ID.fullmatch(operator):
        yield path, f"expected a peer id, as `lowcomm recover --make-key` prints it, got {show(operator)}"
    if config.shared.round.partition != "majority":
        yield path, "expected nothing with shared.round.partition = continue, which needs no recovery"
    if config.exchange.kind != "swarm":
        yield path, f"expected nothing with a {config.exchange.kind}, in which nobody can check a signature"


def _access(config: Config) -> Iterator[tuple[str, str]]:
    access = config.shared.access
    if access.mode == "invite" and not access.owner:
        yield (
            "shared.access.owner",
            "expected the owner's peer id, as `lowcomm invite` prints it, got nothing",
        )
    if access.mode == "allowlist" and not config.exchange.allow:
        yield "exchange.allow", "expected the peer ids that are let in, got []"
    if access.mode != "open" and config.exchange.kind != "swarm":
        yield (
            "shared.access.mode",
            f"expected open with a {config.exchange.kind}, which checks nobody, got {access.mode}",
        )


def _micro_batch(config: Config) -> Iterator[tuple[str, str]]:
    train = config.train
    windows = train.batch_size * train.grad_accumulation
    if train.micro_batch != "auto" and train.micro_batch and windows % train.micro_batch:
        yield (
            "train.micro_batch",
            f"expected a divisor of the {windows} windows of an inner step (train.batch_size x "
            f"train.grad_accumulation), got {train.micro_batch}",
        )


def _island(config: Config) -> Iterator[tuple[str, str]]:
    island = config.island
    if island.name and not is_name(island.name):
        yield "island.name", f"expected {NAME_RULE}, or nothing for the host's name, got {show(island.name)}"
    if island.replicas > 1 and island.engine != "fsdp2":
        yield "island.replicas", f"expected island.engine = fsdp2 with it, got {island.engine}"
    if island.offload != "none" and island.engine not in ("fsdp2", "deepspeed"):
        yield "island.offload", f"expected island.engine = fsdp2 or deepspeed with it, got {island.engine}"
    if island.engine == "fsdp2" and island.offload == "optimizer":
        yield "island.offload", "expected none or all with island.engine = fsdp2, got optimizer"
    if island.deepspeed_config and island.engine != "deepspeed":
        yield "island.deepspeed_config", f"expected island.engine = deepspeed with it, got {island.engine}"
    if island.engine == "deepspeed" and config.shared.inner.name == "muon":
        yield (
            "shared.inner.name",
            "expected adamw with island.engine = deepspeed, got muon; ZeRO shards flat tensors, in which "
            "Muon finds no matrices",
        )


def _outer(outer: OuterConfig) -> Iterator[tuple[str, str]]:
    methods = outer_optimizers.METHODS
    for field in dataclasses.fields(outer):
        value = getattr(outer, field.name)
        if field.name != "name" and value != "auto" and field.name not in methods.spec(outer.name).parameters:
            yield f"shared.outer.{field.name}", methods.foreign(outer.name, value)


def _exchange(exchange: ExchangeConfig) -> Iterator[tuple[str, str]]:
    if exchange.lease_s < 2 * exchange.heartbeat_s:
        yield (
            "exchange.lease_s",
            f"expected at least twice heartbeat_s = {exchange.heartbeat_s}, got {exchange.lease_s}; "
            "one late sign of life must not drop a peer",
        )
    if exchange.kind == "swarm":
        yield from _swarm(exchange)
    if exchange.kind == "process_group":
        yield from _process_group(exchange)


def _swarm(exchange: ExchangeConfig) -> Iterator[tuple[str, str]]:
    if not exchange.listen:
        yield "exchange.listen", 'expected at least one address, got []; "/ip4/0.0.0.0/tcp/0" takes any port'
    for path, addresses in (("exchange.listen", exchange.listen), ("exchange.announce", exchange.announce)):
        for address in addresses:
            if not address.startswith("/"):
                yield path, f"expected a multiaddr such as /ip4/0.0.0.0/tcp/31337, got {show(address)}"
    for address in exchange.announce:
        if re.search(r"/(tcp|udp)/0(/|$)", address):
            yield "exchange.announce", f"expected the port that others can dial, got {show(address)}"
    for address in exchange.initial_peers:
        if not address.strip():
            yield "exchange.initial_peers", f"expected addresses that are not empty, got {show(address)}"
    if exchange.found and exchange.initial_peers:
        yield (
            "exchange.found",
            "expected no initial_peers (--join) with it, as it founds a run or goes on alone, got "
            f"{len(exchange.initial_peers)}; leave out one of the two",
        )


def _process_group(exchange: ExchangeConfig) -> Iterator[tuple[str, str]]:
    if exchange.group_rank >= exchange.group_size:
        yield (
            "exchange.group_rank",
            f"expected less than group_size = {exchange.group_size}, got {exchange.group_rank}",
        )
    if exchange.group_size > 1 and not _HOST_PORT.fullmatch(exchange.group_address):
        yield (
            "exchange.group_address",
            f"expected host:port of rank 0's store, got {show(exchange.group_address)}",
        )
