"""What `OuterLoop` costs in the inner steps between rounds.

Blocks of a bare training loop, with no `OuterLoop` in the process, alternate with blocks of the same
loop around one, whose network thread, heartbeats and counting are all there; H is so large that no
round is due. Block by block the medians of the step times are compared, so that what else the machine
does meets both sides alike. The call itself is timed, too: on a busy machine that is the steadier figure.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.build import build_island, build_model
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.schema import Config
from lowcomm.data.shards import VOCAB_SIZE
from lowcomm.exchanges.base import Exchange
from lowcomm.islands.base import Island
from lowcomm.outer.loop import OuterLoop
from lowcomm.types import Json

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
        call_s: median time of `OuterLoop.step` itself.
        call_percent: of `step_s`.
    """

    engine: str
    ranks: int
    exchange: str
    parameters: int
    threads: int
    blocks: int
    steps: int
    step_s: float
    step_with_s: float
    difference_percent: float
    difference_quartiles_percent: tuple[float, float]
    call_s: float
    call_percent: float

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in vars(self).items()}


def measure_overhead(
    config: Config, *, exchange: str, blocks: int, steps: int, clock: Clock | None = None
) -> Overhead:
    """Measure with the model, inner optimizer, engine and batch of `config`, on one thread.

    Under torchrun every rank calls it; each times itself, and the lead is the one with the exchange.

    Args:
        exchange: `loopback` or `swarm`; either way there is no other peer.
        blocks: pairs of blocks.
        steps: inner steps in each block.
    """
    clock = clock or SystemClock()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = _Step(config, clock)
        for _ in range(steps):
            step(None)
        bare, around, calls, differences = [], [], [], []
        for _ in range(blocks):
            without = [step(None)[0] for _ in range(steps)]
            with _outer_loop(step.island, exchange if step.island.is_lead else None) as outer:
                timed = [step(outer) for _ in range(steps)]
            with_loop = [total for total, _ in timed]
            calls += [call for _, call in timed]
            bare += without
            around += with_loop
            differences.append(100 * (statistics.median(with_loop) / statistics.median(without) - 1))
    finally:
        torch.set_num_threads(threads)
    step_s, call_s = statistics.median(bare), statistics.median(calls)
    quartiles = statistics.quantiles(differences, n=4) if blocks > 1 else [differences[0]] * 3
    return Overhead(
        engine=config.island.engine,
        ranks=step.island.world_size,
        exchange=exchange,
        parameters=sum(spec.elements for spec in step.island.layout),
        threads=1,
        blocks=blocks,
        steps=steps,
        step_s=step_s,
        step_with_s=statistics.median(around),
        difference_percent=statistics.median(differences),
        difference_quartiles_percent=(quartiles[0], quartiles[2]),
        call_s=call_s,
        call_percent=100 * call_s / step_s,
    )


class _Step:
    """One inner step on a fixed batch: forward, backward, clip, optimizer."""

    def __init__(self, config: Config, clock: Clock) -> None:
        self.island: Island = build_island(config, build_model(config), torch.device("cpu"))
        shape = (config.train.batch_size, config.shared.model.context + 1)
        ids = torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(0))
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
def _outer_loop(island: Island, name: str | None) -> Iterator[OuterLoop]:
    exchange: Exchange | None = None
    if name == "swarm":
        exchange = exchanges.swarm(run_id="overhead", relay=False)
    elif name == "loopback":
        exchange = exchanges.loopback(exchanges.hub(), run_id="overhead", peer_id="alone", founder=True)
    with OuterLoop(
        island,
        exchange,
        schedule=Schedule(inner_steps=NEVER),
        codec=codecs.int8(),
        outer_optimizer=nesterov(),
    ) as outer:
        yield outer
