"""`lowcomm eval`: tasks of lm-eval on a folder of transformers, with data that lies on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lowcomm.cli.main import main

QUESTIONS = 12
TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows nothing, and a task with as many right first as right second answers."""
    folder = tmp_path_factory.mktemp("harness")
    vocabulary = {token: place for place, token in enumerate(["<eos>", *pre_tokenizers.ByteLevel.alphabet()])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    wrapped.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(sizes).save_pretrained(folder / "model")
    (folder / "tasks").mkdir()
    data = folder / "questions.jsonl"
    questions = [{"q": f"{i} is", "choices": ["a", "b"], "gold": i % 2} for i in range(QUESTIONS)]
    data.write_text("".join(f"{json.dumps(question)}\n" for question in questions))
    (folder / "tasks" / "tiny.yaml").write_text(TASK.format(data=data))
    return folder


@pytest.mark.processes
def test_a_task_of_ones_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    file = tmp_path / "eval.json"
    words = ["eval", str(folder / "model"), "--tasks", "tiny_choice", "--include", str(folder / "tasks")]
    assert main([*words, "--json", str(file)]) == 0
    found = json.loads(file.read_text())["tiny_choice"]
    assert found["sample_len"] == QUESTIONS
    assert 0.0 <= found["acc,none"] <= 1.0
    assert f"acc\t{found['acc,none']:.4f}" in capsys.readouterr().out
    for model, tasks, message in (
        (folder / "model", "tiny_choce", "did you mean: tiny_choice"),
        (folder / "tasks", "tiny_choice", "expected a run folder, or a model folder with a config.json"),
    ):
        words = ["eval", str(model), "--tasks", tasks, "--include", str(folder / "tasks")]
        assert main(words) > 0
        assert message in capsys.readouterr().err
