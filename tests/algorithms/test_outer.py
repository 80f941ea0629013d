"""The outer maths against torch's own optimizer and against the formulas of the papers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.algorithms.eager import run_ahead
from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.merge import merge, movement_, rebase_
from lowcomm.algorithms.outer_optimizers import WARM_UP, OuterOptimizer, nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.errors import ConfigError
from lowcomm.types import TensorSpec


def step(
    optimizer: OuterOptimizer, *state: torch.Tensor, outer_step: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The anchor and momentum after (anchor, momentum, mean)."""
    after = torch.empty_like(state[0]), torch.empty_like(state[0])
    optimizer.step(*state, *after, outer_step)
    return after


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_nesterov_is_that_of_torch(momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    anchor, state = torch.randn(40_000, generator=generator), torch.zeros(40_000)
    parameter = torch.nn.Parameter(anchor.clone())
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=momentum, nesterov=momentum > 0)
    ours = nesterov(lr=0.7, momentum=momentum)
    for _ in range(10):
        mean = torch.randn(40_000, generator=generator)
        before = anchor.clone(), state.clone()
        arguments = anchor, state
        anchor, state = step(ours, *arguments, mean)
        assert all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True))
        parameter.grad = mean
        reference.step()
    assert torch.allclose(anchor, parameter, rtol=1e-5, atol=1e-5)


def test_nesterov_rounds_every_operation_by_itself() -> None:
    """Each product rounded before it is added (no fused multiply-add), and no denormal special case."""
    import numpy as np

    generator = torch.Generator().manual_seed(1)
    anchor, state, mean = (torch.randn(70_003, generator=generator) for _ in range(3))
    lr, momentum = np.float32(0.7), np.float32(0.9)
    m = state.numpy() * momentum + mean.numpy()
    expected = anchor.numpy() - (m * momentum + mean.numpy()) * lr
    got_anchor, got_state = step(nesterov(lr=0.7, momentum=0.9), anchor, state, mean)
    assert np.array_equal(got_state.numpy(), m)
    assert np.array_equal(got_anchor.numpy(), expected)


def test_outer_step_of_one_is_plain_averaging() -> None:
    anchor, local = torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 3.0])
    after, _ = step(nesterov(lr=1.0, momentum=0.0), anchor, torch.zeros(4), anchor - local)
    assert torch.equal(after, local)


@pytest.mark.parametrize(
    ("lr", "momentum"),
    [(-0.1, 0.9), (0.7, 1.0), (0.7, -0.1), (float("nan"), 0.9), ("fast", 0.9), (0.7, "none"), (None, 0.9)],
)
def test_nesterov_refuses_bad_settings(lr: Any, momentum: Any) -> None:
    with pytest.raises(ConfigError, match="expected"):
        nesterov(lr=lr, momentum=momentum)


def test_auto_begins_as_plain_averaging_and_ends_as_the_paper() -> None:
    settings = [nesterov().at(outer_step) for outer_step in range(1, 20_000)]
    assert settings[0] == (1.0, 0.0)
    assert settings[WARM_UP][1] == 0.45
    assert settings[-1] == pytest.approx((0.7, 0.9), abs=0.01)
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in itertools.pairwise(settings))
    assert nesterov(momentum=0.9).at(1) == (pytest.approx(0.7), 0.9)  # what is given stays
    assert nesterov(lr=0.5).at(1) == (0.5, 0.0)


def test_merge_and_rebase() -> None:
    old, new, local = (torch.randn(50, generator=torch.Generator().manual_seed(n)) for n in range(3))
    assert torch.allclose(merge(new, local, local, 0.0), new)
    assert torch.allclose(merge(new, local, local, 0.25), 0.25 * local + 0.75 * new)
    assert torch.equal(merge(new, local, local, 1.0), local)
    sent = local - 3.0  # the steps since then are kept, whatever the weight
    for alpha in (0.0, 0.25, 1.0):
        assert torch.allclose(merge(new, local, sent, alpha), merge(new, sent, sent, alpha) + 3.0)
    assert torch.allclose(new - rebase_(local.clone(), old, new), old - local, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("elements", [0, 7, 70_003])
def test_local_parameters_and_the_movement_are_the_merge(elements: int, alpha: float) -> None:
    old, new, local, own = (
        torch.randn(elements, generator=torch.Generator().manual_seed(n)) for n in range(4)
    )
    moved = movement_(torch.empty(elements), new, old, own, alpha)
    assert torch.equal(local + moved, merge(new, local, old - own, alpha))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("elements", [0, 7, 70_003])
def test_a_preview_is_the_end_of_a_round_of_ones_own(elements: int, alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    anchor, momentum, own = (torch.randn(elements, generator=generator) for _ in range(3))
    before = [tensor.clone() for tensor in (anchor, momentum, own)]
    optimizer = nesterov(lr=0.7, momentum=0.9)
    ahead = run_ahead(optimizer, anchor, momentum, own, alpha, 7)
    after, _ = step(optimizer, anchor, momentum, own, outer_step=7)
    sent = anchor - own
    assert torch.equal(ahead, merge(after, sent, sent, alpha))
    assert all(torch.equal(a, b) for a, b in zip((anchor, momentum, own), before, strict=True))


sizes = st.lists(st.integers(0, 500), min_size=1, max_size=30)


@given(sizes=sizes, data=st.data(), fragmenting=st.sampled_from(["balanced", "strided"]))
def test_every_tensor_is_in_one_fragment(sizes: list[int], data: st.DataObject, fragmenting: str) -> None:
    layout = tuple(TensorSpec(str(i), (size,)) for i, size in enumerate(sizes))
    count = data.draw(st.integers(1, len(sizes)))
    fragments = make_fragments(layout, count, fragmenting)
    assert [fragment.index for fragment in fragments] == list(range(count))
    assert all(fragment.tensors for fragment in fragments)
    assert sorted(i for fragment in fragments for i in fragment.tensors) == list(range(len(sizes)))
    assert all(f.elements == sum(sizes[i] for i in f.tensors) for f in fragments)
    if fragmenting == "balanced":
        loads = [fragment.elements for fragment in fragments]
        assert max(loads) - min(loads) <= max(sizes)


def test_more_fragments_than_tensors_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected at most 1"):
        make_fragments((TensorSpec("w", (3,)),), 2, "balanced")


@pytest.mark.parametrize(("inner_steps", "num_fragments"), [(1, 1), (10, 1), (10, 3), (7, 7), (3, 5)])
def test_every_fragment_is_due_once_in_inner_steps(inner_steps: int, num_fragments: int) -> None:
    schedule = Schedule(inner_steps=inner_steps, num_fragments=num_fragments)
    assert schedule.due(0) == ()
    for begin in range(inner_steps, 4 * inner_steps, inner_steps):
        due = [f for step in range(begin, begin + inner_steps) for f in schedule.due(step)]
        assert sorted(due) == list(range(num_fragments))
    assert num_fragments - 1 in schedule.due(inner_steps)


@pytest.mark.parametrize(
    "wrong",
    [
        {"inner_steps": 0},
        {"num_fragments": 0},
        {"delay": 10},
        {"merge_alpha": 1.5},
        {"eager": True},
        {"fragmenting": "random"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_schedule_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{next(iter(wrong))}: expected"):
        Schedule(**{"inner_steps": 10, **wrong})  # type: ignore[arg-type]
