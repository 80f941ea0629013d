from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from lowcomm.algorithms.inner_optimizers import make_inner_optimizers
from lowcomm.algorithms.learning_rate import SCHEDULES, LrSchedule, set_lr
from lowcomm.algorithms.muon import Muon, orthogonalised
from lowcomm.errors import ConfigError
from lowcomm.models.gpt import GPT, GPTShape

SHAPE = GPTShape(vocab_size=32, dim=16, layers=2, heads=2, kv_heads=2, ffn_dim=24, context=16)


def make(model: nn.Module, name: str, **changes: object) -> list[torch.optim.Optimizer]:
    settings = {
        "lr": 0.02,
        "adamw_lr": 0.004,
        "muon_momentum": 0.95,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        **changes,
    }
    return make_inner_optimizers(model, name=name, **settings)  # type: ignore[arg-type]


def members(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


class Plain(nn.Module):
    """Without `hidden_matrices`: an embedding tied to the head, two layers that share a weight, a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.frozen(self.second(self.first(self.embedding(ids)))))
        return out


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("model", [GPT(SHAPE), Plain()], ids=["gpt", "plain"])
def test_every_trainable_tensor_has_one_optimizer(name: str, model: nn.Module) -> None:
    seen = [members(optimizer) for optimizer in make(model, name)]
    assert sum(len(part) for part in seen) == len(set.union(*seen))
    assert set.union(*seen) == {id(p) for p in model.parameters() if p.requires_grad}


def test_muon_has_the_hidden_matrices_of_the_model() -> None:
    model = GPT(SHAPE)
    muon, adamw = make(model, "muon")
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    assert members(muon) == {id(p) for p in model.hidden_matrices()}
    assert {id(model.lm_head.weight), id(model.model.embed_tokens.weight)} <= members(adamw)


def test_muon_finds_the_hidden_matrices_of_any_module() -> None:
    model = Plain()
    muon, _ = make(model, "muon")
    assert members(muon) == {id(model.first.weight)}


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_muon_makes_the_update_of_torchs(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(shape, generator=draw), torch.randn(3, *shape, generator=draw)

    def after(optimizer: torch.optim.Optimizer) -> torch.Tensor:
        (weight,) = optimizer.param_groups[0]["params"]
        for gradient in gradients:
            weight.grad = gradient
            optimizer.step()
        return weight.detach()

    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    mine = after(Muon([nn.Parameter(start.clone())], **settings))
    torchs = torch.optim.Muon([nn.Parameter(start.clone())], adjust_lr_fn="match_rms_adamw", **settings)
    torch.testing.assert_close(mine, after(torchs), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)])
def test_muon_loses_nothing_to_bfloat16_on_the_cpu(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    a, b, c = 3.4445, -4.775, 2.0315
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s /= s.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    found = orthogonalised(matrix, (a, b, c), 5, 1e-7)
    torch.testing.assert_close(found, (u * s @ v).float())


def test_only_matrices_decay() -> None:
    model = GPT(SHAPE)
    decay = {
        id(p): group["weight_decay"]
        for optimizer in make(model, "muon")
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert all(decay[id(p)] == (0.1 if p.ndim >= 2 else 0.0) for p in model.parameters())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_they_learn_and_restart_bit_for_bit(name: str) -> None:
    ids = torch.randint(32, (4, 17), generator=torch.Generator().manual_seed(0))

    def step(model: GPT, optimizers: list[torch.optim.Optimizer], number: int) -> float:
        set_lr(optimizers, LrSchedule(warmup_fraction=0.2, final_fraction=0.1).factor(number, 12))
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    first = GPT(SHAPE, seed=1)
    optimizers = make(first, name)
    losses = [step(first, optimizers, number) for number in range(6)]
    second = GPT(SHAPE, seed=2)
    second.load_state_dict(first.state_dict())
    resumed = make(second, name)
    for optimizer, saved in zip(resumed, optimizers, strict=True):
        optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))  # else they share moments
    after = [step(first, optimizers, number) for number in range(6, 12)]
    assert [step(second, resumed, number) for number in range(6, 12)] == after
    assert after[-1] < losses[0] - 0.25


def test_what_makes_no_sense_is_said() -> None:
    with pytest.raises(ConfigError, match="expected adamw or muon, got 'sgd'"):
        make(GPT(SHAPE), "sgd")
    with pytest.raises(ConfigError, match="no hidden matrices; use adamw"):
        make(nn.Linear(4, 4), "muon")
    with pytest.raises(ConfigError, match="expected trainable parameters, found none"):
        make(nn.Linear(4, 4).requires_grad_(False), "adamw")


def factors_of(name: str) -> list[float]:
    schedule = LrSchedule(name=name, warmup_fraction=0.1, decay_fraction=0.25, final_fraction=0.2)
    return [schedule.factor(step, 100) for step in range(101)]


def test_warm_up_then_cosine() -> None:
    factors = factors_of("cosine")
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_linear_falls_evenly() -> None:
    factors = factors_of("linear")
    assert factors[10:] == pytest.approx([1 - 0.8 * n / 90 for n in range(91)])


def test_wsd_stays_at_the_peak_until_its_decay() -> None:
    factors = factors_of("wsd")
    assert factors[10:76] == [1.0] * 66
    assert factors[75:] == pytest.approx([0.2 + 0.8 * (1 - math.sqrt(n / 25)) for n in range(26)])


def test_wsd_that_is_all_decay_falls_after_the_warm_up() -> None:
    schedule = LrSchedule(name="wsd", warmup_fraction=0.5, decay_fraction=0.9, final_fraction=0.0)
    factors = [schedule.factor(step, 10) for step in range(11)]
    assert factors[4:6] == [1.0, 1.0]
    assert factors[10] == 0.0
    assert all(a > b for a, b in itertools.pairwise(factors[5:]))


def test_constant_stays_at_the_peak() -> None:
    assert factors_of("constant")[9:] == [1.0] * 92


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [100, 150, 10_000])
def test_past_the_end_the_last_rate_stays(step: int, name: str) -> None:
    schedule = LrSchedule(name=name, warmup_fraction=0.1, decay_fraction=0.25, final_fraction=0.2)
    assert schedule.factor(step, 100) == pytest.approx(1.0 if name == "constant" else 0.2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 7])
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_short_runs_have_sensible_rates(total: int, warmup: float, name: str) -> None:
    schedule = LrSchedule(name=name, warmup_fraction=warmup, decay_fraction=0.2, final_fraction=0.1)
    factors = [schedule.factor(step, total) for step in range(total)]
    assert all(0.0 < factor <= 1.0 and math.isfinite(factor) for factor in factors)
    assert max(factors) == 1.0


def test_each_group_keeps_its_own_peak() -> None:
    optimizers = make(GPT(SHAPE), "muon")
    set_lr(optimizers, 0.5)
    set_lr(optimizers, 0.25)
    assert {group["lr"] for group in optimizers[0].param_groups} == {0.005}
    assert {group["lr"] for group in optimizers[1].param_groups} == {0.001}
