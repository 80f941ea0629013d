from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lowcomm.config.load import from_dict, to_toml
from lowcomm.config.schema import Config
from lowcomm.errors import CheckpointError, StorageError
from lowcomm.models.gpt import GPT, GPTShape
from lowcomm.storage.checkpoint import Checkpoints
from lowcomm.training.export import export

SIZES = {"dim": 32, "layers": 2, "heads": 4, "ffn_dim": 48, "context": 64}


def make_run(path: Path, **sizes: object) -> tuple[Config, GPT]:
    """A run folder as the trainer leaves it, with weights that are far from their initial values."""
    config = from_dict({"shared": {"run_id": "demo", "model": {"kv_heads": 4, **SIZES, **sizes}}})
    model = GPT(GPTShape(vocab_size=256, **vars(config.shared.model)), seed=3)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    path.mkdir()
    (path / "config.toml").write_text(to_toml(config))
    names = [name for name, _ in model.named_parameters()]
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    sizes_of = [parameter.numel() for parameter in model.parameters()]
    anchor = {
        name: part.view(parameter.shape)  # views of one fragment, as in the outer loop
        for name, part, parameter in zip(names, flat.split(sizes_of), model.parameters(), strict=True)
    }
    checkpoints = Checkpoints(path / "checkpoints", keep=3)
    checkpoints.save(10, {"fragment-0": {"tensors": {n: torch.zeros_like(t) for n, t in anchor.items()}}})
    checkpoints.save(20, {"fragment-0": {"tensors": anchor}, "island": {"step": 20}})
    return config, model


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["full heads", "grouped heads", "one key head"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_gives_the_same_logits(tmp_path: Path, kv_heads: int, tied: bool) -> None:
    transformers = pytest.importorskip("transformers")
    _, model = make_run(tmp_path / "run", kv_heads=kv_heads, tie_embeddings=tied, rope_theta=5_000.0)
    assert export(tmp_path / "run", tmp_path / "out") == 20
    llama, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(llama).__name__ == "LlamaForCausalLM"
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = torch.randint(256, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = llama(ids).logits, model(ids)
    assert expected.std() > 0.5  # or closeness would say nothing
    assert torch.allclose(logits, expected, atol=1e-4)
    assert llama.generation_config.eos_token_id == 0


def test_an_older_step_and_an_older_export(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    make_run(tmp_path / "run")
    out = tmp_path / "deep" / "out"
    export(tmp_path / "run", out)
    (out / "notes.txt").write_text("mine")
    assert export(tmp_path / "run", out, step=10) == 10
    assert all(not tensor.any() for tensor in load_file(out / "model.safetensors").values())
    assert sorted(item.name for item in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "notes.txt",
    ]
    assert "after 10 inner steps" in (out / "README.md").read_text()
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


def test_what_is_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"expected the run folder of an island, found no config\.toml"):
        export(tmp_path, tmp_path / "out")
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(StorageError, match="expected a checkpoint to export, found none"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_step_without_checkpoint_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"inner step 30, found those of \[10, 20\]"):
        export(tmp_path / "run", tmp_path / "out", step=30)


def test_a_config_of_another_model_is_said(tmp_path: Path) -> None:
    config, _ = make_run(tmp_path / "run")
    text = to_toml(config).replace("ffn_dim = 48", "ffn_dim = 64")
    (tmp_path / "run" / "config.toml").write_text(text)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight \(32, 64\), the checkpoint \(32, 48\)"):
        export(tmp_path / "run", tmp_path / "out")


def test_an_unwritable_target_is_one_line(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="the export could not be written: ") as caught:
        export(tmp_path / "run", tmp_path / "out")
    assert "\n" not in str(caught.value)
