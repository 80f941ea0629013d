"""Training on a corpus: the trainer's run on tokens, with what it says of them, and documents told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowcomm.config.load import load_config, shared_digest
from lowcomm.config.schema import Config
from lowcomm.data.corpus.manifest import Manifest, Vocabulary
from lowcomm.errors import ConfigError, DataError
from lowcomm.models.gpt import GPT, GPTShape
from lowcomm.training.build import build_model, build_task
from lowcomm.training.evaluation import evaluate
from tests.data.reading.corpora import make_corpus
from tests.training.islands import RECIPE, finished, lines, losses, train_islands

VOCABULARY = Vocabulary(kind="tokenizer.json", blake3="0" * 64, size=300, separator=299)
LLAMA = (
    "{model_type='llama', vocab_size=SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=2, "
    "num_attention_heads=2, max_position_embeddings=32}"
)
GPT2 = "{model_type='gpt2', vocab_size=SIZE, n_embd=16, n_layer=2, n_head=2, n_positions=32}"
QWEN = LLAMA.replace("llama'", "qwen2', num_key_value_heads=2")


def hf(model: str, size: int = 300) -> tuple[str, str]:
    return "shared.task.kind=hf", f"shared.task.model={model.replace('SIZE', str(size))}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Two sources whose tokens follow each other by rules, so that they can be learned."""
    chosen = np.random.default_rng(0)

    def documents(count: int, step: int) -> list[list[int]]:
        lengths, firsts = chosen.integers(5, 60, count), chosen.integers(0, 299, count)
        return [
            ((first + step * np.arange(n)) % 299).tolist() for first, n in zip(firsts, lengths, strict=True)
        ]

    folder = tmp_path_factory.mktemp("corpus")
    manifest = make_corpus(
        folder,
        {"up": documents(200, 1), "by seven": documents(100, 7)},
        {"up": documents(40, 1), "by seven": documents(20, 7)},
        vocabulary=VOCABULARY,
        chunk_documents=10,
        bytes_per_token=4,
    )
    return folder, manifest


def config_of(corpus: tuple[Path, Manifest], tmp_path: Path, *overrides: str) -> Config:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    folder, manifest = corpus
    source = f"data.source={json.dumps(str(folder))}"
    return load_config(recipe, [source, f"shared.data.manifest={manifest.digest}", *overrides])


@pytest.mark.parametrize(
    "setting", [(), hf(LLAMA), ("shared.data.packing=apart",)], ids=["gpt", "hf-llama", "gpt-apart"]
)
def test_islands_learn_the_tokens_of_a_corpus(
    corpus: tuple[Path, Manifest], tmp_path: Path, setting: tuple[str, ...]
) -> None:
    config = config_of(corpus, tmp_path, "train.steps=60", "shared.inner.lr=0.01", *setting)
    build_task(config)  # transformers can't be imported by two threads at once
    summaries = finished(train_islands(config, tmp_path))
    assert len({summary.digest for summary in summaries}) == 1
    for number, summary in enumerate(summaries):
        folder = tmp_path / f"island-{number}"
        curve = losses(folder)
        assert curve[60] < curve[5] - 0.2
        (start,) = lines(folder, "start")
        assert start["data_digest"] == corpus[1].digest
        assert start["all_epoch_tokens"] == corpus[1].tokens
        evaluated = lines(folder, "eval")[-1]
        names = {
            "loss",
            "loss/up",
            "loss/by seven",
            "bits_per_byte",
            "bits_per_byte/up",
            "bits_per_byte/by seven",
        }
        assert {key for key in evaluated if key.startswith("eval_")} == {f"eval_{name}" for name in names}
        for suffix in ("", "/up", "/by seven"):
            bits = evaluated[f"eval_loss{suffix}"] / math.log(2) / 4
            assert evaluated[f"eval_bits_per_byte{suffix}"] == pytest.approx(bits)
        assert summary.eval_metrics["bits_per_byte"] == evaluated["eval_bits_per_byte"]


def test_bytes_have_bits_per_byte_too(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the tide comes and goes. " * 40)
    (tmp_path / "b.txt").write_text("the moon comes and goes. " * 40)
    (tmp_path / "small.toml").write_text(RECIPE)
    overrides = [f"data.source={json.dumps(str(tmp_path / '*.txt'))}", "shared.data.shards=1"]
    config = load_config(tmp_path / "small.toml", overrides)
    task = build_task(config)
    found = evaluate(task, build_model(config, task), task.data().evaluation(8, 4), torch.device("cpu"))
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))


class Ranks:
    """What `evaluate` needs of an island whose other ranks' sums are known."""

    world_size = 3

    def __init__(self, rank: int, others: list[dict[str, list[float]]]) -> None:
        self.rank, self.is_lead, self.others, self.own = rank, rank == 0, others, {}

    def gather(self, state: dict[str, list[float]]) -> list[dict[str, list[float]]]:
        self.own = state
        return [state, *self.others] if self.is_lead else []

    def broadcast(self, value: object) -> object:
        return value if self.is_lead else {}


def test_ranks_share_the_windows(corpus: tuple[Path, Manifest], tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path)
    task, cpu = build_task(config), torch.device("cpu")
    model, passes = build_model(config, task), []
    model.register_forward_hook(lambda *_: passes.append(1))

    def found(island: Ranks | None) -> dict[str, float]:
        passes.clear()
        return evaluate(task, model, task.data().evaluation(26, 4), cpu, island)  # type: ignore[arg-type]

    whole = found(None)
    assert len(passes) == 7
    others = [Ranks(rank, []) for rank in (1, 2)]
    for rank in others:
        found(rank)
        assert len(passes) == 3, "each rank does as many passes, as sharded models need"
    assert found(Ranks(0, [rank.own for rank in others])) == pytest.approx(whole)


def test_the_model_has_the_vocabulary_of_the_corpus(corpus: tuple[Path, Manifest], tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path)
    model = build_model(config, build_task(config))
    assert isinstance(model, GPT)
    assert model.shape.vocab_size == 300


def test_a_model_with_a_smaller_vocabulary(corpus: tuple[Path, Manifest], tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path, *hf(LLAMA, 256))
    match = (
        rf"shared.task.model.vocab_size: expected at least 300, .* manifest {corpus[1].digest[:12]}, got 256"
    )
    with pytest.raises(ConfigError, match=match):
        build_task(config)


def test_another_corpus_is_refused_with_both_digests(corpus: tuple[Path, Manifest], tmp_path: Path) -> None:
    config = config_of(corpus, tmp_path, f"shared.data.manifest={'ab' * 32}")
    with pytest.raises(DataError, match=rf"^shared.data.manifest: .*{'ab' * 32}, got .*{corpus[1].digest}"):
        build_task(config)


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        (("shared.data.manifest=abc",), "shared.data.manifest: expected 64 digits of 0-9 a-f"),
        (("shared.data.packing=apart", "shared.data.manifest=''"), "shared.data.packing: expected across"),
        (("shared.task.kind=given",), "shared.data.manifest: expected nothing with kind = given"),
        (("shared.data.packing=along",), "shared.data.packing: expected"),
        (("data.cache_gb=-1",), "data.cache_gb: expected"),
    ],
    ids=["no-digest", "apart-without-manifest", "given", "packing", "cache"],
)
def test_settings_that_do_not_fit(
    corpus: tuple[Path, Manifest], tmp_path: Path, setting: tuple[str, ...], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        config_of(corpus, tmp_path, *setting)


def test_settings_without_a_manifest_have_the_digest_that_they_had() -> None:
    assert shared_digest(Config()) == "6c2e239819e03e189313a6781ad9f353af6065ec9cae86a8a4e64c164053540a"


def alone(model: nn.Module, documents: list[list[int]]) -> Tensor:
    """The logits of each document by itself, one after the other."""
    ids = [torch.tensor([document]) for document in documents]
    return torch.cat([getattr(found, "logits", found)[0] for found in map(model, ids)])


DOCUMENTS = [[5, 6, 7, 299], [8, 299], [9, 10, 11, 12, 13, 299], [299], [14, 15, 16]]
JOINED = [token for document in DOCUMENTS for token in document]
POSITIONS = torch.cat([torch.arange(len(document)) for document in DOCUMENTS])


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_documents_apart_are_as_documents_alone(kv_heads: int) -> None:
    shape = GPTShape(
        vocab_size=300, dim=16, layers=2, heads=2, kv_heads=kv_heads, ffn_dim=32, context=16, rope_theta=100.0
    )
    model = GPT(shape, seed=1)
    ids = torch.tensor([JOINED] * 2)
    positions = torch.stack([POSITIONS, torch.arange(16)])
    apart = model(ids, positions=positions)
    assert torch.allclose(apart[0], alone(model, DOCUMENTS), atol=1e-6)
    assert torch.allclose(apart[1], model(ids[1:])[0], atol=1e-6)
    assert not torch.allclose(apart[0], apart[1], atol=1e-4)


@pytest.mark.parametrize("model", [LLAMA, GPT2, QWEN], ids=["llama", "gpt2", "qwen2"])
def test_transformers_tell_documents_apart_by_positions(
    corpus: tuple[Path, Manifest], tmp_path: Path, model: str
) -> None:
    config = config_of(corpus, tmp_path, *hf(model))
    task = build_task(config)
    made = build_model(config, task).eval()
    ids = torch.tensor([JOINED] * 2)
    positions = torch.stack([POSITIONS, torch.arange(16)])
    logits = torch.cat([alone(made, DOCUMENTS), alone(made, [JOINED])])
    targets = ids.roll(-1, dims=1)
    expected = nn.functional.cross_entropy(logits, targets.flatten())
    assert task.loss(made, (ids, targets, positions)).item() == pytest.approx(
        float(expected.detach()), rel=1e-5
    )
    assert task.loss(made, (ids, targets)).item() != pytest.approx(float(expected.detach()), rel=1e-5)
