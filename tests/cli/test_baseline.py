"""The data-parallel baseline: equal tokens, equal text, one key per setting that matters."""

import json
from pathlib import Path

import pytest

from lowcomm.cli.quickstart import BASELINE_RECIPE, COMMITTED, RECIPE
from lowcomm.config.load import load_config
from lowcomm.training.baseline import baseline_config, baseline_key, run_baseline

SMALL = (
    "shared.model.dim=32", "shared.model.layers=1", "shared.model.heads=2", "shared.model.kv_heads=2",
    "shared.model.ffn_dim=64", "shared.model.context=32", "shared.data.shards=2", "train.steps=30",
    "train.batch_size=2", "train.log_every=10", "train.eval_windows=16", "train.threads=1",
)  # fmt: skip


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text(
            f"document {number}: " + "the same words again and again. " * 60
        )
    return folder


def settings(source: Path, *more: str):
    return load_config(None, [*SMALL, f"data.source={source}", *more])


def test_it_learns_on_the_tokens_of_all_islands(source):
    steps: list[int] = []
    figures = run_baseline(settings(source), 2, None, on_step=steps.append)
    assert figures["tokens"] == 2 * 30 * 2 * 32
    assert steps == list(range(1, 31))
    assert [tokens for tokens, _ in figures["train"]] == [2 * 2 * 32 * step for step in (10, 20, 30)]
    assert figures["train"][-1][1] < figures["train"][0][1]
    assert figures["eval_loss"] < 5.5


def test_it_gives_the_same_figures_again(source):
    first, second = (run_baseline(settings(source), 2, None) for _ in range(2))
    assert {**first, "wall_s": 0} == {**second, "wall_s": 0}


def test_accumulated_batches_count(source):
    figures = run_baseline(settings(source, "train.grad_accumulation=2", "train.steps=10"), 1, None)
    assert figures["tokens"] == 1 * 10 * 2 * 2 * 32


def test_the_quickstart_finds_its_committed_figures():
    config = load_config(RECIPE)
    assert baseline_key(config, 2, BASELINE_RECIPE) in json.loads(COMMITTED.read_text())


def test_its_own_learning_rate_is_for_the_same_optimizer_only(tmp_path, source):
    recipe = tmp_path / "baseline.toml"
    recipe.write_text('[shared.inner]\nname = "muon"\nlr = 0.005\n')
    assert baseline_config(settings(source), recipe).shared.inner.lr == 0.005
    adamw = settings(source, "shared.inner.name=adamw", "shared.inner.lr=0.001")
    assert baseline_config(adamw, recipe) == adamw
    assert baseline_config(adamw, None) == adamw


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("shared.run_id=other", True),
        ("shared.schedule.inner_steps=5", True),
        ("shared.codec.name=fp32", True),
        ("shared.outer.lr=1.0", True),
        ("shared.data.same=false", True),
        ("train.eval_every=3", True),
        ("shared.seed=1", False),
        ("shared.model.dim=64", False),
        ("train.steps=31", False),
        ("train.batch_size=4", False),
        ("shared.inner.lr=0.1", False),
    ],
    ids=str,
)
def test_key_is_of_what_its_figures_depend_on(source, override, same):
    key = baseline_key(settings(source), 2, None)
    assert (baseline_key(settings(source, override), 2, None) == key) is same
    assert baseline_key(settings(source), 3, None) != key
