"""The main job, end to end: real processes, a real swarm, real text."""

import json
import re
import signal

import pytest

from lowcomm.cli.main import main
from tests.e2e.runs import DEADLINE_S, ROOT, lines

KEYS = {
    "islands", "inner_steps", "outer_steps", "tokens", "eval_loss", "baseline_eval_loss", "wan_bytes_sent",
    "data_parallel_bytes", "digests", "wall_s",
}  # fmt: skip


@pytest.mark.processes
def test_quickstart_writes_what_scripts_read(tmp_path, start):
    out, figures_file = tmp_path / "run", tmp_path / "figures.json"
    process = start(
        "--islands", 2, "--steps", 20, "--seed", 3, "--out", out, "--json", figures_file, "--baseline",
        command=("bash", "launch/quickstart.sh"),
    )  # fmt: skip
    stdout, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    figures = json.loads(figures_file.read_text())
    assert set(figures) == KEYS
    assert (figures["islands"], figures["inner_steps"], figures["outer_steps"]) == (2, 20, 2)
    assert figures["tokens"] == 2 * 20 * 2 * 32
    assert len(figures["digests"]) == 2
    assert len(set(figures["digests"])) == 1
    assert all(sent > 0 for sent in figures["wan_bytes_sent"])
    assert 0 < figures["eval_loss"] < 6
    assert 0 < figures["baseline_eval_loss"] < 6
    parameters = json.loads((out / "island-0" / "summary.json").read_text())["parameters"]
    assert figures["data_parallel_bytes"] == parameters * 4 * 20
    assert "outer states equal, bit for bit\tyes" in stdout
    assert (out / "report.html").read_text().count("data:image/png") == 7
    for index in range(2):
        rounds = [
            line for line in lines(out / f"island-{index}" / "metrics.jsonl") if line["kind"] == "round"
        ]
        assert [line["outer_step"] for line in rounds if line["committed"]] == [1, 2]
        assert len({line["digest"] for line in rounds}) == len(rounds)
    assert main(["export", str(out / "island-1"), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model.safetensors").stat().st_size > parameters * 4


@pytest.mark.processes
def test_interrupted_launch_saves_and_is_resumed(tmp_path, start):
    out = tmp_path / "run"
    recipe = ROOT / "recipes" / "quickstart.toml"
    options = ("launch", recipe, "--islands", 2, "--out", out, "--set", "train.checkpoint_every=1")
    process = start(*options, "--set", "train.steps=1000000")
    for line in process.stderr:
        if re.search(r"island-1 step [1-9]", line):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, stderr
    ends = [lines(out / f"island-{index}" / "metrics.jsonl")[-1] for index in range(2)]
    assert [end["reason"] for end in ends] == ["stopped", "stopped"]
    reached = min(end["summary"]["inner_steps"] for end in ends)

    figures_file = tmp_path / "figures.json"
    process = start(*options, "--set", f"train.steps={(reached // 10 + 3) * 10}", "--json", figures_file)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, stderr
    figures = json.loads(figures_file.read_text())
    assert figures["inner_steps"] == (reached // 10 + 3) * 10
    assert figures["digests_equal"] is True
    assert figures["exit_codes"] == [0, 0]


@pytest.mark.processes
def test_a_failing_island_is_named_and_stops_no_other(tmp_path, start):
    out = tmp_path / "run"
    (out / "island-1").mkdir(parents=True)
    (out / "island-1" / "thesis.txt").write_text("somebody else's")
    process = start(
        "launch", ROOT / "recipes" / "quickstart.toml", "--islands", 2, "--out", out,
        "--set", "train.steps=20", "--set", "exchange.gather_timeout_s=30",
    )  # fmt: skip
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert "lowcomm: error: island-1 ended with exit code 1" in stderr
    assert "thesis.txt" in stderr
    assert "island-0: finished" in stderr
    assert (out / "island-1" / "thesis.txt").read_text() == "somebody else's"
