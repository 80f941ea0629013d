"""A user's ds_config beside a recipe: taken whole, or refused by key."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowcomm.errors import ConfigError
from lowcomm.islands.deepspeed_zero import initialize, recipe_config

RECIPE: dict[str, Any] = {
    "stage": 3, "offload": "none", "micro_batch": 4, "accumulation": 2, "clip_norm": 1.0, "bf16": False,
    "world_size": 2,
}  # fmt: skip


def given(folder: Path, config: object) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(config))
    return path


def test_the_settings_alone_make_a_config() -> None:
    config = recipe_config(None, **{**RECIPE, "offload": "all"})
    assert config["zero_optimization"] == {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    }
    assert (config["train_batch_size"], config["gradient_accumulation_steps"]) == (16, 2)


def test_a_whole_file_is_kept(tmp_path: Path) -> None:
    mine = {
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "train_batch_size": 16,
        "gradient_clipping": "auto",
        "wall_clock_breakdown": True,
    }
    config = recipe_config(given(tmp_path, mine), **RECIPE)
    assert config["zero_optimization"] == mine["zero_optimization"]
    assert config["wall_clock_breakdown"] is True
    assert config["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("key", "config"),
    [
        (
            "train_micro_batch_size_per_gpu = 8, but train.batch_size says 4",
            {"train_micro_batch_size_per_gpu": 8},
        ),
        ("gradient_accumulation_steps = 1", {"gradient_accumulation_steps": 1}),
        ("train_batch_size = 4, but", {"train_batch_size": 4}),
        ("gradient_clipping = 0.5, but shared.inner.clip_norm says 1.0", {"gradient_clipping": 0.5}),
        ("bf16.enabled = true, but train.precision", {"bf16": {"enabled": True}}),
        ("fp16.enabled = true", {"fp16": {"enabled": True}}),
        ('optimizer = {"type": "Adam"}, but shared.inner decides that', {"optimizer": {"type": "Adam"}}),
        ("zero_optimization.stage = 0", {"zero_optimization": {"stage": 0}}),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_contradictions_are_named(tmp_path: Path, key: str, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_config(given(tmp_path, config), **RECIPE)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_contradictions_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_config(given(tmp_path, {"train_batch_size": 7, "scheduler": {"type": "WarmupLR"}}), **RECIPE)
    assert str(caught.value) == (
        f"{tmp_path / 'ds.json'}: contradicts the recipe: train_batch_size = 7, but train.batch_size x ranks "
        'says 16; scheduler = {"type": "WarmupLR"}, but shared.inner decides that; remove these keys, or '
        "change the recipe"
    )


def test_what_can_not_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected a JSON object"):
        recipe_config(given(tmp_path, [1]), **RECIPE)
    with pytest.raises(ConfigError, match="expected a JSON file"):
        recipe_config(tmp_path / "none.json", **RECIPE)
    with pytest.raises(
        ConfigError, match=r"expected island.zero_stage = 3, which shards the parameters, got 2"
    ):
        recipe_config(None, **{**RECIPE, "offload": "all", "stage": 2})
    model = nn.Linear(2, 2)
    one = torch.optim.AdamW(model.parameters())
    with pytest.raises(ConfigError, match="expected one inner optimizer, got 2"):
        initialize(model, [one, one], recipe_config(None, **RECIPE))
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"pip install 'lowcomm\[deepspeed\]'"):
        initialize(model, [one], recipe_config(None, **RECIPE))
