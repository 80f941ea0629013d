"""One contract for all outer optimizers; a new one is one row in `METHODS`.

The slow references go element by element in numpy's fp32, which rounds each operation by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowcomm.algorithms import outer_optimizers
from lowcomm.algorithms.eager import run_ahead
from lowcomm.algorithms.merge import merge
from lowcomm.algorithms.outer_optimizers import OuterOptimizer, slot_names
from lowcomm.algorithms.outer_optimizers.adam import adam, power
from lowcomm.algorithms.outer_optimizers.nesterov import WARM_UP, nesterov
from lowcomm.algorithms.outer_optimizers.schedule_free import schedule_free
from lowcomm.algorithms.outer_optimizers.sgd import sgd
from lowcomm.config.fields import settings as config_settings
from lowcomm.errors import ConfigError

ELEMENTS = 70_003
STEPS = 4
f32 = np.float32
State = tuple[Tensor, dict[str, Tensor]]
Slow = Callable[[Any, list[Any], Any, int], tuple[Any, list[Any]]]
"""One element's anchor and slots after (anchor, slots, mean, outer step)."""


@dataclass(frozen=True)
class Case:
    """An optimizer, its slots, the same maths slowly, and values that are refused."""

    optimizer: OuterOptimizer
    slots: tuple[str, ...]
    slow: Slow
    bad: tuple[dict[str, Any], ...]


def slow_nesterov(x: Any, slots: list[Any], g: Any, t: int) -> tuple[Any, list[Any]]:
    lr, beta = f32(0.7), f32(0.9)
    m = slots[0] * beta + g
    return x - (m * beta + g) * lr, [m]


def slow_adam(x: Any, slots: list[Any], g: Any, t: int) -> tuple[Any, list[Any]]:
    rate = f32(0.01 / (1.0 - math.prod([0.9] * t)))
    scale = f32(1.0 / math.sqrt(1.0 - math.prod([0.99] * t)))
    m = slots[0] * f32(0.9) + g * f32(1.0 - 0.9)
    v = slots[1] * f32(0.99) + g * g * f32(1.0 - 0.99)
    return x - m * rate / (np.sqrt(v) * scale + f32(1e-3)), [m, v]


def slow_schedule_free(x: Any, slots: list[Any], g: Any, t: int) -> tuple[Any, list[Any]]:
    z = slots[0] - g * f32(0.8)
    return (z - x) * f32(1.0 / t) + x - g * f32(0.8 * (1.0 - 0.9) * (1.0 - 1.0 / t)), [z]


def slow_sgd(x: Any, slots: list[Any], g: Any, t: int) -> tuple[Any, list[Any]]:
    return x - g * f32(0.5), []


LR: tuple[dict[str, Any], ...] = ({"lr": -0.1}, {"lr": math.nan}, {"lr": "fast"}, {"lr": None}, {"lr": True})
METHODS = {
    "nesterov": Case(
        nesterov(lr=0.7, momentum=0.9),
        ("momentum",),
        slow_nesterov,
        (*LR, {"momentum": 1.0}, {"momentum": -0.1}, {"momentum": "none"}),
    ),
    "adam": Case(
        adam(lr=0.01),
        ("first", "second"),
        slow_adam,
        (*LR, {"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}, {"eps": math.inf}),
    ),
    "schedule_free": Case(
        schedule_free(lr=0.8), ("z",), slow_schedule_free, (*LR, {"beta": 1.1}, {"beta": "auto"})
    ),
    "sgd": Case(sgd(lr=0.5), (), slow_sgd, LR),
}
each = pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)


def numbers(seed: int, elements: int = ELEMENTS) -> Tensor:
    return torch.randn(elements, generator=torch.Generator().manual_seed(seed))


def stepped(optimizer: OuterOptimizer, state: State, mean: Tensor, outer_step: int) -> State:
    anchor, slots = state
    after = torch.full_like(anchor, math.nan), {n: torch.full_like(s, math.nan) for n, s in slots.items()}
    optimizer.step(anchor, slots, mean, *after, outer_step)
    return after


def history(optimizer: OuterOptimizer, parts: list[slice]) -> State:
    """After some outer steps, each taken part by part."""
    anchor = numbers(0)
    slots: dict[str, Tensor] = {name: torch.empty_like(anchor) for name in slot_names(optimizer)}
    for part in parts:
        for name, values in optimizer.init(anchor[part]).items():
            slots[name][part] = values
    for outer_step in range(1, STEPS + 1):
        mean = numbers(outer_step) * 10.0**-outer_step
        after = torch.empty_like(anchor), {name: torch.empty_like(anchor) for name in slots}
        for part in parts:
            now = {name: slot[part] for name, slot in slots.items()}
            then = {name: slot[part] for name, slot in after[1].items()}
            optimizer.step(anchor[part], now, mean[part], after[0][part], then, outer_step)
        anchor, slots = after
    return anchor, slots


def same(a: State, b: State) -> bool:
    return torch.equal(a[0], b[0]) and all(torch.equal(a[1][n], b[1][n]) for n in {*a[1], *b[1]})


def test_every_method_has_a_row_and_a_choice() -> None:
    assert set(METHODS) == set(outer_optimizers.METHODS.names)
    assert config_settings()["shared.outer.name"].choices == outer_optimizers.METHODS.names
    for name in outer_optimizers.METHODS.names:
        spec = outer_optimizers.METHODS.spec(name)
        assert spec.name == name == spec.make().settings["name"]
        assert {f"shared.outer.{parameter}" for parameter in spec.parameters} <= set(config_settings())
        assert set(spec.make().settings) == {"name", *spec.parameters}


@each
def test_slots_are_fp32_of_the_anchors_shape(case: Case) -> None:
    anchor = numbers(0, 11)
    slots = case.optimizer.init(anchor)
    assert tuple(slots) == case.slots == slot_names(case.optimizer)
    for slot in slots.values():
        assert (slot.dtype, slot.shape) == (torch.float32, anchor.shape)
        assert slot.data_ptr() != anchor.data_ptr()
    assert torch.equal(anchor, numbers(0, 11))


@each
def test_slices_give_the_bits_of_the_whole_again_and_again(case: Case) -> None:
    whole = history(case.optimizer, [slice(0, ELEMENTS)])
    cuts = [0, 1, 9, 65_536, 65_539, ELEMENTS]
    parts = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
    assert same(whole, history(case.optimizer, [slice(0, ELEMENTS)]))
    assert same(whole, history(case.optimizer, parts[::-1]))


@each
def test_every_operation_is_rounded_by_itself(case: Case) -> None:
    """The slow reference, bit for bit: no fused multiply-add, roots and quotients to the nearest number."""
    anchor = numbers(0)
    state: State = anchor, case.optimizer.init(anchor)
    x, slots = anchor.numpy(), [slot.numpy() for slot in state[1].values()]
    for outer_step in range(1, STEPS + 1):
        mean = numbers(outer_step) * 10.0**-outer_step
        x, slots = case.slow(x, slots, mean.numpy(), outer_step)
        state = stepped(case.optimizer, state, mean, outer_step)
        assert np.array_equal(state[0].numpy(), x)
        for slot, expected in zip(state[1].values(), slots, strict=True):
            assert np.array_equal(slot.numpy(), expected)


@each
def test_what_is_stepped_stays_as_it_is_and_nothing_is_left_out(case: Case) -> None:
    anchor, mean = numbers(0), numbers(1)
    slots = case.optimizer.init(anchor)
    before = {name: slot.clone() for name, slot in slots.items()}
    after = stepped(case.optimizer, (anchor, slots), mean, 1)
    assert same((anchor, slots), (numbers(0), before))
    assert torch.equal(mean, numbers(1))
    assert all(torch.isfinite(values).all() for values in (after[0], *after[1].values()))
    assert not torch.equal(after[0], anchor)


@each
def test_a_step_goes_against_the_mean(case: Case) -> None:
    anchor, mean = numbers(0), numbers(1)
    after, _ = stepped(case.optimizer, (anchor, case.optimizer.init(anchor)), mean, 1)
    moved = after - anchor
    assert (moved[mean.abs() > 1e-3] * mean[mean.abs() > 1e-3] < 0).all()


@each
def test_a_fragment_of_nothing_is_stepped(case: Case) -> None:
    empty = torch.empty(0)
    after, slots = stepped(case.optimizer, (empty, case.optimizer.init(empty)), empty, 1)
    assert after.numel() == sum(slot.numel() for slot in slots.values()) == 0


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, case in METHODS.items() for bad in case.bad], ids=repr
)
def test_values_that_are_none_are_refused(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{name}.{next(iter(bad))}: expected ") as caught:
        outer_optimizers.by_name(name, **bad)
    assert "\n" not in str(caught.value)


def test_a_name_or_parameter_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shared.outer.name: expected one of nesterov, .*, got 'adamw'$"):
        outer_optimizers.by_name("adamw")
    with pytest.raises(ConfigError, match=r"shared.outer.name: expected one of nesterov, .* got 3"):
        outer_optimizers.by_name(3)  # type: ignore[arg-type]
    expected = (
        "shared.outer.momentum: expected nothing with name = adam, whose parameters are lr, beta1, beta2, "
        "eps, got 0.9; leave it out"
    )
    with pytest.raises(ConfigError) as caught:
        outer_optimizers.by_name("adam", momentum=0.9)
    assert str(caught.value) == expected


@each
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("elements", [0, 7, ELEMENTS])
def test_a_preview_is_the_end_of_a_round_of_ones_own(case: Case, elements: int, alpha: float) -> None:
    anchor, own = numbers(0, elements), numbers(1, elements)
    slots = case.optimizer.init(numbers(2, elements).abs())
    before = {name: slot.clone() for name, slot in slots.items()}
    ahead = run_ahead(case.optimizer, anchor, slots, own, alpha, 7)
    after, _ = stepped(case.optimizer, (anchor, slots), own, 7)
    sent = anchor - own
    assert torch.equal(ahead, merge(after, sent, sent, alpha))
    assert same((anchor, slots), (numbers(0, elements), before))


# -- each against what it is said to be ------------------------------------------------------------


def means(count: int, elements: int = 4_000) -> list[Tensor]:
    return [numbers(seed, elements) for seed in range(1, count + 1)]


def torch_anchor(make: Callable[[list[Tensor]], torch.optim.Optimizer], gradients: list[Tensor]) -> Tensor:
    parameter = torch.nn.Parameter(numbers(0, gradients[0].numel()))
    reference = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        reference.step()
    return parameter.detach()


def our_anchor(optimizer: OuterOptimizer, gradients: list[Tensor]) -> Tensor:
    anchor = numbers(0, gradients[0].numel())
    state: State = anchor, optimizer.init(anchor)
    for outer_step, gradient in enumerate(gradients, start=1):
        state = stepped(optimizer, state, gradient, outer_step)
    return state[0]


@pytest.mark.parametrize("momentum", [0.0, 0.6, 0.9])
def test_nesterov_is_that_of_torch(momentum: float) -> None:
    expected = torch_anchor(
        lambda p: torch.optim.SGD(p, lr=0.7, momentum=momentum, nesterov=momentum > 0), means(10)
    )
    ours = our_anchor(nesterov(lr=0.7, momentum=momentum), means(10))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_adam_is_that_of_torch() -> None:
    expected = torch_anchor(lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.9, 0.95), eps=1e-3), means(10))
    ours = our_anchor(adam(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-3), means(10))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_schedule_free_is_the_papers_three_sequences() -> None:
    lr, beta = 0.8, 0.9
    z = x = y = numbers(0, 4_000).double()
    for t, g in enumerate(means(10), start=1):
        z = z - lr * g.double()
        x = (1 - 1 / t) * x + z / t
        y = (1 - beta) * z + beta * x
    ours = our_anchor(schedule_free(lr=lr, beta=beta), means(10))
    torch.testing.assert_close(ours.double(), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizer", [nesterov(lr=1.0, momentum=0.0), schedule_free(), sgd()], ids=repr)
def test_an_outer_step_of_one_is_plain_averaging(optimizer: OuterOptimizer) -> None:
    anchor, local = torch.zeros(4), torch.tensor([1.0, -2.0, 0.5, 3.0])
    after, _ = stepped(optimizer, (anchor, optimizer.init(anchor)), anchor - local, 1)
    assert torch.equal(after, local)


def test_nesterov_auto_begins_as_plain_averaging_and_ends_as_the_paper() -> None:
    settings = [nesterov().at(outer_step) for outer_step in range(1, 20_000)]
    assert settings[0] == (1.0, 0.0)
    assert settings[WARM_UP][1] == 0.45
    assert settings[-1] == pytest.approx((0.7, 0.9), abs=0.01)
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in itertools.pairwise(settings))
    assert nesterov(momentum=0.9).at(1) == (pytest.approx(0.7), 0.9)  # what is given stays
    assert nesterov(lr=0.5).at(1) == (0.5, 0.0)


@pytest.mark.parametrize("exponent", [0, 1, 2, 7, 1_000, 123_457])
def test_powers_are_those_of_the_library_but_for_its_rounding(exponent: int) -> None:
    assert power(0.9999, exponent) == pytest.approx(0.9999**exponent, rel=1e-12)
