import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.config.schema import MetricsConfig
from lowcomm.metrics import open_sinks
from lowcomm.metrics.charts import charted
from lowcomm.metrics.wandb_sink import choose_mode
from tests.metrics.wandb_server import WandbServer

CONFIG = {"train": {"steps": 10}, "shared": {"run_id": "run"}}


@pytest.fixture
def clean_environment(monkeypatch, tmp_path):
    for name in [*(name for name in os.environ if name.startswith("WANDB_")), "NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        os.environ.pop(name)


@pytest.mark.usefixtures("clean_environment")
def test_offline_writes_a_run_folder_and_never_asks(tmp_path, monkeypatch, capfd):
    class Refusing(io.StringIO):
        def read(self, *_):
            pytest.fail("asked for input")

        readline = read

        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Refusing())
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    fanout = open_sinks(
        MetricsConfig(console="off"), run_dir, "run", "shard-0", CONFIG, "[train]\nsteps = 10\n"
    )
    fanout.log({"kind": "train", "inner_step": 1, "loss": 2.0})
    fanout.log({"kind": "round", "inner_step": 1, "committed": True, "participants": ["a"], "digest": "d"})
    assert "wandb" in fanout.names
    fanout.close()
    assert "failed" not in capfd.readouterr().err
    (written,) = (run_dir / "wandb").glob("offline-run-*")
    assert (written / "files" / "recipe.toml").read_text() == "[train]\nsteps = 10\n"
    assert any(path.stat().st_size > 0 for path in written.glob("*.wandb"))
    assert len([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]) == 2


@pytest.mark.usefixtures("clean_environment")
def test_unusable_wandb_folder_does_not_stop_training(tmp_path, capfd):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "wandb").write_text("a file where wandb wants a folder")
    fanout = open_sinks(MetricsConfig(console="off", wandb="offline"), run_dir, "run", "shard-0", CONFIG, "")
    fanout.log({"kind": "train", "inner_step": 1, "loss": 2.0})
    fanout.close()
    assert (run_dir / "metrics.jsonl").read_text().count("\n") == 1
    assert capfd.readouterr().err.count("wandb failed") == 1


def netrc(folder, host):
    path = folder / ".netrc"
    path.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("setting", "environment", "host", "mode"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "0" * 40}, "", "online"),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {}, "api.wandb.ai", "online"),
        ("auto", {}, "example.org", "offline"),
        ("auto", {"WANDB_BASE_URL": "https://wandb.example.org"}, "wandb.example.org", "online"),
        ("offline", {"WANDB_API_KEY": "0" * 40}, "", "offline"),
        ("online", {}, "", "online"),
        ("online", {"WANDB_MODE": "offline"}, "", "online"),
        ("auto", {"WANDB_MODE": "dryrun", "WANDB_API_KEY": "0" * 40}, "", "offline"),
        ("auto", {"WANDB_MODE": "shared"}, "", "online"),
        ("auto", {"WANDB_MODE": "run"}, "", "online"),
        ("auto", {"WANDB_MODE": "Disabled", "WANDB_API_KEY": "0" * 40}, "", "off"),
        ("online", {"WANDB_MODE": "disabled"}, "", "off"),
        ("auto", {"WANDB_DISABLED": "true"}, "", "off"),
        ("offline", {"WANDB_DISABLED": "1"}, "", "off"),
        ("auto", {"WANDB_DISABLED": "False"}, "", "offline"),
        ("auto", {"WANDB_SILENT": "true"}, "", "offline"),
        ("off", {"WANDB_API_KEY": "0" * 40}, "", "off"),
    ],
    ids=[
        "no-login",
        "key",
        "key-but-forced-offline",
        "netrc",
        "other-netrc",
        "own-server",
        "offline",
        "online",
        "online-before-WANDB_MODE",
        "dryrun",
        "shared",
        "run",
        "Disabled",
        "disabled-before-online",
        "DISABLED",
        "DISABLED-before-offline",
        "not-DISABLED",
        "silent",
        "off",
    ],
)
def test_mode(tmp_path, setting, environment, host, mode):
    if host:
        netrc(tmp_path, host)
    assert choose_mode(setting, {"HOME": str(tmp_path), **environment}) == mode


@pytest.mark.parametrize(("stored", "mode"), [("disabled", "off"), ("offline", "offline"), ("", "online")])
def test_what_wandb_offline_and_wandb_disabled_store_counts(tmp_path, stored, mode):
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\nmode = {stored}\n" if stored else "[default]\n")
    assert choose_mode("auto", {"HOME": str(tmp_path), "WANDB_API_KEY": "0" * 40}) == mode


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.parametrize("setting", ["auto", "online"])
def test_who_has_switched_wandb_off_is_recorded_nowhere(tmp_path, monkeypatch, setting, caplog):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    fanout = open_sinks(MetricsConfig(console="off", wandb=setting), run_dir, "run", "shard-0", CONFIG, "")
    assert "wandb" not in fanout.names
    fanout.close()
    assert not (run_dir / "wandb").exists()
    assert ("wandb is switched off here" in caplog.text) is (setting == "online")


@pytest.mark.processes
@pytest.mark.usefixtures("clean_environment")
def test_offline_sessions_of_a_resumed_island_are_one_history(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for session in (range(3), range(3, 7), range(7, 8)):
        fanout = open_sinks(
            MetricsConfig(console="off", wandb="offline"), run_dir, "run", "shard-0", CONFIG, ""
        )
        for step in session:
            fanout.log({"kind": "train", "inner_step": step, "loss": 2.0})
        assert "wandb" in fanout.names
        fanout.close()
    sessions = sorted(map(str, (run_dir / "wandb").glob("offline-run-*")))
    assert len(sessions) == 3
    with WandbServer() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 39 + "1"}
        wandb = Path(sys.executable).with_name("wandb")
        subprocess.run([wandb, "sync", *sessions], env=environment, check=True, capture_output=True)
    (lines,) = server.history.values()
    assert [lines[offset]["inner_step"] for offset in sorted(lines)] == list(range(8))


def test_names_in_wandb():
    round_record = {
        "kind": "round",
        "inner_step": 30,
        "outer_step": 1,
        "participants": ["a", "b"],
        "cosine": None,
    }
    assert charted(round_record) == {"inner_step": 30, "swarm/outer_step": 1, "swarm/participants": 2}
    train = charted({"kind": "train", "inner_step": 3, "outer_step": 1, "loss": 2.0, "kind_of_extra": 1})
    assert train == {"inner_step": 3, "island/loss": 2.0, "swarm/outer_step": 1}
    assert charted({"kind": "end", "reason": "finished"}) == {}


def test_the_figures_of_the_steps_go_charted():
    line = {
        "kind": "train", "inner_step": 3, "swarm_tokens": 900, "lr": 1e-3, "grad_norm": 0.5,
        "tokens_per_s": 10.0, "host_memory_bytes": 5, "mfu": 0.4, "device_memory_bytes": None,
    }  # fmt: skip
    assert charted(line) == {
        "inner_step": 3, "swarm/outer_step": None, "swarm/tokens": 900, "island/lr": 1e-3,
        "island/grad_norm": 0.5, "island/tokens_per_s": 10.0, "island/host_memory_bytes": 5,
        "island/mfu": 0.4,
    }  # fmt: skip
    assert charted({"kind": "round", "inner_step": 3, "total_tokens": 800})["swarm/total_tokens"] == 800
