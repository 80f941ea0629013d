"""Rounds among islands: equal to the textbook, bit-identical everywhere, every token accounted for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowcomm import Schedule, codecs, nesterov
from lowcomm.algorithms.outer_optimizers.nesterov import Nesterov
from tests.outer.swarm import Swarm, batch, in_parallel, make_model, plain_diloco, train_step


@pytest.mark.parametrize(
    "optimizer",
    [nesterov(), nesterov(lr=0.7, momentum=0.6), nesterov(lr=0.7)],
    ids=["auto", "fixed", "lr fixed"],
)
def test_one_fragment_without_delay_is_plain_diloco(optimizer: Nesterov) -> None:
    swarm = Swarm(islands=3, optimizer=optimizer)
    results = swarm.run(steps=24)
    expected = plain_diloco(swarm, steps=24)
    for result in results.values():
        assert result.error is None
        torch.testing.assert_close(result.local, expected, rtol=0, atol=1e-6)


def test_two_islands_with_every_step_a_round_are_data_parallel() -> None:
    swarm = Swarm(islands=2, schedule=Schedule(inner_steps=1), optimizer=nesterov(lr=1.0, momentum=0.0))
    results = swarm.run(steps=10)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
    for step in range(10):
        train_step(model, optimizer, torch.cat([batch(0, step), batch(1, step)]))
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    for result in results.values():
        torch.testing.assert_close(result.local, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("islands", "schedule"),
    [
        pytest.param(1, Schedule(inner_steps=4), id="alone"),
        pytest.param(2, Schedule(inner_steps=4), id="two"),
        pytest.param(5, Schedule(inner_steps=4), id="five"),
        pytest.param(2, Schedule(inner_steps=4, num_fragments=4), id="four-fragments"),
        pytest.param(3, Schedule(inner_steps=6, num_fragments=3, fragmenting="strided"), id="strided"),
        pytest.param(3, Schedule(inner_steps=6, delay=2, merge_alpha=0.5), id="delay"),
        pytest.param(2, Schedule(inner_steps=6, num_fragments=2, delay="auto", merge_alpha=0.5), id="auto"),
        pytest.param(3, Schedule(inner_steps=6, num_fragments=2, delay=5, merge_alpha=0.5), id="overlapping"),
    ],
)
@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codecs.fp32, id="fp32"),
        pytest.param(codecs.bf16, id="bf16"),
        pytest.param(codecs.int8, id="int8"),
        pytest.param(lambda: codecs.int8(error_feedback=True), id="int8-feedback"),
        pytest.param(lambda: codecs.two_bit(error_feedback=True), id="2bit-feedback"),
        pytest.param(lambda: codecs.topk(error_feedback=True), id="topk-feedback"),
    ],
)
def test_every_commit_has_one_digest_and_every_token_counts_once(islands, schedule, codec) -> None:
    results = Swarm(islands=islands, schedule=schedule, codec=codec).run(steps=24)
    histories = []
    for result in results.values():
        assert result.error is None
        assert all(report.committed for report in result.reports)
        assert all(len(report.participants) == islands for report in result.reports)
        assert result.tokens_trained == 24 * 8 == result.tokens_credited + result.tokens_left
        assert result.tokens_left == 0
        histories.append([(r.fragment, r.outer_step, r.digest, r.head) for r in result.reports])
    assert all(sorted(history) == sorted(histories[0]) for history in histories)
    assert len({result.digest for result in results.values()}) == 1
    assert len({result.head for result in results.values()}) == 1


def test_islands_that_begin_with_other_weights_take_over_the_founders() -> None:
    swarm = Swarm(islands=2)
    results = swarm.results
    in_parallel([lambda: swarm.train(0, 8, seed=0), lambda: swarm.train(1, 8, seed=1)], results, [0, 1])
    assert results[0].digest == results[1].digest != ""
    assert results[1].how == "snapshot"
    assert torch.equal(results[0].local, results[1].local)


def test_every_committed_round_says_how_long_forming_and_moving_took() -> None:
    results = Swarm(islands=2, codec=codecs.fp32).run(steps=40)
    for result in results.values():
        assert len(result.reports) > 4
        for report in result.reports:
            assert report.committed
            assert 0 < report.transfer_s < report.round_s
            assert report.form_s + report.transfer_s <= report.round_s


def test_loss_falls() -> None:
    results = Swarm(islands=2, codec=codecs.int8).run(steps=120)
    for result in results.values():
        assert sum(result.losses[-10:]) < 0.9 * sum(result.losses[:10])


def test_compression_ratio_and_cosine_are_what_they_say() -> None:
    results = Swarm(islands=2, codec=codecs.fp32, chunk_bytes=1 << 20).run(steps=4)
    report = results[0].reports[0]
    chunks = 2  # one per island; each is preceded by its length in four bytes
    elements = sum(p.numel() for p in make_model().parameters())
    assert report.compression_ratio == pytest.approx(4 * elements / (4 * elements + 4 * chunks))
    anchor = nn.utils.parameters_to_vector(make_model().parameters()).detach()
    gradients = []
    for island in range(2):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(4):
            train_step(model, optimizer, batch(island, step))
        gradients.append(anchor - nn.utils.parameters_to_vector(model.parameters()).detach())
    assert report.cosine == pytest.approx(float(torch.cosine_similarity(*gradients, dim=0)), abs=1e-4)
    assert report.pseudo_gradient_norm == pytest.approx(float(gradients[0].norm()), rel=1e-4)
