"""Small runs whose bits are on record: what a rewrite must not change.

Inner steps are elementwise fp32 on numbers made from integers, and the outer maths is exact, so any CPU
gives these bits. Nothing in a case depends on when a message comes: all islands are in every round, delays
are fixed, and speeds are those of a clock that the case moves.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowcomm import (
    OuterLoop,
    RoundPolicy,
    Schedule,
    codecs,
    exchanges,
    nesterov,
    outer_optimizers,
    wrap_island,
)
from lowcomm.codecs.base import Codec
from lowcomm.exchanges.base import Receiver
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.types import PeerId, RoundReport
from tests.clocks import HandClock

SHAPES = ((61, 37), (4_099,), (13, 7, 11), (3_000,))
WAIT_S = 60.0

Found = dict[str, Any]
"""`rounds`: fragment, outer step and state digest of each; `state`: the digest of the end; `local`: of each
island's own parameters then."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        steps: inner steps of each island, in which all take part in the same rounds.
        step_s: how long a step of each island takes, on its own clock.
    """

    islands: int = 2
    seed: int = 0
    steps: tuple[int, ...] = (16, 16, 16)
    schedule: Schedule = field(default_factory=lambda: Schedule(inner_steps=4))
    codec: Callable[[], Codec] = codecs.fp32
    optimizer: Callable[[], Any] = nesterov
    aggregation: str | None = None
    tokens: tuple[int, ...] = (8, 8, 8)
    step_s: tuple[float, ...] = (100.0, 100.0, 100.0)


STREAMING = Schedule(inner_steps=6, num_fragments=3, delay=2, merge_alpha=0.25)
EAGER = Schedule(inner_steps=6, num_fragments=2, delay=3, eager=True)
CASES = {
    **{
        f"plain, {islands} islands, seed {seed}": Case(islands=islands, seed=seed, codec=codec)
        for islands, codec in ((2, codecs.int8), (3, codecs.int8))
        for seed in range(3)
    },
    "fp32, unequal tokens": Case(islands=3, tokens=(8, 8, 24)),
    "momentum 0.9": Case(optimizer=lambda: nesterov(lr=0.7, momentum=0.9), codec=codecs.bf16),
    "streaming, delay, error feedback": Case(
        schedule=STREAMING, codec=lambda: codecs.int8(error_feedback=True), steps=(24, 24)
    ),
    "int4": Case(codec=lambda: codecs.int4(error_feedback=True)),
    "e3m0": Case(codec=codecs.e3m0),
    "2bit": Case(schedule=STREAMING, codec=codecs.two_bit, steps=(24, 24)),
    "top-k": Case(schedule=Schedule(inner_steps=4, num_fragments=2), codec=codecs.topk),
    "eager": Case(schedule=EAGER, steps=(24, 24)),
    "matched": Case(
        schedule=Schedule(inner_steps=4, mode="matched"),
        codec=codecs.int8,
        steps=(16, 10),
        step_s=(100.0, 200.0),
    ),
    "adam": Case(
        schedule=EAGER,
        codec=lambda: codecs.int8(error_feedback=True),
        optimizer=lambda: outer_optimizers.by_name("adam"),
        steps=(24, 24),
    ),
    "schedule-free": Case(
        schedule=STREAMING, optimizer=lambda: outer_optimizers.by_name("schedule_free"), steps=(24, 24)
    ),
    "sgd": Case(optimizer=lambda: outer_optimizers.by_name("sgd", lr=0.5), codec=codecs.int8),
    "median": Case(islands=3, aggregation="median"),
}


def numbers(shape: tuple[int, ...], *seeds: int) -> Tensor:
    """Multiples of 2**-13 in -0.5..0.5, the same on every machine."""
    size = int(torch.Size(shape).numel())
    mixed = torch.arange(size, dtype=torch.int64)
    for seed in (*seeds, 1):
        mixed = (mixed * 69_069 + 40_503 * (seed + 1)) % 1_000_003
    return ((mixed % 8_192).to(torch.float32) / 8_192 - 0.5).reshape(shape)


def make_model(seed: int) -> nn.Module:
    return nn.ParameterList(
        [nn.Parameter(numbers(shape, 7, seed, index)) for index, shape in enumerate(SHAPES)]
    )


@torch.no_grad()
def inner_step(model: nn.Module, seed: int, island: int, step: int) -> None:
    """Draw the parameters to a point of the island's and the step's."""
    for index, parameter in enumerate(model.parameters()):
        target = numbers(tuple(parameter.shape), seed, island, step, index)
        parameter.sub_((parameter - target).mul_(0.05))


def digest_of(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


class _Exchange(LoopbackExchange):
    """Says when the founder can be joined through, for which the others wait."""

    def __init__(self, hub: LoopbackHub, island: int, founded: threading.Event) -> None:
        super().__init__(hub, "golden", PeerId(f"island-{island}"), founder=island == 0)
        self._founded = founded

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        await super().start(receiver, met)
        self._founded.set()


class _Run:
    """All islands of a case, each in a thread."""

    def __init__(self, case: Case) -> None:
        self._case, self._hub = case, exchanges.hub()
        self._founded, self._abreast = threading.Event(), threading.Barrier(case.islands)

    def island(self, number: int) -> Found:
        """One island from start to end."""
        case, clock, model = self._case, HandClock(), make_model(self._case.seed)
        if number > 0:
            assert self._founded.wait(WAIT_S)
        outer = OuterLoop(
            wrap_island(model, torch.optim.SGD(model.parameters(), lr=1.0)),  # steps are `inner_step`'s
            _Exchange(self._hub, number, self._founded),
            schedule=case.schedule,
            codec=case.codec(),
            outer_optimizer=case.optimizer(),
            aggregation=case.aggregation,
            round_policy=RoundPolicy(min_participants=case.islands, deadline_s=WAIT_S),
            expected_peers=case.islands,
            gather_timeout_s=WAIT_S,
            heartbeat_s=0.5,
            lease_s=WAIT_S,
            chunk_bytes=4 * 4_096,
            clock=clock,
        )
        reports = []
        with outer:
            while outer.inner_step < case.steps[number]:
                if outer.inner_step < case.schedule.inner_steps:
                    self._abreast.wait(WAIT_S)  # `matched` begins its first round when any does
                inner_step(model, case.seed, number, outer.inner_step)
                clock.now_s += case.step_s[number]
                reports += outer.step(tokens=case.tokens[number])
            reports += outer.finish()
            return {
                "rounds": rounds_of(reports),
                "state": outer.digest,
                "local": digest_of(nn.utils.parameters_to_vector(model.parameters()).detach()),
            }


def rounds_of(reports: Sequence[RoundReport]) -> list[str]:
    assert all(report.committed for report in reports), [report.reason for report in reports]
    return [f"{report.fragment} {report.outer_step} {report.digest}" for report in reports]


def run(case: Case) -> Found:
    """What a case ends with."""
    started = _Run(case)
    with ThreadPoolExecutor(case.islands) as pool:
        found = list(pool.map(started.island, range(case.islands), timeout=WAIT_S))
    assert all(island["rounds"] == found[0]["rounds"] for island in found)
    assert {island["state"] for island in found} == {found[0]["state"]}
    return {**found[0], "local": [island["local"] for island in found]}
