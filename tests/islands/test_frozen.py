"""The digest of what is not trained: the same for the same bits, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowcomm import wrap_island
from lowcomm.islands import frozen


def model() -> nn.Module:
    torch.manual_seed(0)
    parts = nn.Sequential(nn.Linear(5, 4), nn.Embedding(6, 3), nn.BatchNorm1d(4))
    parts[0].requires_grad_(False)
    parts[1].requires_grad_(False)
    return parts


def digest(parts: nn.Module) -> str:
    trained = [parameter for parameter in parts.parameters() if parameter.requires_grad]
    return wrap_island(parts, torch.optim.SGD(trained, lr=0.1)).frozen_digest()


@torch.no_grad()
def one_bit(parts: nn.Module) -> None:
    parts[1].weight.view(torch.int32)[3, 2] ^= 1


@torch.no_grad()
def swapped(parts: nn.Module) -> None:
    parts[1].weight.copy_(parts[1].weight.flip(0))


def renamed(parts: nn.Module) -> None:
    parts.add_module("other", parts._modules.pop("1"))


def fewer(parts: nn.Module) -> None:
    parts[0].requires_grad_(True)


@pytest.mark.parametrize(
    "change",
    [one_bit, swapped, renamed, fewer, lambda parts: parts[0].bfloat16(), lambda parts: parts[0].double()],
    ids=["one-bit", "rows-swapped", "renamed", "fewer", "bf16", "fp64"],
)
def test_other_frozen_weights_have_another_digest(change: Callable[[nn.Module], None]) -> None:
    other = model()
    change(other)
    assert digest(other) != digest(model())


@torch.no_grad()
def trained(parts: nn.Module) -> None:
    parts[2].weight.add_(1.0)


@torch.no_grad()
def used(parts: nn.Module) -> None:
    parts[2](torch.randn(8, 4))


def transposed(parts: nn.Module) -> None:
    """The same numbers, laid out otherwise."""
    parts[0].weight.data = parts[0].weight.data.t().contiguous().t()


@pytest.mark.parametrize("change", [trained, used, transposed], ids=["trained", "buffers", "strides"])
def test_what_else_changes_does_not_count(change: Callable[[nn.Module], None]) -> None:
    other = model()
    change(other)
    assert digest(other) == digest(model())


def test_it_says_what_it_is_of_and_is_empty_where_all_is_trained() -> None:
    assert digest(model()).startswith("3 tensors of float32 ")
    mixed = model()
    mixed[0].to(torch.float16)
    mixed[1].to(torch.bfloat16)
    assert digest(mixed).startswith("3 tensors of bfloat16+float16 ")
    assert digest(nn.Linear(2, 2)) == ""


def test_wrapping_for_speed_leaves_it() -> None:
    assert digest(torch.compile(model())) == digest(model())


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_every_type_and_scalars_are_taken_in_chunks(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantized() -> nn.Module:
        parts = nn.Linear(2, 2)
        values = torch.arange(300).remainder(2).to(kind)
        parts.register_parameter("base", nn.Parameter(values, requires_grad=False))
        parts.register_parameter("scale", nn.Parameter(values[1].clone(), requires_grad=False))
        parts.register_parameter("none", nn.Parameter(values[:0].clone(), requires_grad=False))
        return parts

    whole = digest(quantized())
    monkeypatch.setattr(frozen, "CHUNK_BYTES", 64)
    assert digest(quantized()) == whole
