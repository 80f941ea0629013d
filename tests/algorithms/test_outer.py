"""Schedules, fragments and merges against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.merge import merge, movement_, rebase_
from lowcomm.algorithms.schedule import Schedule
from lowcomm.errors import ConfigError
from lowcomm.types import TensorSpec


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
