"""LoRA on models of transformers: what is trained, sent, saved and exported are the adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowcomm.config.schema import Config
from lowcomm.errors import CheckpointError, ConfigError
from lowcomm.storage.checkpoint import Checkpoints
from lowcomm.training.build import build_codec, build_model, build_task
from lowcomm.training.export import export
from tests.tasks.models import GPT2, LLAMA, anchor_of, made, recipe, refusal
from tests.training.islands import finished, lines, losses, train_islands

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

ADAPTER = "{r=2, target_modules=['q_proj', 'v_proj'], lora_dropout=0.1}"


def lora(folder: Path, model: str, *overrides: str, adapter: str = ADAPTER) -> Config:
    kind = ("shared.task.kind=peft", f"shared.task.adapter={adapter}", "shared.inner.lr=0.02")
    return recipe(folder, model, *kind, *overrides)


def adapters(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of a model with weights."""
    config = recipe(tmp_path, LLAMA, "shared.seed=5")
    build_model(config, build_task(config)).save_pretrained(tmp_path / "base")  # type: ignore[operator]
    return tmp_path / "base"


def test_only_adapters_are_sent_saved_and_exported(tmp_path: Path, base: Path) -> None:
    config = lora(tmp_path, "base")
    summaries = finished(train_islands(config, tmp_path))
    assert len({summary.digest for summary in summaries}) == 1
    run = tmp_path / "island-0"
    seen = losses(run)
    assert seen[20] < seen[5]
    task = build_task(config)
    model = build_model(config, task).eval()
    trained = adapters(model)
    elements = sum(parameter.numel() for parameter in trained.values())
    (start,) = lines(run, "start")
    assert start["parameters"] == task.facts.parameters == elements == 2 * 2 * 2 * (16 + 16)

    anchor = anchor_of(run)
    assert anchor.keys() == trained.keys()
    checkpoints = Checkpoints(run / "checkpoints", keep=4)
    saved = checkpoints.load(checkpoints.steps()[-1], only=("island",))["island"]
    assert saved["model"].keys() == trained.keys()

    export(run, tmp_path / "out")
    exported = transformers.AutoModelForCausalLM.from_pretrained(base)
    exported = peft.PeftModel.from_pretrained(exported, tmp_path / "out").eval()
    assert not list((tmp_path / "out").glob("model*"))
    export(run, tmp_path / "merged", merge=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits
        for name, parameter in trained.items():
            parameter.copy_(anchor[name])
        logits = model(ids).logits
        assert torch.equal(exported(ids).logits, logits)
        assert torch.allclose(merged(ids).logits, logits, atol=1e-5)
    assert not torch.allclose(before, logits, atol=1e-3)
    assert str(base) in (tmp_path / "out" / "README.md").read_text()


def test_the_bytes_of_a_round_are_those_of_the_adapters(tmp_path: Path, base: Path) -> None:
    """int8 has 8 bits for a parameter and a scale for each block; nothing of the model is sent."""
    quiet = ("shared.schedule.num_fragments=1", "exchange.heartbeat_s=60", "exchange.lease_s=600")
    config = lora(tmp_path, "base", *quiet, adapter="{r=512}")
    finished(train_islands(config, tmp_path))
    elements = build_task(config).facts.parameters
    assert elements == 2 * 2 * 512 * (16 + 16)
    payload = build_codec(config).max_payload_bytes(elements)
    assert payload < 1.1 * elements
    rounds = lines(tmp_path / "island-0", "round")
    assert len(rounds) == 4
    for line in rounds:
        assert 4 * elements / line["compression_ratio"] == pytest.approx(payload, rel=0.02)
        # what is the other's to reduce of its own, and of the mean what it has reduced; and messages
        assert payload <= line["bytes_sent"] < 1.5 * payload, line


def test_adapters_go_on_where_they_stood_on_the_same_model_only(tmp_path: Path, base: Path) -> None:
    config = lora(tmp_path, "base")
    (whole,) = finished(train_islands(config, tmp_path / "whole", islands=1))
    finished(train_islands(config, tmp_path / "other", islands=1))
    island = tmp_path / "other" / "island-0"
    shutil.rmtree(island / "checkpoints" / "step-000000020")
    (again,) = finished(train_islands(config, tmp_path / "other", islands=1))
    assert again.digest == whole.digest, "dropout's numbers among it"
    other = recipe(tmp_path, LLAMA, "shared.seed=6")
    build_model(other, build_task(other)).save_pretrained(base)  # type: ignore[operator]
    shutil.rmtree(island / "checkpoints" / "step-000000020")
    (error,) = train_islands(config, tmp_path / "other", islands=1)
    assert isinstance(error, CheckpointError)
    assert str(error).startswith("model.frozen: expected '")


def test_another_base_model_is_refused_by_name(tmp_path: Path, base: Path) -> None:
    other = recipe(tmp_path, LLAMA, "shared.seed=6")
    (tmp_path / "1").mkdir()
    made(other).save_pretrained(tmp_path / "1" / "base")  # type: ignore[operator]
    founder, joiner = lora(tmp_path, "base"), lora(tmp_path / "1", "base")
    assert "model.frozen: here '21 tensors of float32 " in refusal(founder, joiner)


@pytest.mark.parametrize(
    ("model", "adapter", "expected"),
    [
        (LLAMA, "{target_modules=['q_prj']}", r"target_modules: .* got 'q_prj', .* are embed_tokens, q_proj"),
        (LLAMA, "{target_modules='q_prj'}", r"target_modules: .* got 'q_prj', .* are embed_tokens, q_proj"),
        (GPT2, "{target_modules=['c_attn', 'x']}", r"target_modules: .* got 'x', .* wte, wpe, ln_1"),
        (LLAMA, "{rank=2}", r"shared\.task\.adapter\.rank: expected a setting of LoraConfig, got none of it"),
        (LLAMA, "{r=0}", r"shared\.task\.adapter: .*r.* 0"),
        (LLAMA, "x", r"shared\.task\.adapter: expected a table such as \{r = 8\}, got \"x\""),
    ],
    ids=["no target", "no match", "one of two", "unknown", "rank 0", "no table"],
)
def test_what_is_no_adapter(tmp_path: Path, model: str, adapter: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        assert build_task(lora(tmp_path, model, adapter=adapter)).facts
    assert "\n" not in str(caught.value)


def test_a_frozen_model_in_bf16_has_adapters_in_fp32(tmp_path: Path) -> None:
    config = lora(tmp_path, GPT2, "shared.task.dtype=bf16", adapter="{}")
    model = build_model(config, build_task(config))
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}
    finished(train_islands(config, tmp_path, islands=1))
    export(tmp_path / "island-0", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 8
