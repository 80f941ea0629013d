"""Error feedback: what is lost is sent later, on whatever range and from whichever peer."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowcomm import Schedule, codecs, nesterov
from lowcomm.codecs.base import Codec
from lowcomm.islands.vectors import HostVector
from lowcomm.ledger.residual import Residual
from tests.outer.swarm import Swarm, in_parallel

ELEMENTS, STEPS = 3_000, 24


def residual() -> Residual:
    """Of 8 numbers, of which this peer reduced 2..5 last."""
    return Residual(HostVector(torch.tensor([10.0, 20.0, 30.0, 40.0])), 2)


@pytest.mark.parametrize("reduced", [(2, 6), (0, 4), (4, 8), (0, 8), (0, 0), (6, 8)])
@pytest.mark.parametrize("cuts", [(0, 8), (0, 3, 8), (0, 2, 4, 6, 8)])
def test_what_the_means_lost_comes_back_once(reduced: tuple[int, int], cuts: tuple[int, ...]) -> None:
    share, kept = 0.25, residual()
    total = torch.zeros(8)
    for start, stop in itertools.pairwise(cuts):
        own = kept.handed_over(start, stop, reduced, share)
        if own is not None:
            total[start:stop] += share * own
    start, stop = reduced
    added = kept.for_mean(start, stop) if stop > start else None
    if added is not None:
        total[start:stop] += added
    torch.testing.assert_close(total, torch.tensor([0.0, 0, 10, 20, 30, 40, 0, 0]))


def test_a_peer_without_a_share_hands_nothing_over() -> None:
    assert residual().handed_over(0, 8, (0, 0), 0.0) is None


class Marching:
    """An island whose inner steps add the same vector each time, wherever its parameters are."""

    def __init__(self, swarm: Swarm, island: int) -> None:
        self.model = nn.ParameterList([torch.zeros(ELEMENTS)])
        (self.weight,) = self.model.parameters()
        self.step = torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(island)) / STEPS
        self.anchor = self.kept = torch.zeros(0)
        self._outer = swarm.loop(island, self.model, torch.optim.SGD(self.model.parameters(), lr=0.0))

    def run(self) -> None:
        try:
            self._outer.start()
            for _ in range(STEPS):
                with torch.no_grad():
                    self.weight += self.step
                self._outer.step(tokens=8)
            self._outer.finish()
            saved = self._outer.state_dict()["fragments"]
            self.anchor = torch.cat([fragment["anchor"] for fragment in saved])
            self.kept = torch.zeros(ELEMENTS)
            start = 0
            for fragment in saved:
                lost = fragment["residual"]
                if lost is not None:
                    first = start + lost["start"]
                    self.kept[first : first + lost["mean"].numel()] += lost["mean"]
                start += fragment["anchor"].numel()
        finally:
            self._outer.close()

    @property
    def local(self) -> Tensor:
        return self.weight.detach()


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(Schedule(inner_steps=2), id="blocking"),
        pytest.param(Schedule(inner_steps=4, delay=1), id="delay"),
        pytest.param(Schedule(inner_steps=4, delay=2, eager=True), id="eager"),
    ],
)
@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(lambda: codecs.topk(error_feedback=True, decay=1.0), id="topk"),
        pytest.param(lambda: codecs.two_bit(error_feedback=True), id="2bit"),
    ],
)
def test_all_progress_is_in_the_anchor_or_still_to_be_sent(
    schedule: Schedule, codec: Callable[[], Codec]
) -> None:
    swarm = Swarm(islands=3, schedule=schedule, codec=codec, optimizer=nesterov(lr=1.0, momentum=0.0))
    islands = [Marching(swarm, 0)]
    in_parallel(
        [islands[0].run, *(lambda i=i: _join(swarm, islands, i) for i in (1, 2))], swarm.results, [0, 1, 2]
    )
    assert [result.error for result in swarm.results.values()] == []
    anchor = islands[0].anchor
    assert anchor.norm() > 0
    unsent = sum(island.local - anchor for island in islands) / 3
    # a mean's residual is of a pseudo-gradient, which points the other way
    kept = -sum(island.kept for island in islands)
    trained = STEPS * sum(island.step for island in islands) / 3
    torch.testing.assert_close(anchor + unsent + kept, trained, rtol=0, atol=1e-4)


def _join(swarm: Swarm, islands: list[Marching], number: int) -> None:
    island = Marching(swarm, number)
    islands.append(island)
    island.run()
