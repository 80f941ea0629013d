"""From text to a folder that transformers loads: tokenizer, corpus, two islands, export; by commands."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowcomm.config.load import load_config
from lowcomm.training.build import build_task
from lowcomm.training.evaluation import evaluate
from tests.e2e.runs import DEADLINE_S, ROOT

transformers = pytest.importorskip("transformers")

SIZE = 512
MODEL = (
    f"{{model_type='llama', vocab_size={SIZE}, hidden_size=32, intermediate_size=64, num_hidden_layers=1, "
    "num_attention_heads=2, max_position_embeddings=32}"
)


def lowcomm(*arguments: object) -> None:
    command = [sys.executable, "-m", "lowcomm", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_a_tokenizer_a_corpus_two_islands_and_a_folder_for_transformers(tmp_path: Path) -> None:
    texts = Path(json.__file__).parent
    lowcomm("data", "tokenizer", texts, "--size", SIZE, "--out", tmp_path / "tokenizer")
    spec, corpus, built = tmp_path / "corpus.toml", tmp_path / "corpus", tmp_path / "built.json"
    spec.write_text(
        f'holdout_fraction = 0.3\n[tokenizer]\npath = "{tmp_path}/tokenizer"\n[[source]]\nurl = "{texts}"\n'
    )
    lowcomm("data", "build", spec, "--out", corpus, "--processes", 1, "--json", built)
    manifest = json.loads(built.read_text())["manifest"]
    settings = (
        f"shared.data.manifest={manifest}", f"data.source={corpus}", f"shared.task.model={MODEL}",
        "shared.model.context=32", "shared.schedule.inner_steps=10", "train.steps=40",
        "train.eval_windows=16", "metrics.wandb=off",
    )  # fmt: skip
    run = tmp_path / "run"
    overrides = [word for setting in settings for word in ("--set", setting)]
    lowcomm("launch", "recipes/words.toml", "--islands", 2, "--out", run, *overrides)
    summaries = [json.loads((run / f"island-{i}" / "summary.json").read_text()) for i in range(2)]
    assert len({summary["digest"] for summary in summaries}) == 1
    assert summaries[0]["eval_loss"] < math.log(SIZE) - 0.3
    lowcomm("data", "account", run / "island-1", "--json", tmp_path / "account.json")
    account = json.loads((tmp_path / "account.json").read_text())
    assert (account["credited_twice"], account["missing"]) == (0, 0)
    assert account["samples"] == sum(summary["tokens_credited"] for summary in summaries) // 32
    lowcomm("export", run / "island-1", "--out", tmp_path / "out")

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "def main(argv):\n    return [naïve for word in 'ünïcode ☃'.split()]\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < SIZE
    assert model.config.eos_token_id == tokenizer.eos_token_id
    # the loss that the islands told is that of the folder
    config = load_config(run / "island-0" / "config.toml")
    task = build_task(config)
    held = task.data(say=False).evaluation(config.train.eval_windows, 4)
    assert evaluate(task, model, held, torch.device("cpu"))["loss"] == pytest.approx(
        summaries[0]["eval_loss"], abs=1e-5
    )
