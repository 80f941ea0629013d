"""Eager mode: the preview moves local parameters only, and what is committed is as without it.

Where inner steps don't depend on the weights (`drift`), the pseudo-gradients of a run are known sums, so a
preview that got into one of them, or a step that was lost with one, would show in the anchor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lowcomm import RoundPolicy, Schedule, codecs, nesterov
from tests.outer.swarm import Result, Swarm, in_parallel, make_model

EAGER = Schedule(inner_steps=6, delay=4, eager=True)


def drift(island: int, step: int, like: Tensor) -> Tensor:
    """An inner step that is the same whatever the weights are."""
    generator = torch.Generator().manual_seed(1_000 * island + step)
    return 0.01 * (torch.randn(like.shape, generator=generator) + island + 1)


def drifting(
    swarm: Swarm,
    island: int,
    steps: int,
    *,
    each: Callable[[int], None] = lambda inner_step: None,
    ends: bool = True,
) -> list[Tensor]:
    """Local parameters of one island after each of its steps; the anchor of the end lands in its result."""
    result = swarm.results[island] = Result()
    model = make_model()
    outer = swarm.loop(island, model, torch.optim.SGD(model.parameters(), lr=1.0))
    seen: list[Tensor] = []
    with outer:
        while outer.inner_step < steps:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(drift(island, len(seen), parameter))
            result.reports += outer.step(tokens=8)
            seen.append(nn.utils.parameters_to_vector(model.parameters()).detach())
            each(outer.inner_step)
        if ends:
            result.reports += outer.finish()
        result.digest = outer.digest
        result.local = torch.cat([part.flatten() for part in outer.anchor().values()])
        result.tokens_trained, result.tokens_credited = outer.tokens_trained, outer.tokens_credited
        result.tokens_left = outer.tokens_uncommitted
    return seen


def run(swarm: Swarm, steps: int, each: Sequence[Callable[[int], None]] = ()) -> dict[int, Result]:
    hooks = each or [lambda inner_step: None] * swarm.islands
    calls = [lambda i=i: drifting(swarm, i, steps, each=hooks[i]) for i in range(swarm.islands)]
    in_parallel(calls, swarm.results, list(range(swarm.islands)))
    assert [result.error for result in swarm.results.values()] == [None] * swarm.islands
    return swarm.results


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("fragments", [1, 3])
def test_alone_an_eager_island_never_waits_for_its_outer_step(fragments: int, alpha: float) -> None:
    eager = replace(EAGER, num_fragments=fragments, merge_alpha=alpha)
    plain = replace(eager, delay=0, eager=False)
    ahead, waited = (Swarm(islands=1, schedule=s).run(steps=24)[0] for s in (eager, plain))
    assert ahead.error is None is waited.error
    torch.testing.assert_close(ahead.local, waited.local, rtol=0, atol=1e-5)
    assert ahead.losses == pytest.approx(waited.losses, abs=1e-5)


def test_alone_and_averaging_an_eager_island_is_as_any() -> None:
    """Outer lr 1 without momentum: the preview is where the island stands already."""
    averaging = nesterov(lr=1.0, momentum=0.0)
    schedules = EAGER, replace(EAGER, eager=False)
    ahead, plain = (Swarm(islands=1, schedule=s, optimizer=averaging).run(steps=24)[0] for s in schedules)
    assert ahead.losses == pytest.approx(plain.losses, abs=1e-5)


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(EAGER, id="one-fragment"),
        pytest.param(replace(EAGER, num_fragments=3, merge_alpha=0.5), id="overlapping"),
        pytest.param(replace(EAGER, delay="auto"), id="auto"),
    ],
)
@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codecs.fp32, id="fp32"),
        pytest.param(lambda: codecs.two_bit(error_feedback=True), id="2bit-feedback"),
    ],
)
def test_islands_agree_and_every_token_counts_once(schedule, codec) -> None:
    results = Swarm(islands=2, schedule=schedule, codec=codec).run(steps=24)
    for result in results.values():
        assert result.error is None
        assert all(report.committed for report in result.reports)
        assert result.tokens_trained == 24 * 8 == result.tokens_credited
    assert results[0].digest == results[1].digest
    assert results[0].head == results[1].head


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("fragments", [1, 3])
def test_a_preview_is_in_no_pseudo_gradient(fragments: int, alpha: float) -> None:
    eager = replace(EAGER, num_fragments=fragments, merge_alpha=alpha)
    ahead, plain = (run(Swarm(schedule=s), 24) for s in (eager, replace(eager, eager=False)))
    assert ahead[0].digest == ahead[1].digest
    torch.testing.assert_close(ahead[0].local, plain[0].local, rtol=0, atol=1e-5)


def test_where_nothing_commits_the_preview_is_taken_back() -> None:
    policy = RoundPolicy(min_participants=2, deadline_s=0.05)
    seen, norms = {}, {}
    for eager in (False, True):
        # nothing commits, so `auto` would stay at plain averaging, whose preview is where the island is
        optimizer = nesterov(lr=0.7, momentum=0.6)
        swarm = Swarm(islands=1, policy=policy, schedule=replace(EAGER, eager=eager), optimizer=optimizer)
        seen[eager] = drifting(swarm, 0, 24, ends=False)
        assert len(swarm.results[0].reports) == 3
        assert not swarm.results[0].committed
        assert swarm.results[0].tokens_left == 24 * 8
        norms[eager] = [report.pseudo_gradient_norm for report in swarm.results[0].reports]
    assert norms[True] == pytest.approx(norms[False], rel=1e-5)
    for step, (plain, ahead) in enumerate(zip(seen[False], seen[True], strict=True), start=1):
        in_flight = step >= 6 and step % 6 < 4
        assert torch.allclose(ahead, plain, rtol=0, atol=1e-5) != in_flight


def test_who_missed_a_round_keeps_its_steps_and_no_preview() -> None:
    """Island 0 commits the first round alone; island 1 has sent its own part when it takes that over."""

    def missing(schedule: Schedule) -> dict[int, Result]:
        alone, both = threading.Event(), threading.Barrier(2, timeout=60)

        def tell(inner_step: int) -> None:
            if inner_step == 10:
                alone.set()
            if inner_step == 11:
                both.wait()  # the second round is due after the next step

        def be_late(inner_step: int) -> None:
            if inner_step == 3:
                assert alone.wait(60)
            if inner_step == 11:
                both.wait()

        swarm = Swarm(schedule=schedule, policy=RoundPolicy(deadline_s=1.0))
        return run(swarm, 24, each=[tell, be_late])

    ahead, plain = missing(EAGER), missing(replace(EAGER, eager=False))
    for results in (ahead, plain):
        assert results[0].reports[0].participants == ("island-0",)
        assert results[1].reports[0].adopted == 1
        assert results[1].tokens_trained == results[1].tokens_credited
        assert results[0].digest == results[1].digest
    assert [r.round_tokens for r in ahead[0].reports] == [r.round_tokens for r in plain[0].reports]
    torch.testing.assert_close(ahead[0].local, plain[0].local, rtol=0, atol=1e-5)
