"""Recipes for models in folders and specifications of corpora do what their heads say; on a tiny model."""

from pathlib import Path

import pytest

from lowcomm.config.load import load_config
from lowcomm.data.making.spec import read_spec
from lowcomm.training.export import export
from tests.data.reading.corpora import counting, make_corpus
from tests.training.islands import finished, train_islands

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize("name", ["continued", "lora"])
def test_a_model_in_a_folder_is_trained_on(name: str, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "corpus").mkdir()
    manifest = make_corpus(tmp_path / "corpus", {"numbers": counting(8, 30)}, {"numbers": counting(2, 30)})
    settings = (
        f"shared.task.model={tmp_path / 'base'}", f"shared.data.manifest={manifest.digest}",
        f"data.source={tmp_path / 'corpus'}", "shared.model.context=16", "shared.data.shards=2",
        "shared.schedule.inner_steps=5", "shared.inner.lr=0.01", "train.steps=20", "train.batch_size=4",
        "train.grad_accumulation=1", "train.threads=1", "train.log_every=5", "exchange.lease_s=60",
        "metrics.wandb=off", "metrics.console=off",
    )  # fmt: skip
    summaries = finished(train_islands(load_config(RECIPES / f"{name}.toml", settings), tmp_path))
    assert len({summary.digest for summary in summaries}) == 1
    assert all(summary.last_loss < summary.first_loss for summary in summaries)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert summaries[0].parameters == (2 * 2 * 16 * (32 + 32) if name == "lora" else whole)
    export(tmp_path / "island-0", tmp_path / "out")
    weights = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    assert (tmp_path / "out" / weights).exists()


@pytest.mark.parametrize("path", sorted((RECIPES / "corpora").glob("*.toml")), ids=lambda path: path.stem)
def test_specifications_of_corpora_are_read_and_say_where_they_come_from(path: Path) -> None:
    spec = read_spec(path)
    assert all(source.licence and source.origin for source in spec.sources)
    assert "Needs:" in path.read_text()
    assert "Run:" in path.read_text()
