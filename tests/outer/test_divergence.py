"""An island whose parameters run away stops with a LossError that names one; nothing of it is sent."""

import math

import pytest
import torch

from lowcomm import Schedule
from lowcomm.errors import LossError
from tests.outer.swarm import Swarm, make_model

DIVERGED = {
    # what one weight of the second layer becomes, and what is said of it
    "nan": (math.nan, "is not finite any more"),
    "inf": (math.inf, "is not finite any more"),
    "square overflows": (1e20, "has diverged: it is 1e\\+20 away"),
    "sum of squares overflows": (1.2e19, "has diverged"),
    "almost too large for fp32": (3.4e38, "has diverged"),
    "below zero": (-1e19, "has diverged"),
}
UNLIKE = {
    "one fragment": Schedule(inner_steps=1),
    "several, and a delay": Schedule(inner_steps=4, num_fragments=2, delay=1),
}


def four_steps(outer):
    """Reports of four inner steps."""
    return [report for _ in range(4) for report in outer.step(tokens=1)]


@pytest.mark.parametrize("schedule", UNLIKE.values(), ids=UNLIKE)
@pytest.mark.parametrize(("value", "said"), DIVERGED.values(), ids=DIVERGED)
def test_the_parameter_is_named_and_nothing_is_sent(value, said, schedule):
    model = make_model()
    outer = Swarm(islands=1).loop(0, model, torch.optim.SGD(model.parameters(), lr=0.1), schedule=schedule)
    with outer:
        digest = outer.digest
        with torch.no_grad():
            model[2].weight[0, 0] = value
        with pytest.raises(LossError, match=rf"step \d+: parameter 2.weight ({said}).*nothing was sent"):
            four_steps(outer)
        assert outer.digest == digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_so_is_one_of_another_precision(dtype):
    model = make_model().to(dtype)
    outer = Swarm(islands=1).loop(0, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with outer, torch.no_grad():
        model[2].weight.fill_(torch.finfo(dtype).max if dtype != torch.float16 else math.inf)
        with pytest.raises(LossError, match=r"parameter 2\.weight"):
            four_steps(outer)


def test_large_is_not_diverged():
    model = make_model()
    outer = Swarm(islands=1).loop(0, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with outer:
        with torch.no_grad():
            model[2].weight.fill_(1e12)
        [report] = four_steps(outer)
        assert report.committed


def test_the_others_go_on():
    swarm = Swarm(islands=2)

    def diverge(step, outer):
        if step == 6 and outer.peer_id == "island-1":
            with torch.no_grad():
                outer._island.model[0].bias.fill_(1e30)

    results = swarm.run(16, each=diverge)
    assert isinstance(results[1].error, LossError)
    assert "0.bias" in str(results[1].error)
    assert results[0].error is None
    assert len(results[0].committed) >= 3
