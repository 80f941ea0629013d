"""A task of one's own on real processes: the documented command, digits from scikit-learn."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lowcomm.cli.main import main
from lowcomm.config.load import load_config
from lowcomm.recipes.digits import Network
from lowcomm.training.build import build_task
from tests.e2e.runs import DEADLINE_S, ROOT, lines


@pytest.mark.processes
def test_two_islands_learn_digits_and_the_export_knows_them(tmp_path, start) -> None:
    out = tmp_path / "run"
    process = start(
        "launch", ROOT / "recipes" / "digits.toml", "--islands", 2, "--out", out,
        "--set", "train.steps=60",
    )  # fmt: skip
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    folders = [out / f"island-{index}" for index in range(2)]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert len({summary["digest"] for summary in summaries}) == 1
    accuracy = summaries[0]["eval_metrics"]["accuracy"]
    assert accuracy > 0.8
    assert f", accuracy {accuracy:.4f} after" in (folders[0] / "log.txt").read_text()

    assert main(["export", str(folders[1]), "--out", str(tmp_path / "exported")]) == 0
    network = Network(16)
    network.load_state_dict(load_file(tmp_path / "exported" / "model.safetensors"))
    config = load_config(folders[0] / "config.toml")
    ((images, labels),) = build_task(config).data().evaluation(config.train.eval_windows, 32)
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean()
    assert float(right) == pytest.approx(accuracy, abs=1e-6)
    assert lines(folders[0] / "metrics.jsonl")[-1]["kind"] == "end"
