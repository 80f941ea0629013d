"""`lowcomm chaos` on real processes: a short tape in the default run, a long one behind `-m slow`."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.chaos.network import Network, NetworkError
from lowcomm.cli.main import main
from lowcomm.launching.process_table import with_variable
from tests.e2e.runs import DEADLINE_S, ROOT
from tests.e2e.test_deaths import wait_for

KEYS = [
    "faults", "invariants", "partition", "rounds_committed", "outer_steps_forked", "participation",
    "tokens_trained", "tokens_credited", "tokens_dropped", "tokens_lost", "slowest_return_s", "eval_loss",
    "fault_free_eval_loss",
]  # fmt: skip
MINE = "LOWCOMM_CHAOS_TEST"


def chaos(tmp_path, *options, path: str = ""):
    """Start the command; everything that it starts inherits `MINE` and finds commands in `path` first."""
    command = [sys.executable, "-m", "lowcomm", "chaos", "--out", str(tmp_path / "run"), *map(str, options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MINE: str(tmp_path)}
    environment["PATH"] = path + os.environ["PATH"]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process, timeout_s):
    try:
        return process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def check(figures, faults):
    assert list(figures) == KEYS
    assert len(figures["faults"]) == faults
    assert {name: held for name, held in figures["invariants"].items() if held is not True} == {}
    assert figures["tokens_trained"] == figures["tokens_credited"] + figures["tokens_dropped"]
    assert figures["participation"] > 0.5


def namespaces() -> set[str]:
    """The network namespaces of this machine, by name."""
    return {path.name for path in Path("/run/netns").glob("*")}


def network_can_be_broken() -> bool:
    """Whether this machine lets us make network namespaces."""
    try:
        with Network(1):
            return True
    except NetworkError:
        return False


@pytest.mark.processes
def test_a_run_survives_a_kill_a_freeze_and_a_p2pd_that_dies(tmp_path) -> None:
    file = tmp_path / "chaos.json"
    kinds = ["kill", "freeze", "p2pd", "stall_out"] + (["blip"] if network_can_be_broken() else [])
    process = chaos(
        tmp_path, "--islands", 3, "--faults", len(kinds), "--seed", 5, "--minutes", 0.1, "--no-fault-free",
        "--json", file,
        *(word for kind in kinds for word in ("--only", kind)),
    )  # fmt: skip
    stdout, stderr = finish(process, DEADLINE_S)
    assert process.returncode == 0, stdout + stderr
    figures = json.loads(file.read_text())
    check(figures, len(kinds))
    assert {fault["kind"] for fault in figures["faults"]} == set(kinds)
    assert figures["fault_free_eval_loss"] is None
    assert "digests_equal\tholds" in stdout
    assert with_variable(MINE, str(tmp_path)) == []


def commands(tmp_path) -> list[str]:
    """What runs of a `chaos`."""
    found = []
    for process in with_variable(MINE, str(tmp_path)):
        with contextlib.suppress(OSError):  # it has just ended
            found.append(Path(f"/proc/{process.pid}/comm").read_text().strip())
    return found


@pytest.mark.processes
@pytest.mark.parametrize("command", ["gcc", "ip", "wanemu", "p2pd"])
def test_ctrl_c_leaves_nothing_behind(tmp_path, command) -> None:
    if command != "p2pd" and not network_can_be_broken():
        pytest.skip("needs network namespaces: root, ip and gcc")
    slow_ip = tmp_path / "ip"  # so that it can be met at work
    slow_ip.write_text(f'#!/bin/sh\n{shutil.which("ip")} "$@" && sleep 0.1\n')
    slow_ip.chmod(0o755)
    others = namespaces()
    process = chaos(tmp_path, "--islands", 3, "--faults", 3, path=f"{tmp_path}:" if command == "ip" else "")
    wait_for(lambda: command in commands(tmp_path), f"{command} runs")
    process.send_signal(signal.SIGINT)
    finish(process, DEADLINE_S)
    assert process.returncode == 130
    wait_for(lambda: not with_variable(MINE, str(tmp_path)), "all processes end")
    assert namespaces() <= others


def test_a_network_that_can_not_be_made_is_named(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for options in (["--wan"], ["--only", "partition"]):
        assert main(["chaos", "--out", str(tmp_path), *options]) == 1
        assert "network namespaces need root; without it: --no-wan" in capsys.readouterr().err
    assert main(["chaos", "--out", str(tmp_path), "--no-wan", "--only", "partition"]) == 2
    assert "--only partition: expected one of kill," in capsys.readouterr().err
    assert main(["chaos", "--out", str(tmp_path), "--away", "0"]) == 2
    assert "--away 0: expected more than 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_longer_tape_with_every_kind_of_fault(tmp_path, seed) -> None:
    file = tmp_path / "chaos.json"
    process = chaos(tmp_path, "--islands", 4, "--faults", 22, "--seed", seed, "--json", file)
    stdout, stderr = finish(process, 850)
    assert process.returncode == 0, stdout + stderr
    figures = json.loads(file.read_text())
    check(figures, 22)
    assert figures["participation"] >= 0.9
