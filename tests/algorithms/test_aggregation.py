"""The aggregation rules: one contract for all, slow references, and what each promises."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowcomm import RoundPolicy, Schedule, codecs
from lowcomm.algorithms import aggregation
from lowcomm.algorithms.aggregation import Aggregation
from lowcomm.algorithms.aggregation.krum import Krum
from lowcomm.algorithms.aggregation.norm_preserving import NormPreservingMean
from lowcomm.algorithms.aggregation.trimmed_mean import TrimmedMean
from lowcomm.errors import ConfigError
from tests.outer.swarm import Swarm

RULES = {name: aggregation.by_name(name, faulty=1) for name in aggregation.NAMES}
ROBUST = ("trimmed_mean", "median", "krum")


def parts(count: int, elements: int = 300, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, elements, generator=torch.Generator().manual_seed(seed)))


def even(count: int) -> list[float]:
    return [1.0 / count] * count


def combine(rule: Aggregation, given_parts: list[Tensor], shares: list[float] | None = None) -> Tensor:
    return rule.combine([part.clone() for part in given_parts], shares or even(len(given_parts)))


@pytest.fixture(params=sorted(RULES), name="rule")
def _rule(request: pytest.FixtureRequest) -> Aggregation:
    return RULES[request.param]


def test_equal_contributions_are_their_aggregate(rule: Aggregation) -> None:
    (part,) = parts(1)
    torch.testing.assert_close(combine(rule, [part] * 5), part, rtol=1e-6, atol=1e-6)


def test_the_same_input_gives_the_same_bits(rule: Aggregation) -> None:
    given_parts = parts(7, elements=70_000)
    assert torch.equal(combine(rule, given_parts), combine(rule, given_parts))


def test_what_is_finite_stays_finite_and_fp32(rule: Aggregation) -> None:
    big = torch.finfo(torch.float32).max / 8
    for rows in ([[0.0, 0.0]] * 5, [[big, -big]] * 5, [[big, 1.0]] * 4 + [[-big, 1.0]]):
        out = combine(rule, [torch.tensor(row) for row in rows])
        assert out.dtype == torch.float32
        assert out.isfinite().all(), (rule, rows, out)


def test_cutting_a_vector_changes_no_elementwise_rule(rule: Aggregation) -> None:
    given_parts = parts(5, elements=101)
    whole = combine(rule, given_parts)
    cut = torch.cat([combine(rule, [part[i : i + 30] for part in given_parts]) for i in range(0, 101, 30)])
    elementwise = rule.settings["name"] in ("mean", "median", "trimmed_mean")
    assert torch.equal(whole, cut) is elementwise


def test_too_few_contributions_are_named(rule: Aggregation) -> None:
    if rule.min_participants > 1:
        with pytest.raises(ValueError, match=f"at least {rule.min_participants}"):
            combine(rule, parts(rule.min_participants - 1))
    assert combine(rule, parts(rule.min_participants)).shape == (300,)


@settings(max_examples=30)
@given(
    rows=st.lists(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=3), min_size=5, max_size=9),
    faulty=st.integers(1, 2),
)
def test_trimmed_mean_and_median_are_the_slow_ones(rows: list[list[float]], faulty: int) -> None:
    tensors = [torch.tensor(row) for row in rows]
    trimmed = combine(TrimmedMean(faulty), tensors)
    median = combine(RULES["median"], tensors)
    for element in range(3):
        column = sorted(row[element] for row in rows)
        kept = column[faulty : len(column) - faulty]
        assert math.isclose(float(trimmed[element]), sum(kept) / len(kept), rel_tol=1e-5, abs_tol=1e-4)
        assert math.isclose(float(median[element]), statistics.median(column), rel_tol=1e-5, abs_tol=1e-5)


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("lie", [-1.0, -30.0, 1e6, 1e30], ids=["flip", "flip-30", "huge", "enormous"])
@pytest.mark.parametrize("weight", [0.2, 0.99], ids=["fair", "huge-weight"])
def test_one_liar_of_five_moves_a_robust_rule_little(name: str, lie: float, weight: float) -> None:
    truth = parts(1)[0] + 3.0
    honest = [truth + 0.1 * noise for noise in parts(4, seed=1)]
    shares = [(1.0 - weight) / 4] * 4 + [weight]
    out = combine(RULES[name], [*honest, lie * truth], shares)
    assert float((out - truth).norm() / truth.norm()) < 0.1
    mean = combine(RULES["mean"], [*honest, lie * truth], shares)
    assert float((mean - truth).norm() / truth.norm()) > 0.1


def test_krum_selects_by_distance_and_breaks_ties_by_order() -> None:
    near, far = torch.zeros(4), torch.full((4,), 9.0)
    assert Krum(1).select([near, far, near, near, near]) == [0, 2, 3, 4]
    assert Krum(1).select([near] * 5) == [0, 1, 2, 3]
    assert Krum(2).min_participants == 7


def test_norm_preserving_keeps_the_norm_of_orthogonal_updates() -> None:
    orthogonal = list(torch.eye(16))
    assert float(combine(RULES["mean"], orthogonal).norm()) == pytest.approx(0.25)
    out = combine(RULES["norm_preserving"], orthogonal)
    assert float(out.norm()) == pytest.approx(1.0)
    scaled = [2.0 * row for row in orthogonal]
    assert float(combine(NormPreservingMean(), scaled).norm()) == pytest.approx(2.0)


def test_norm_preserving_weighs_radius_and_direction_by_tokens() -> None:
    out = combine(NormPreservingMean(), [torch.tensor([4.0, 0.0]), torch.tensor([0.0, 1.0])], [0.75, 0.25])
    direction = torch.tensor([0.75, 0.25])
    torch.testing.assert_close(out, direction / direction.norm() * (0.75 * 4.0 + 0.25 * 1.0))


def test_norm_preserving_is_the_mean_where_directions_cancel() -> None:
    part = parts(1)[0]
    assert torch.equal(combine(NormPreservingMean(), [part, -part]), torch.zeros_like(part))


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ConfigError, match=r"krum.*'mode'"):
        aggregation.by_name("mode")


@pytest.mark.parametrize("name", sorted(RULES))
def test_islands_agree_to_the_bit_under_every_rule(name: str) -> None:
    swarm = Swarm(
        islands=5,
        codec=codecs.int8,
        schedule=Schedule(inner_steps=3, num_fragments=2),
        policy=RoundPolicy(min_participants=5, deadline_s=20.0),
    )
    results = swarm.run(steps=9, aggregation=RULES[name])
    assert all(result.error is None for result in results.values())
    assert len({result.digest for result in results.values()}) == 1
    assert all(len(report.participants) == 5 for result in results.values() for report in result.reports)


def test_a_rule_that_the_policy_starves_is_refused() -> None:
    swarm = Swarm(islands=1)
    with pytest.raises(ConfigError, match=r"krum needs 5 participants.*min_participants, now 1"):
        swarm.train(0, 3, aggregation=Krum(1))
