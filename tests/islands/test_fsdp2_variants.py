"""HSDP meshes, bfloat16, activation checkpointing, compiled modules and mixed types: as one plain rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.islands.ranks import run_ranks
from tests.islands.variants import STEPS, VARIANTS, batch, everything, plain, train, written

RANKS = 4
pytestmark = pytest.mark.processes
ROUNDED = ("bf16", "hsdp-bf16-checkpointing", "dtypes")
"""Compute in bfloat16, so they come near only: AdamW's first steps take the sign of gradients."""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(RANKS, tmp_path_factory.mktemp("variants"), module="tests.islands.variants")


@pytest.mark.parametrize("variant", VARIANTS)
def test_four_ranks_train_as_one(ranks: list[dict[str, dict[str, Any]]], variant: str) -> None:
    one, lead = plain(variant), ranks[0][variant]
    start = everything(one)
    train(one, range(STEPS))
    assert lead["type"] == "FSDP2Island"
    assert [(name, tuple(shape)) for name, shape in lead["layout"]] == [
        (spec.name, spec.shape) for spec in one.layout
    ]
    moved = everything(one) - start
    apart = float((lead["trained"] - everything(one)).norm() / moved.norm())
    assert apart < (0.3 if variant in ROUNDED else 1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_and_written_is_what_is_used(
    ranks: list[dict[str, dict[str, Any]]], variant: str
) -> None:
    one = plain(variant)
    one.write(range(len(one.layout)), written(one))
    assert torch.equal(ranks[0][variant]["loaded"], ranks[0][variant]["trained"])
    assert torch.equal(ranks[0][variant]["written"], written(one))
    with torch.no_grad():
        expected = one.model(*batch(99))
    for rank in ranks:
        assert torch.allclose(rank[variant]["loss"], expected, rtol=0.02 if variant in ROUNDED else 1e-5)


def test_types_stay_as_they_are(ranks: list[dict[str, dict[str, Any]]]) -> None:
    assert ranks[0]["dtypes"]["dtypes"] == ["torch.bfloat16", "torch.float32"]
    assert ranks[0]["bf16"]["dtypes"] == ["torch.float32"]
