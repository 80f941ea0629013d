from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowcomm.errors import ModelError
from lowcomm.models.gpt import GPT, GPTShape, apply_rope, rope_table

SHAPE = GPTShape(vocab_size=50, dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=48, context=24)


def some_ids(*size: int) -> torch.Tensor:
    return torch.randint(50, size, generator=torch.Generator().manual_seed(0))


def test_logits_and_loss_agree() -> None:
    model, ids = GPT(SHAPE), some_ids(3, 25)
    logits = model(ids[:, :-1])
    assert logits.shape == (3, 24, 50)
    by_hand = -logits.log_softmax(-1).gather(2, ids[:, 1:, None]).mean()
    assert torch.allclose(model(ids[:, :-1], ids[:, 1:]), by_hand, atol=1e-5)


@torch.no_grad()
def test_no_token_sees_the_future() -> None:
    model, ids = GPT(SHAPE), some_ids(1, 24)
    other = ids.clone()
    other[0, 15:] = (other[0, 15:] + 1) % 50
    assert torch.allclose(model(ids)[:, :15], model(other)[:, :15], atol=1e-6)
    assert not torch.allclose(model(ids)[:, 15:], model(other)[:, 15:], atol=1e-3)


def test_rotary_positions_depend_on_distance_only() -> None:
    cos, sin = rope_table(40, 16, 10_000.0)
    q, k = (torch.randn(16, generator=torch.Generator().manual_seed(n)).expand(1, 1, 40, 16) for n in (0, 1))
    scores = apply_rope(q, cos, sin)[0, 0] @ apply_rope(k, cos, sin)[0, 0].T
    for distance in (0, 1, 7):
        diagonal = scores.diagonal(-distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_the_seed_alone_decides_the_first_weights() -> None:
    torch.manual_seed(1)
    first = GPT(SHAPE, seed=5).state_dict()
    torch.manual_seed(2)
    second, other = GPT(SHAPE, seed=5).state_dict(), GPT(SHAPE, seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_tied_embeddings_are_one_tensor() -> None:
    model = GPT(replace(SHAPE, tie_embeddings=True))
    names = [name for name, _ in model.named_parameters()]
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_every_parameter_has_a_gradient() -> None:
    model, ids = GPT(SHAPE), some_ids(2, 25)
    model(ids[:, :-1], ids[:, 1:]).backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_loss_is_fp32_under_bf16_autocast() -> None:
    model, ids = GPT(SHAPE), some_ids(2, 25)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids[:, :-1], ids[:, 1:])
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, model(ids[:, :-1], ids[:, 1:]), rtol=0.02)


def test_first_loss_is_that_of_a_uniform_guess() -> None:
    model, ids = GPT(SHAPE), some_ids(8, 25)
    assert float(model(ids[:, :-1], ids[:, 1:])) == pytest.approx(torch.tensor(50.0).log().item(), rel=0.02)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 30}, "dim: expected heads = 4 times an even number"),
        ({"dim": 12}, "dim: expected heads = 4 times an even number"),
        ({"kv_heads": 3}, "kv_heads: expected a divisor of heads = 4, got 3"),
    ],
    ids=["heads don't divide", "odd head", "kv heads don't divide"],
)
def test_impossible_shapes_are_said(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(SHAPE, **sizes)


def test_more_tokens_than_the_context_are_said() -> None:
    with pytest.raises(ModelError, match="expected at most context = 24 tokens, got 25"):
        GPT(SHAPE)(some_ids(1, 25))


@pytest.mark.parametrize("tied", [False, True], ids=["two-tables", "tied"])
def test_the_number_of_parameters_is_known_before_the_model_is_built(tied):
    shape = GPTShape(
        vocab_size=11, dim=16, layers=3, heads=4, kv_heads=2, ffn_dim=24, context=8, tie_embeddings=tied
    )
    assert shape.parameters == sum(parameter.numel() for parameter in GPT(shape).parameters())
