"""What `OuterLoop` costs in the inner steps between rounds.

Blocks of a bare training loop, with no `OuterLoop` in the process, alternate with blocks of the same
loop around one, whose network thread, heartbeats and counting are all there; H is so large that no
round is due. Pair by pair the two are compared, and every other pair begins with the loop, so that what
else the machine does, and its drift, meets both sides alike; the median of the pairs has an interval. A
machine's speed drifts between blocks by more than the cost, so within one loop single steps are compared as
well: each with the call against its neighbour without, which leaves out the loop's threads (both have them).
Two figures are counted rather than compared, and so are steady on a busy machine: the time in the call
itself, and the processor time of the threads that the loop has started.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import OverheadBench
from lowcomm.clock import Clock, SystemClock, process_cpu_s, threads_cpu_s
from lowcomm.config.schema import Config, IslandConfig
from lowcomm.data.shards import VOCAB_SIZE
from lowcomm.exchanges.base import Exchange
from lowcomm.islands.base import Island
from lowcomm.islands.group import process_group
from lowcomm.outer.loop import OuterLoop
from lowcomm.training.build import build_island, build_model, build_task
from lowcomm.types import Json

SETTLING = 2
"""Steps at the beginning of a block that are not timed: a loop that has just started has more to do."""
NEVER = 1_000_000_000
"""Inner steps to a round that never comes."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """The figures.

    Attributes:
        engine, ranks: of the island; the figures are those of its lead rank.
        step_s: median bare inner step.
        step_with_s: median inner step with `OuterLoop.step` after it.
        difference_percent: median over the pairs of blocks, of what the second is longer.
        difference_quartiles_percent: the middle half of the pairs lies between these.
        difference_interval_percent: 95 % confidence interval of the median.
        pairs: of neighbouring steps within one loop, one of them without the call.
        neighbours_percent, neighbours_interval_percent: median over these pairs, of what the step with the
            call is longer, and its 95 % confidence interval.
        cpu_s: processor time of a bare inner step, all threads of the lead's process; median of blocks.
        cpu_difference_percent, cpu_interval_percent: the same comparison of processor time.
        call_s: median time of `OuterLoop.step` itself.
        call_percent: of `step_s`.
        threads_s: processor time that the loop's own threads take during an inner step, mean.
        threads_percent: of `cpu_s`.
    """

    engine: str
    ranks: int
    exchange: str
    parameters: int
    threads: int
    blocks: int
    steps: int
    pairs: int
    step_s: float
    step_with_s: float
    difference_percent: float
    difference_quartiles_percent: tuple[float, float]
    difference_interval_percent: tuple[float, float]
    neighbours_percent: float
    neighbours_interval_percent: tuple[float, float]
    cpu_s: float
    cpu_difference_percent: float
    cpu_interval_percent: tuple[float, float]
    call_s: float
    call_percent: float
    threads_s: float
    threads_percent: float

    def rows(self) -> list[tuple[str, str]]:
        """For the table."""
        low, high = self.difference_interval_percent
        near_low, near_high = self.neighbours_interval_percent
        cpu_low, cpu_high = self.cpu_interval_percent
        return [
            ("engine, ranks", f"{self.engine}, {self.ranks}"),
            ("parameters", f"{self.parameters:,}"),
            ("bare inner step, median", f"{1e3 * self.step_s:.2f} ms"),
            ("with OuterLoop.step, median", f"{1e3 * self.step_with_s:.2f} ms"),
            (
                f"difference, median of {self.blocks} pairs of blocks",
                f"{self.difference_percent:.2f} % (95 % interval {low:.2f} to {high:.2f})",
            ),
            (
                f"difference of neighbouring steps, median of {self.pairs} pairs",
                f"{self.neighbours_percent:.2f} % (95 % interval {near_low:.2f} to {near_high:.2f})",
            ),
            (
                f"the same in processor time, of {1e3 * self.cpu_s:.2f} ms",
                f"{self.cpu_difference_percent:.2f} % (95 % interval {cpu_low:.2f} to {cpu_high:.2f})",
            ),
            (
                "OuterLoop.step itself, median",
                f"{1e6 * self.call_s:.0f} us = {self.call_percent:.3f} % of a step",
            ),
            (
                "processor time of OuterLoop's own threads in a step",
                f"{1e6 * self.threads_s:.0f} us = {self.threads_percent:.3f} %",
            ),
        ]

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in vars(self).items()}


def run(bench: OverheadBench, tell: Tell) -> Outcome:
    """For `lowcomm bench overhead`, with an inner optimizer that every engine has."""
    config = Config(island=IslandConfig(engine=bench.engine))
    inner = replace(config.shared.inner, name="adamw", lr=config.shared.inner.adamw_lr)
    config = replace(config, shared=replace(config.shared, inner=inner))
    with contextlib.ExitStack() as stack:
        if bench.engine != "plain" and "RANK" in os.environ:  # else the island says that it needs torchrun
            stack.enter_context(process_group(torch.device("cpu")))
        result = measure_overhead(config, bench)
    return Outcome(log={"overhead": result.to_dict()}, headings=("", ""), rows=result.rows())


def measure_overhead(config: Config, bench: OverheadBench, clock: Clock | None = None) -> Overhead:
    """Measure with the model, inner optimizer, engine and batch of `config`, on one thread.

    Under torchrun every rank calls it; each times itself, and the lead is the one with the exchange.
    """
    clock, exchange, steps = clock or SystemClock(), bench.exchange, bench.steps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = Step(config, clock)
        for _ in range(steps):
            step(None)
        bare, around, calls, differences = [], [], [], []
        bare_cpu_s, cpu_differences, threads_s = [], [], []
        for block in range(bench.blocks):
            pair = {}
            for with_loop in (False, True) if block % 2 == 0 else (True, False):
                pair[with_loop] = _block(step, exchange if with_loop else None, steps)
            without, timed = pair[False], pair[True]
            calls += timed.calls_s
            bare += without.steps_s
            around += timed.steps_s
            threads_s.append(timed.threads_s)
            bare_cpu_s.append(without.cpu_s)
            differences.append(
                100 * (statistics.median(timed.steps_s) / statistics.median(without.steps_s) - 1)
            )
            cpu_differences.append(100 * (timed.cpu_s / without.cpu_s - 1))
        neighbours = _neighbours(step, exchange, bench.pairs)
    finally:
        torch.set_num_threads(threads)
    step_s, call_s = statistics.median(bare), statistics.median(calls)
    quartiles = statistics.quantiles(differences, n=4) if bench.blocks > 1 else [differences[0]] * 3
    return Overhead(
        engine=config.island.engine,
        ranks=step.island.world_size,
        exchange=exchange,
        parameters=sum(spec.elements for spec in step.island.layout),
        threads=1,
        blocks=bench.blocks,
        steps=steps,
        pairs=bench.pairs,
        step_s=step_s,
        step_with_s=statistics.median(around),
        difference_percent=statistics.median(differences),
        difference_quartiles_percent=(quartiles[0], quartiles[2]),
        difference_interval_percent=median_interval(differences),
        neighbours_percent=statistics.median(neighbours),
        neighbours_interval_percent=median_interval(neighbours),
        cpu_s=statistics.median(bare_cpu_s),
        cpu_difference_percent=statistics.median(cpu_differences),
        cpu_interval_percent=median_interval(cpu_differences),
        call_s=call_s,
        call_percent=100 * call_s / step_s,
        threads_s=statistics.mean(threads_s),
        threads_percent=100 * statistics.mean(threads_s) / statistics.median(bare_cpu_s),
    )


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, whatever the distribution: two order statistics.

    The rank of the median among n draws is binomial(n, 1/2). Below six values it is their whole range,
    which then holds the median with less confidence.
    """
    ordered, count = sorted(values), len(values)
    below, rank = 0.0, 0
    while (below := below + math.comb(count, rank) / 2**count) <= 0.025:
        rank += 1
    first = max(0, rank - 1)
    return ordered[first], ordered[-1 - first]


@dataclass(frozen=True, slots=True)
class _Block:
    """Seconds of each step and of each call in it; processor seconds of a step, all and the loop's own."""

    steps_s: list[float]
    calls_s: list[float]
    cpu_s: float
    threads_s: float


def _block(step: Step, exchange: str | None, steps: int) -> _Block:
    """One block, around an `OuterLoop` over `exchange`, or bare where that is None."""
    others = threads_cpu_s().keys()
    with contextlib.ExitStack() as stack:
        outer = stack.enter_context(outer_loop(step.island, exchange)) if exchange else None
        for _ in range(SETTLING):
            step(outer)
        idle, began_s = threads_cpu_s(), process_cpu_s()
        timed = [step(outer) for _ in range(steps)]
        cpu_s = (process_cpu_s() - began_s) / steps
        own = {thread: used for thread, used in threads_cpu_s().items() if thread not in others}
        threads_s = sum(used - idle.get(thread, 0.0) for thread, used in own.items()) / steps
    return _Block([total for total, _ in timed], [call for _, call in timed], cpu_s, threads_s)


def _neighbours(step: Step, exchange: str, pairs: int) -> list[float]:
    """Percent by which a step with the call is longer than the one before or after it without."""
    differences = []
    with outer_loop(step.island, exchange) as outer:
        for _ in range(SETTLING):
            step(outer)
        for pair in range(pairs):
            took_s = {}
            for called in (False, True) if pair % 2 == 0 else (True, False):
                took_s[called], _ = step(outer if called else None)
            differences.append(100 * (took_s[True] / took_s[False] - 1))
    return differences


class Step:
    """One inner step on a fixed batch: forward, backward, clip, optimizer."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.island: Island = build_island(
            config, build_model(config, build_task(config)), torch.device("cpu")
        )
        shape = (config.train.batch_size, config.shared.model.context + 1)
        ids = torch.randint(
            VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int64, device="cpu"
        )
        self._inputs, self._targets = ids[:, :-1], ids[:, 1:]
        self._clip_norm = config.shared.inner.clip_norm
        self._now_s: Callable[[], float] = clock.monotonic_s

    def __call__(self, outer: OuterLoop | None) -> tuple[float, float]:
        """Seconds of the whole step and of the call in it."""
        began_s = self._now_s()
        self.island.backward(self.island.model(self._inputs, self._targets))
        self.island.update(self._clip_norm)
        called_s = self._now_s()
        if outer is not None:
            outer.step(tokens=self._inputs.numel())
        ended_s = self._now_s()
        return ended_s - began_s, ended_s - called_s


@contextlib.contextmanager
def outer_loop(island: Island, name: str) -> Iterator[OuterLoop]:
    """Around an island that is alone and has no round; over `loopback` or `swarm`."""
    exchange: Exchange | None = None
    if island.is_lead and name == "swarm":
        exchange = exchanges.swarm(run_id="overhead", relay=False)
    elif island.is_lead:
        exchange = exchanges.loopback(exchanges.hub(), run_id="overhead", peer_id="alone", founder=True)
    with OuterLoop(
        island,
        exchange,
        schedule=Schedule(inner_steps=NEVER),
        codec=codecs.int8(),
        outer_optimizer=nesterov(),
    ) as outer:
        yield outer
