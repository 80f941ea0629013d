"""Models of transformers on engines of several ranks, beside a plain island in one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.islands.ranks import run_ranks
from tests.tasks.model_ranks import models_of


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("fsdp2", marks=pytest.mark.processes),
        pytest.param("deepspeed-zero1", marks=pytest.mark.slow),
        pytest.param("deepspeed-zero2", marks=pytest.mark.slow),
        pytest.param("deepspeed-zero3", marks=pytest.mark.processes),
        pytest.param("ddp-compiled", marks=pytest.mark.slow),
        pytest.param("fsdp2-compiled", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_and_a_plain_island_hold_one_anchor(engine: str, tmp_path: Path) -> None:
    """Tied and untied weights, dropout, buffers, heads of another size than the width divides into."""
    lead, other = run_ranks(2, tmp_path, engine, module="tests.tasks.model_ranks")
    assert list(lead) == models_of(engine)
    for model in lead:
        mine, plain = lead[model]["mine"], lead[model]["plain"]
        assert mine["digests"] == plain["digests"] == other[model]["mine"]["digests"]
        assert len(mine["digests"]) == 4
        assert mine["digest"] == plain["digest"]
        assert list(mine["anchor"]) == list(plain["anchor"])
        assert all(map(torch.equal, mine["anchor"].values(), plain["anchor"].values()))
        # each evaluates the same anchor with its own engine
        assert mine["eval"] == pytest.approx(plain["eval"], abs=1e-5)
