"""docs/two-machines.md in small: a seed, two islands that meet there, a look, a stop, an export."""

from __future__ import annotations

import json
import logging
import signal

import pytest

from lowcomm.cli.main import main
from tests.docs.pages import ROOT
from tests.docs.processes import first_line, output, python

SMALL = (
    "shared.run_id=sites", "shared.model.dim=32", "shared.model.layers=1", "shared.model.heads=2",
    "shared.model.kv_heads=2", "shared.model.ffn_dim=64", "shared.model.context=32",
    "shared.schedule.inner_steps=5", "shared.round.deadline_s=10", "train.steps=1000000", "train.log_every=5",
    "train.eval_windows=8", "exchange.expected_peers=2", "metrics.wandb=off", "metrics.console=off",
)  # fmt: skip
LOOKS = 20


@pytest.fixture(autouse=True)
def _own_logging():
    """The commands called in this process set up logging; other tests must not see it."""
    logger = logging.getLogger("lowcomm")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


@pytest.mark.processes
def test_islands_meet_at_a_seed_are_seen_stopped_and_exported(tmp_path, capsys):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        (text / f"{number}.txt").write_text(f"document {number}: " + "some words that come again. " * 80)
    settings = [part for item in (*SMALL, f"data.source={text}") for part in ("--set", item)]
    recipe = ROOT / "recipes" / "quickstart.toml"
    folders = [tmp_path / "a", tmp_path / "b"]
    logs = [tmp_path / f"{name}.txt" for name in ("seed", "a", "b")]

    listen = ("--listen", "/ip4/127.0.0.1/tcp/0")
    with python("-m", "lowcomm", "seed", "--run-id", "sites", *listen, log=logs[0]) as seed:
        string = first_line(seed, logs[0])
        train = ("-m", "lowcomm", "train", recipe, "--join", string, *settings, "--out")
        with python(*train, folders[0], log=logs[1]) as a, python(*train, folders[1], log=logs[2]) as b:
            for _ in range(LOOKS):
                code = main(["status", string, "--json"])
                peers = json.loads(capsys.readouterr().out)["peers"] if code == 0 else []
                training = [p for p in peers if p["role"] == "island" and p["outer_steps"][:1] > [0]]
                if len(training) == 2 or a.poll() is not None or b.poll() is not None:
                    break
            assert len(training) == 2, [log.read_text() for log in logs]
            assert {peer["role"] for peer in peers} == {"seed", "island"}
            assert len({peer["shard"] for peer in training}) == 2
            for island in (a, b):
                island.send_signal(signal.SIGINT)
            output(a, logs[1], code=130)
            output(b, logs[2], code=130)
        seed.send_signal(signal.SIGINT)
        output(seed, logs[0])

    assert main(["export", str(folders[0]), "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model.safetensors").stat().st_size > 0
    assert main(["report", str(folders[0]), str(folders[1]), "--json", str(tmp_path / "figures.json")]) == 0
    runs = json.loads((tmp_path / "figures.json").read_text())["runs"]
    assert all(run["outer_steps"] > 0 for run in runs)
