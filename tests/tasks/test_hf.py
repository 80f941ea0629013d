"""Causal language models of transformers as tasks: made from a table or a folder, trained, exported."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowcomm.config.schema import Config
from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.corpus.tokenizer import TOKENIZER
from lowcomm.errors import ConfigError, DataError
from lowcomm.training.build import build_island, build_model, build_task
from lowcomm.training.export import export
from tests.data.reading.corpora import counting, make_corpus
from tests.tasks.models import GPT2, LLAMA, MODELS, anchor_of, made, recipe, refusal
from tests.training.islands import finished, lines, losses, make_config, train_islands

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
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
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert type(found).__name__ in card
    assert "| run | `small` |\n| inner steps | 20 |\n| outer steps | 5, 4 |\n" in card
    assert 'shared.task.kind = "hf"\n' in card


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
        ("no/such", (), r"shared\.task\.model: expected a table .* got 'no/such'; a path .* the hub: \w+"),
        ("no_such", (), r"shared\.task\.model: expected a table .* got 'no_such'; a path is looked for in /"),
        ("text", (), r"shared\.task\.model: /\S+/text: .*config\.json"),
        ("{hidden_size=16}", (), r"shared\.task\.model: model_type = None: "),
        ("{model_type='lama'}", (), r"shared\.task\.model: model_type = 'lama': .*[Uu]nrecognized"),
        ("{model_type='t5'}", (), r"shared\.task\.model: expected a causal language model, got a t5"),
        ("{model_type='llama', hiden=1}", (), r"shared\.task\.model\.hiden: expected a setting of llama"),
        ("{model_type='llama', vocab_size=99}", (), r"model\.vocab_size: expected at least 256, .* got 99"),
        (LLAMA, ("shared.model.context=32",), r"shared\.model\.context: expected at most .* = 16, got 32"),
    ],
    ids=[
        "nothing",
        "no name",
        "no path",
        "no config",
        "no type",
        "typo",
        "no causal",
        "unknown",
        "vocab",
        "context",
    ],
)
def test_what_is_no_model(tmp_path: Path, model: str, overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        build_task(recipe(tmp_path, model, *overrides))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


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


ROPE = (
    "rope_scaling={rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, "
    "original_max_position_embeddings=8}, rope_theta=500000.0, head_dim=12}"
)


def logits_of(config: Config) -> Tensor:
    model = build_model(config, build_task(config)).eval()
    ids = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    return logits


def test_the_table_has_rope_scaling_and_head_sizes(tmp_path: Path) -> None:
    scaled = recipe(tmp_path, f"{LLAMA[:-1]}, {ROPE}")
    model = build_model(scaled, build_task(scaled))
    assert model.config.rope_parameters["rope_type"] == "llama3"  # type: ignore[union-attr]
    assert dict(model.named_parameters())["model.layers.0.self_attn.q_proj.weight"].shape == (24, 16)
    plain = recipe(tmp_path, f"{LLAMA[:-1]}, head_dim=12}}")
    assert not torch.allclose(logits_of(scaled), logits_of(plain))


def test_attention_is_computed_as_asked_for(tmp_path: Path) -> None:
    found = {
        kind: logits_of(recipe(tmp_path, LLAMA, f"train.attention={kind}")) for kind in ("eager", "sdpa")
    }
    assert torch.allclose(*found.values(), atol=1e-5)
    model = recipe(tmp_path, LLAMA, "train.attention=eager")
    assert build_model(model, build_task(model)).config._attn_implementation == "eager"  # type: ignore[union-attr]
    for kind in ("flash_attention_2", "slow"):
        with pytest.raises(ConfigError, match=rf"train\.attention = {kind}: ") as caught:
            assert build_task(recipe(tmp_path, LLAMA, f"train.attention={kind}")).facts
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"train\.attention: expected auto with shared\.task\.kind = gpt"):
        make_config(tmp_path, "train.attention=eager")


def test_weights_in_bf16_are_trained_and_exported_as_the_anchor(tmp_path: Path) -> None:
    config = recipe(tmp_path, LLAMA, "shared.task.dtype=bf16")
    assert {p.dtype for p in build_model(config, build_task(config)).parameters()} == {torch.bfloat16}
    finished(train_islands(config, tmp_path, islands=1))
    export(tmp_path / "island-0", tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    anchor = anchor_of(tmp_path / "island-0")
    assert all(torch.equal(exported[name], anchor[name]) for name in anchor)


@pytest.mark.parametrize("model", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_recomputed_activations_change_nothing(tmp_path: Path, model: str) -> None:
    """Dropout's numbers are drawn again as they were."""
    digests = []
    for setting in ("false", "true"):
        config = recipe(tmp_path, model, f"island.activation_checkpointing={setting}")
        (summary,) = finished(train_islands(config, tmp_path / setting, islands=1))
        digests.append(summary.digest)
    assert digests[0] == digests[1]
    island = build_island(config, build_model(config, build_task(config)), torch.device("cpu"))
    assert island.model.is_gradient_checkpointing


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_blocks_are_compiled_in_place(tmp_path: Path, recompute: str) -> None:
    config = recipe(tmp_path, LLAMA, "train.compile=true", f"island.activation_checkpointing={recompute}")
    island = build_island(config, made(config), torch.device("cpu"))
    assert [spec.name for spec in island.layout] == [name for name, _ in made(config).named_parameters()]
    assert [block._compiled_call_impl is not None for block in island.model.model.layers] == [True, True]


def fork(folder: Path, name: str, *overrides: str, **settings: object) -> None:
    """A folder of a model with weights; in its configuration some settings are others."""
    config = recipe(folder, LLAMA, *overrides)
    build_model(config, build_task(config)).save_pretrained(folder / name)  # type: ignore[operator]
    path = folder / name / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("overrides", "settings", "said"),
    [
        ((), {}, ""),
        (
            ("shared.seed=6",),
            {},
            r".*model\.weights: here '.*; training begins with other weights: .*",
        ),
        ((), {"rms_norm_eps": 1e-5}, r".*shared\.task\.model/rms_norm_eps: here 1e-05, there 1e-06.*"),
    ],
    ids=["the same", "weights", "architecture"],
)
def test_another_folder_is_refused_by_what_differs(
    tmp_path: Path, overrides: tuple[str, ...], settings: dict[str, object], said: str
) -> None:
    for name, changes, others in (("0", (), {}), ("1", overrides, settings)):
        (tmp_path / name).mkdir()
        fork(tmp_path / name, "base", *changes, **others)
    founder, joiner = (recipe(tmp_path / name, "base") for name in "01")
    joiner = replace(joiner, data=founder.data)
    assert re.fullmatch(said, refusal(founder, joiner))


def test_a_name_on_the_hub_is_a_folder_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"got 'org/tiny'; .*; the hub: \w+") as caught:
        build_task(recipe(tmp_path, "org/tiny"))
    assert "\n" not in str(caught.value)
    cached = tmp_path / "cache" / "models--org--tiny"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    fork(tmp_path, f"cache/models--org--tiny/snapshots/{'0' * 40}")
    config = recipe(tmp_path, "org/tiny", "shared.seed=9")
    table = recipe(tmp_path, LLAMA)
    found, expected = (build_model(each, build_task(each)).parameters() for each in (config, table))
    assert all(map(torch.equal, found, expected))
    assert build_task(config).facts.loaded


def test_the_export_has_what_the_hub_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in several files above a size, and what of the model's folder its users need."""
    fork(tmp_path, "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.25, "do_sample": true}')
    config = recipe(tmp_path, "base")
    task = build_task(config)
    anchor = {name: p.detach() + 1 for name, p in build_model(config, task).named_parameters()}
    monkeypatch.setattr("lowcomm.tasks.hf.SHARD_BYTES", 20_000)
    out = tmp_path / "out"
    out.mkdir()
    task.export(anchor, out, run_id="demo", step=3)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert all(torch.equal(parameter, anchor[name]) for name, parameter in model.named_parameters())
    assert model.generation_config.temperature == 0.25


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["folder", "url"])
def test_the_tokenizer_is_the_corpuss(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a folder are trained on tokens of the folder's, and the export has it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own, other, corpus = b'{"own": 1}', b'{"other": 1}', tmp_path / "corpus"
    vocabulary = Vocabulary(kind=TOKENIZER, blake3=blake3(own).hexdigest(), size=256, separator=7)
    manifest = make_corpus(corpus, {"counts": counting(4, 20)}, vocabulary=vocabulary)
    (corpus / TOKENIZER).write_bytes(own)
    (corpus / "tokenizer_config.json").write_text("{}")
    text = (f"shared.data.manifest={manifest.digest}", f"data.source={scheme}{corpus}")
    fork(tmp_path, "base")
    (tmp_path / "base" / TOKENIZER).write_bytes(own)
    out = tmp_path / "out"
    out.mkdir()
    for config in (recipe(tmp_path, "base", *text), recipe(tmp_path, LLAMA, *text)):
        anchor = dict(made(config).named_parameters())
        build_task(config).export(anchor, out, run_id="demo", step=1)
        assert (out / TOKENIZER).read_bytes() == own
        assert (out / "tokenizer_config.json").read_text() == "{}"
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 7
    assert "AutoTokenizer" in (out / "README.md").read_text()

    (tmp_path / "base" / TOKENIZER).write_bytes(other)
    with pytest.raises(ConfigError, match=r"data\.manifest: expected a corpus of the model's tokenizer"):
        build_task(recipe(tmp_path, "base", *text))
    (corpus / TOKENIZER).write_bytes(other)
    with pytest.raises(DataError, match=r"corpus/tokenizer\.json: expected the tokenizer of .* got another"):
        build_task(config).export(anchor, out, run_id="demo", step=1)
