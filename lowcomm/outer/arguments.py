"""The arguments of `OuterLoop`: what people write is taken, anything else is named before it does harm."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch

from lowcomm import codecs
from lowcomm.algorithms import aggregation as rules
from lowcomm.algorithms import outer_optimizers
from lowcomm.algorithms.aggregation import Aggregation
from lowcomm.algorithms.aggregation.mean import Mean
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.algorithms.schedule import Schedule
from lowcomm.arguments import flag, number, path, show, whole
from lowcomm.clock import Clock, SystemClock
from lowcomm.codecs.base import Codec
from lowcomm.errors import ArgumentError, ConfigError, UsageError
from lowcomm.exchanges.base import Exchange, lacks
from lowcomm.islands.base import Island
from lowcomm.names import NAME_RULE, host_name, is_name
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.spans import Spans, joined
from lowcomm.types import Json, SharedSettings

_taken: weakref.WeakSet[Exchange] = weakref.WeakSet()
"""Exchanges that an outer loop has: none works for two, or a second time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What `OuterLoop` was given, checked and as it is used; see there."""

    island: Island
    exchange: Exchange | None
    schedule: Schedule
    codec: Codec
    outer_optimizer: OuterOptimizer
    aggregation: Aggregation
    round_policy: RoundPolicy
    shared: SharedSettings
    data_digest: str
    expected_peers: int
    gather_timeout_s: float
    heartbeat_s: float
    lease_s: float
    chunk_bytes: int
    shard: int
    num_shards: int
    unit_samples: int
    folder: Path | None
    keep_updates: int
    snapshot_mbit_s: float
    on_address: Callable[[str], None] | None
    name: str
    clock: Clock
    found: bool
    metrics: bool
    wandb: WandbMode

    @property
    def settings(self) -> dict[str, Json]:
        """What the loop itself needs to be equal everywhere, as dotted keys."""
        schedule, codec = self.schedule, self.codec
        return {
            "shared.schedule.inner_steps": schedule.inner_steps,
            **({"data.unit_samples": self.unit_samples} if self.unit_samples else {}),
            "shared.schedule.num_fragments": schedule.num_fragments,
            "shared.schedule.fragmenting": schedule.fragmenting,
            "shared.schedule.mode": schedule.mode,
            "shared.schedule.round_s": schedule.round_s,
            "shared.schedule.round_tokens": schedule.round_tokens,
            "shared.codec.name": codec.name,
            "shared.codec.error_feedback": codec.error_feedback,
            "shared.codec.error_feedback_decay": codec.decay,
            **{f"shared.aggregation.{key}": value for key, value in self.aggregation.settings.items()},
            **{f"shared.outer.{key}": value for key, value in self.outer_optimizer.settings.items()},
        }

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Check and convert all of them; each is needed.

        Raises:
            ArgumentError: something is of another type than expected.
            ConfigError: a value is out of range, or two of them don't go together.
            UsageError: the exchange belongs to another loop.
        """
        island = _island(given["island"])
        schedule, policy = _schedule(given["schedule"]), _policy(given["round_policy"])
        codec, optimizer = _codec(given["codec"]), _outer_optimizer(given["outer_optimizer"])
        rule = _aggregation(given["aggregation"])
        _require_company(rule, codec, policy)
        shards = whole("OuterLoop: num_shards", given["num_shards"], least=0, most=MAX_SHARDS)
        heartbeat_s = number("OuterLoop: heartbeat_s", given["heartbeat_s"], above=0)
        return cls(
            island=island,
            schedule=schedule,
            codec=codec,
            outer_optimizer=optimizer,
            aggregation=rule,
            round_policy=policy,
            shared=_shared(given["shared"]),
            data_digest=_digest(given["data_digest"]),
            expected_peers=whole("OuterLoop: expected_peers", given["expected_peers"], least=1, advice=ALONE),
            gather_timeout_s=number("OuterLoop: gather_timeout_s", given["gather_timeout_s"], least=0),
            heartbeat_s=heartbeat_s,
            lease_s=_lease(given["lease_s"], heartbeat_s),
            chunk_bytes=whole("OuterLoop: chunk_bytes", given["chunk_bytes"], least=4, most=4 << 20),
            shard=whole("OuterLoop: shard", given["shard"], least=-1, most=shards - 1 if shards else None),
            num_shards=shards,
            unit_samples=_unit(given["unit_samples"], given["data_digest"]),
            folder=path("OuterLoop: folder", given["folder"]),
            keep_updates=whole("OuterLoop: keep_updates", given["keep_updates"], least=0),
            snapshot_mbit_s=number("OuterLoop: snapshot_mbit_s", given["snapshot_mbit_s"], least=0),
            on_address=listener("OuterLoop", given["on_address"]),
            name=_name(given["name"]),
            clock=_clock(given["clock"]),
            found=flag("OuterLoop: found", given["found"]),
            metrics=flag("OuterLoop: metrics", given["metrics"]),
            wandb=_wandb(given["wandb"], given["folder"]),
            exchange=_exchange(given["exchange"], island),  # last, as it is taken from now on
        )


SLOTS = "OuterLoop: outer_optimizer: expected init(anchor) to give fp32 tensors of the anchor's shape by name"
ALONE = "this island counts, so 1 waits for nobody"
WandbMode = Literal["off", "auto", "online", "offline"]
WANDB_MODES = ("off", "auto", "online", "offline")
MAX_UNIT = 1 << 32
MAX_SHARDS = 1_000_000
"""As in recipes; an island that picks one looks at all of them."""


def runs_of(given: object) -> Spans:
    """Runs of samples that `OuterLoop.step` was given, as a set.

    Raises:
        ArgumentError, ConfigError: they are no pairs of whole numbers.
    """
    where, found = "outer.step: samples", []
    for run in given if isinstance(given, Iterable) else (given,):
        if not isinstance(run, tuple | list) or len(run) != 2:
            raise ArgumentError(
                f"{where}: expected pairs (first, stop), as outer.lease gives, got {show(run)}"
            )
        first = whole(where, run[0], least=0)
        found.append((first, whole(where, run[1], least=first + 1)))
    return joined(found)


def _unit(given: object, data_digest: object) -> int:
    unit = whole("OuterLoop: unit_samples", given, least=0, most=MAX_UNIT)
    if unit and not data_digest:
        raise ConfigError(
            "OuterLoop: unit_samples: expected data_digest with it, the hash of the data whose samples are "
            "leased, got none"
        )
    return unit


def _has(given: object, *names: str) -> bool:
    return not isinstance(given, type) and all(hasattr(given, name) for name in names)


def _lease(given: object, heartbeat_s: float) -> float:
    lease_s = number("OuterLoop: lease_s", given, above=0)
    if lease_s < 2 * heartbeat_s:
        raise ConfigError(
            f"OuterLoop: lease_s: expected at least twice heartbeat_s = {heartbeat_s:g}, got {lease_s:g}; "
            "one late sign of life must not drop a peer"
        )
    return lease_s


def listener(call: str, given: object) -> Callable[[str], None] | None:
    """What is called with the address, of the constructor or another call.

    Raises:
        ArgumentError: it is no function.
    """
    if given is not None and not callable(given):
        raise ArgumentError(
            f"{call}: on_address: expected a function of a string, e.g. print, or None, got {show(given)}"
        )
    return given


def steps_saved(given: object) -> tuple[int, ...]:
    """The inner steps of the checkpoints that an island has.

    Raises:
        ArgumentError: they are no whole numbers.
        ConfigError: one is negative.
    """
    name = "outer.connect: checkpoints"
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise ArgumentError(f"{name}: expected inner steps, e.g. [100, 200], got {show(given)}")
    return tuple(whole(name, step, least=0) for step in given)


def _wandb(given: object, folder: object) -> WandbMode:
    if not isinstance(given, str) or given not in WANDB_MODES:
        raise ArgumentError(f"OuterLoop: wandb: expected one of {', '.join(WANDB_MODES)}, got {show(given)}")
    if given != "off" and folder is None:
        raise ConfigError(
            f"OuterLoop: wandb: expected off without a folder for its files, got {given}; pass folder="
        )
    return given  # type: ignore[return-value]


def _clock(given: object) -> Clock:
    if given is not None and not _has(given, "monotonic_s", "wall_s"):
        raise ArgumentError(f"OuterLoop: clock: expected a Clock, or None, got {show(given)}")
    return given or SystemClock()  # type: ignore[return-value]


def _name(given: object) -> str:
    expected = f"OuterLoop: name: expected {NAME_RULE}, or nothing for the host's name, got"
    if not isinstance(given, str):
        raise ArgumentError(f"{expected} {show(given)}")
    if given and not is_name(given):
        raise ConfigError(f"{expected} {given!r:.80}")
    return given or host_name()


def _island(given: object) -> Island:
    if not _has(given, "is_lead", "layout", "read", "open_vectors"):
        raise ArgumentError(
            f"OuterLoop: island: expected what wrap_island(model, optimizer) gives, got {show(given)}"
        )
    return given  # type: ignore[return-value]


def _exchange(given: object, island: Island) -> Exchange | None:
    expected = "expected what exchanges.swarm(run_id=..., initial_peers=[...]) gives"
    if given is not None and (missing := lacks(given)):
        which = f", which has no `{missing[0]}`" if _has(given, "send") else _call(given)
        raise ArgumentError(f"OuterLoop: exchange: {expected}, got {show(given)}{which}")
    if given is None and island.is_lead:
        raise ConfigError(f"OuterLoop: exchange: {expected} on the island's lead rank, got None")
    if given is not None and not island.is_lead:
        raise ConfigError(
            f"OuterLoop: exchange: expected None on rank {island.rank}, which does not lead the island, got "
            f"{show(given)}; write: exchange if island.is_lead else None"
        )
    exchange: Exchange | None = given  # type: ignore[assignment]
    if exchange is not None:
        if exchange in _taken:
            raise UsageError(
                "OuterLoop: exchange: expected one of its own, got one that another OuterLoop has or had; "
                "make a new exchange for each loop"
            )
        _taken.add(exchange)
    return exchange


def _schedule(given: object) -> Schedule:
    if not isinstance(given, Schedule):
        steps = given if isinstance(given, int) and not isinstance(given, bool) else 100
        raise ArgumentError(
            f"OuterLoop: schedule: expected a Schedule, e.g. Schedule(inner_steps={steps}), got {show(given)}"
        )
    return given


def _policy(given: object) -> RoundPolicy:
    if given is not None and not isinstance(given, RoundPolicy):
        raise ArgumentError(
            "OuterLoop: round_policy: expected a RoundPolicy, e.g. RoundPolicy(min_participants=2), or None, "
            f"got {show(given)}"
        )
    return given or RoundPolicy()


def _codec(given: object) -> Codec:
    if isinstance(given, str):
        return codecs.by_name(given)
    if not _has(given, "name", "topology", "block_elements", "error_feedback", "encode", "decode_add"):
        raise ArgumentError(
            f"OuterLoop: codec: expected one of {', '.join(codecs.NAMES)} as a string, or what codecs.int8() "
            f"and its like give, got {show(given)}{_call(given)}"
        )
    return given  # type: ignore[return-value]


def _outer_optimizer(given: object) -> OuterOptimizer:
    if isinstance(given, str):
        return outer_optimizers.by_name(given)
    ours = isinstance(getattr(given, "settings", None), Mapping) and not isinstance(given, type)
    if ours and _steps_anchors(getattr(given, "step", None)) and callable(getattr(given, "init", None)):
        _check_slots(given)
        return given  # type: ignore[return-value]
    why = _call(given)
    if hasattr(given, "param_groups"):
        why = "; torch's optimizers step their own parameters, nesterov(lr, momentum) is SGD with momentum"
    raise ArgumentError(
        f"OuterLoop: outer_optimizer: expected one of {', '.join(outer_optimizers.METHODS.names)} as a "
        "string, nesterov(), or an object with settings, init(anchor) and "
        f"step(anchor, slots, mean, new_anchor, new_slots, outer_step), got {show(given)}{why}"
    )


def _check_slots(given: Any) -> None:
    anchor = torch.zeros(3, dtype=torch.float32, device="cpu")
    slots = given.init(anchor)
    if not isinstance(slots, Mapping):
        raise ArgumentError(f"{SLOTS}, got {show(slots)}")
    for name, slot in slots.items():
        if not isinstance(name, str) or not isinstance(slot, torch.Tensor):
            raise ArgumentError(f"{SLOTS}, got {show(name)}: {show(slot)}")
        if slot.dtype != torch.float32 or slot.shape != anchor.shape or slot.device != anchor.device:
            kind = f"{slot.dtype}, shape {tuple(slot.shape)}, on {slot.device}"
            raise ConfigError(f"{SLOTS}, got {name!r} of {kind}, for an anchor of shape (3,) on the cpu")
        if slot.data_ptr() == anchor.data_ptr():
            raise ConfigError(f"{SLOTS}, got {name!r} that is the anchor itself; return anchor.clone()")


def _steps_anchors(step: Any) -> bool:
    """Whether a method takes what `OuterOptimizer.step` does."""
    try:
        inspect.signature(step).bind(*range(6))
    except (TypeError, ValueError):
        return False
    return True


def _aggregation(given: object) -> Aggregation:
    if given is None:
        return Mean()
    if isinstance(given, str):
        return rules.by_name(given)
    if not _has(given, "settings", "combine", "min_participants"):
        raise ArgumentError(
            f"OuterLoop: aggregation: expected one of {', '.join(rules.NAMES)} as a string, an object of "
            f"lowcomm.algorithms.aggregation, or None, got {show(given)}"
        )
    return given  # type: ignore[return-value]


def _require_company(rule: Aggregation, codec: Codec, policy: RoundPolicy) -> None:
    name = rule.settings["name"]
    if rule.min_participants > max(1, policy.min_participants):
        raise ConfigError(
            f"shared.aggregation: {name} needs {rule.min_participants} participants to keep what it "
            f"promises; raise shared.round.min_participants, now {policy.min_participants}, to that"
        )
    if name != "mean" and codec.topology != "reduce_scatter":
        raise ConfigError(
            f"shared.aggregation: {name} needs a codec whose chunks are reduced by one peer, and "
            f"{codec.name} has none; use mean with it, or a dense codec"
        )


def _digest(given: object) -> str:
    if not isinstance(given, str):
        raise ArgumentError(
            f"OuterLoop: data_digest: expected a hash of the data as a string, or '', got {show(given)}"
        )
    return given


def _shared(given: object) -> dict[str, Json]:
    if given is None:
        return {}
    expected = "OuterLoop: shared: expected names and plain values, e.g. {'inner.lr': 1e-3}"
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{expected}, got {show(given)}")
    for key, value in given.items():
        if not isinstance(key, str):
            raise ArgumentError(f"{expected}, got the name {show(key)}")
        if not _is_plain(value):
            raise ArgumentError(
                f"{expected}, got {key} = {show(value)}; write float(...), int(...) or str(...)"
            )
    return dict(given)


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)


def _call(given: object) -> str:
    """What to do about a function in place of what it makes."""
    name = getattr(given, "__name__", "")
    return f"; call it: {name}(...)" if callable(given) and name else ""
