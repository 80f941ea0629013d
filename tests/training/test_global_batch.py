"""`shared.data.global_batch_tokens`: how many batches an island accumulates follows how many there are."""

import logging
from pathlib import Path

import pytest

from lowcomm.config.load import load_config
from lowcomm.errors import ConfigError
from lowcomm.training.loading import micro_steps, warn_of_batches
from tests.training.islands import RECIPE, finished, lines, train_islands

BATCH = 4 * 16
"""Tokens of a batch of the recipe."""


def config_of(folder: Path, *settings: str):
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    return load_config(recipe, settings)


def test_an_equal_part_for_each(tmp_path: Path) -> None:
    config = config_of(tmp_path, f"shared.data.global_batch_tokens={8 * BATCH}")
    assert [micro_steps(config, BATCH, islands) for islands in (1, 2, 4, 8, 16)] == [8, 4, 2, 1, 1]
    assert micro_steps(config_of(tmp_path, "train.grad_accumulation=3"), BATCH, 7) == 3


def test_islands_train_on_their_parts(tmp_path: Path) -> None:
    config = config_of(tmp_path, f"shared.data.global_batch_tokens={4 * BATCH}", "train.steps=10")
    summaries = finished(train_islands(config, tmp_path))
    assert [summary.tokens for summary in summaries] == [10 * 2 * BATCH] * 2
    (start,) = lines(tmp_path / "island-0", "start")
    assert start["step_tokens"] == 2 * BATCH


def test_what_batches_do_not_make_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path, "shared.data.global_batch_tokens=100")
    with caplog.at_level(logging.WARNING):
        warn_of_batches(config, BATCH, 4)
        warn_of_batches(config_of(tmp_path, f"shared.data.global_batch_tokens={4 * BATCH}"), BATCH, 2)
    (record,) = caplog.records
    assert "= 100: 4 islands with batches of 64 tokens like this one's make 256" in record.getMessage()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.grad_accumulation=2", r"expected 1 with shared\.data\.global_batch_tokens = 100"),
        ('island.engine="deepspeed"', r"expected 0 with island\.engine = deepspeed"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, "shared.data.global_batch_tokens=100", setting)
