"""Causal language models of transformers as tasks: made from a table or a folder, trained, exported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError
from lowcomm.storage.checkpoint import Checkpoints, saved_fragments
from lowcomm.training.build import build_model, build_task
from lowcomm.training.export import export
from tests.training.islands import finished, lines, losses, make_config, train_islands

transformers = pytest.importorskip("transformers")

LLAMA = (
    "{model_type='llama', vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=1, "
    "num_attention_heads=2, max_position_embeddings=16, tie_word_embeddings=false}"
)
GPT2 = (
    "{model_type='gpt2', vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=16}"  # tied, dropout 0.1
)
QWEN = LLAMA.replace("'llama'", "'qwen2', num_key_value_heads=1")


def recipe(folder: Path, model: str, *overrides: str) -> Config:
    kind = ("shared.task.kind=hf", f"shared.task.model={model}", "shared.inner.name=adamw")
    return make_config(folder, *kind, "shared.schedule.num_fragments=2", *overrides)


def anchor_of(run: Path) -> dict[str, Tensor]:
    checkpoints, anchor = Checkpoints(run / "checkpoints", keep=4), {}
    for saved in saved_fragments(checkpoints, checkpoints.steps()[-1], 2):
        anchor.update(saved["tensors"])
    return anchor


@pytest.mark.parametrize("model", [LLAMA, GPT2, QWEN], ids=["llama", "gpt2", "qwen2"])
def test_two_islands_train_it_and_the_export_gives_the_same_logits(tmp_path: Path, model: str) -> None:
    config = recipe(tmp_path, model)
    summaries = finished(train_islands(config, tmp_path))
    assert len({summary.digest for summary in summaries}) == 1
    seen = losses(tmp_path / "island-0")
    assert seen[20] < seen[5]
    (start,) = lines(tmp_path / "island-0", "start")
    assert start["parameters"] == build_task(config).facts.parameters

    export(tmp_path / "island-1", tmp_path / "out")
    found, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    trained = build_model(config, build_task(config)).eval()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(anchor_of(tmp_path / "island-0")[name])
        ids = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(0))
        logits, expected = found.eval()(ids).logits, trained(ids).logits
    assert torch.equal(logits, expected)
    assert type(found).__name__ in (tmp_path / "out" / "README.md").read_text()


def test_dropout_goes_on_where_it_stood(tmp_path: Path) -> None:
    """As if there had been no restart: the random numbers of each rank are in the checkpoint."""
    config = recipe(tmp_path, GPT2)
    (whole,) = finished(train_islands(config, tmp_path / "whole", islands=1))
    (other,) = finished(train_islands(config, tmp_path / "other", islands=1))
    assert other.digest == whole.digest, "they begin with those of the seed"
    island = tmp_path / "other" / "island-0"
    shutil.rmtree(island / "checkpoints" / "step-000000020")
    (island / "metrics.jsonl").unlink()
    torch.rand(7)  # whatever else has drawn in between
    (again,) = finished(train_islands(config, tmp_path / "other", islands=1))
    (start,) = lines(island, "start")
    assert start["resumed_from"] == 10
    assert again.digest == whole.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weights_in_a_folder_are_trained_on_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    config = recipe(tmp_path, LLAMA, "shared.seed=5")
    expected = build_model(config, build_task(config)).to(dtype)
    expected.save_pretrained(tmp_path / "base")  # type: ignore[operator]
    folder = recipe(tmp_path, "base")
    assert folder.train.task_folder == str(tmp_path)
    found = build_model(folder, build_task(folder))
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    pairs = zip(found.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(mine, its.float()) for mine, its in pairs)
    # without weights they are drawn by the seed, as from a table
    (tmp_path / "base" / "model.safetensors").unlink()
    drawn = [build_model(c, build_task(c)) for c in (folder, recipe(tmp_path, "base/config.json"))]
    table = build_model(recipe(tmp_path, LLAMA), build_task(recipe(tmp_path, LLAMA)))
    for model in drawn:
        assert all(map(torch.equal, model.parameters(), table.parameters()))


@pytest.mark.parametrize(
    ("model", "overrides", "expected"),
    [
        ("", (), r"shared\.task\.model: expected a table with model_type, a config\.json, .* got nothing"),
        ("no/such", (), r"shared\.task\.model: expected a table .* got 'no/such'; a path is looked for in /"),
        ("text", (), r"shared\.task\.model: /\S+/text: .*config\.json"),
        ("{hidden_size=16}", (), r"shared\.task\.model: model_type = None: "),
        ("{model_type='lama'}", (), r"shared\.task\.model: model_type = 'lama': .*[Uu]nrecognized"),
        ("{model_type='t5'}", (), r"shared\.task\.model: expected a causal language model, got a t5"),
        ("{model_type='llama', hiden=1}", (), r"shared\.task\.model\.hiden: expected a setting of llama"),
        ("{model_type='llama', vocab_size=99}", (), r"model\.vocab_size: expected at least 256, .* got 99"),
        (LLAMA, ("shared.model.context=32",), r"shared\.model\.context: expected at most .* = 16, got 32"),
    ],
    ids=["nothing", "no path", "no config", "no type", "typo", "no causal", "unknown", "vocab", "context"],
)
def test_what_is_no_model(tmp_path: Path, model: str, overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        build_task(recipe(tmp_path, model, *overrides))
    assert "\n" not in str(caught.value)


def test_weights_that_are_damaged_or_lack_some_are_one_line(tmp_path: Path) -> None:
    config = recipe(tmp_path, LLAMA)
    build_model(config, build_task(config)).save_pretrained(tmp_path / "base")  # type: ignore[operator]
    weights = tmp_path / "base" / "model.safetensors"
    kept = load_file(weights)
    kept.pop("lm_head.weight")
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"base: expected all weights .* got none for lm_head\.weight"):
        build_model(config, build_task(recipe(tmp_path, "base")))
    weights.write_bytes(b"not one")
    task = build_task(recipe(tmp_path, "base"))
    with pytest.raises(ConfigError, match=r"shared\.task\.model: /\S+/base: ") as caught:
        build_model(config, task)
    assert "\n" not in str(caught.value)
