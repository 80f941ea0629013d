"""Islands that die or come late, as real processes over the real swarm."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from lowcomm.launching.process_table import alive, children_of
from lowcomm.rounds.roster import leader_order
from tests.e2e.runs import DEADLINE_S, ROOT, lines

RECIPE = ROOT / "recipes" / "quickstart.toml"
LONG = ("--set", "train.steps=1000000", "--set", "train.log_every=10")


def rounds(folder: Path) -> list[dict]:
    """The committed rounds an island has written so far; the last line may still be incomplete."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return []
    whole = file.read_text().rpartition("\n")[0].splitlines()
    return [line for line in map(json.loads, whole) if line["kind"] == "round" and line["committed"]]


def wait_for(condition, what: str):
    """Look until `condition()` holds, at most DEADLINE_S."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < give_up_s, f"never: {what}"
        time.sleep(0.05)
    return found


def one_history(*folders: Path) -> None:
    digests: dict[int, set[str]] = {}
    for folder in folders:
        for line in rounds(folder):
            digests.setdefault(line["outer_step"], set()).add(line["digest"])
    assert all(len(found) == 1 for found in digests.values()), digests


@pytest.mark.processes
@pytest.mark.parametrize(
    "victim", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["the-bootstrap-peer", "another"]
)
def test_sigkill_stops_nobody_and_leaves_nothing_behind(tmp_path, start, victim) -> None:
    out = tmp_path / "run"
    process = start("launch", RECIPE, "--islands", 3, "--out", out, *LONG)
    folders = [out / f"island-{index}" for index in range(3)]
    others = [folder for index, folder in enumerate(folders) if index != victim]
    wait_for(lambda: all(len(rounds(folder)) >= 2 for folder in folders), "two rounds of three islands")
    pid = int((folders[victim] / "pid").read_text())
    daemons = children_of(pid)
    assert daemons
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(daemon) for daemon in daemons), "the daemons end with their parent")
    before = max(line["outer_step"] for folder in others for line in rounds(folder))
    wait_for(
        lambda: all(rounds(folder)[-1]["outer_step"] >= before + 3 for folder in others),
        "three more rounds of the two that are left",
    )
    for folder in others:
        assert len(rounds(folder)[-1]["participants"]) == 2
    one_history(*folders)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert f"lowcomm: error: island-{victim}" in stderr
    for folder in others:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["tokens"] == summary["tokens_credited"] + summary["tokens_dropped"]


@pytest.mark.processes
def test_a_fourth_island_joins_a_running_three(tmp_path, start) -> None:
    out = tmp_path / "run"
    process = start("launch", RECIPE, "--islands", 3, "--out", out, *LONG)
    folders = [out / f"island-{index}" for index in range(3)]
    wait_for(lambda: all(len(rounds(folder)) >= 2 for folder in folders), "two rounds of three islands")
    address = (folders[1] / "address").read_text().strip()
    late = start("train", RECIPE, "--out", out / "late", "--join", address, *LONG)
    wait_for(lambda: len(rounds(out / "late")) >= 3, "three rounds of the late island")
    first = rounds(out / "late")[0]
    assert len(first["participants"]) == 4
    begun = next(line for line in lines(out / "late" / "metrics.jsonl") if line["kind"] == "start")
    assert begun["how"] in ("replayed", "snapshot")
    assert begun["shard"] == 3
    one_history(*folders, out / "late")
    late.send_signal(signal.SIGINT)
    late.communicate(timeout=DEADLINE_S)
    assert late.returncode == 130
    seen = len(rounds(folders[0]))
    wait_for(lambda: len(rounds(folders[0])) >= seen + 2, "the three go on")
    assert len(rounds(folders[0])[-1]["participants"]) == 3
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    one_history(*folders, out / "late")


@pytest.mark.processes
@pytest.mark.parametrize(
    "role",
    [
        "the-leader",
        *(pytest.param(role, marks=pytest.mark.slow) for role in ("the-bootstrap-peer", "a-reducer")),
    ],
)
def test_an_island_that_freezes_is_left_out_and_comes_back(tmp_path, start, role) -> None:
    out = tmp_path / "run"
    process = start("launch", RECIPE, "--islands", 3, "--out", out, *LONG)
    folders = [out / f"island-{index}" for index in range(3)]
    wait_for(lambda: all(len(rounds(folder)) >= 4 for folder in folders), "four rounds of three islands")
    victim = 0
    if role != "the-bootstrap-peer":
        begun = [next(x for x in lines(f / "metrics.jsonl") if x["kind"] == "start") for f in folders]
        peers = [line["peer"] for line in begun]
        next_step = max(line["outer_step"] for folder in folders for line in rounds(folder)) + 1
        order = leader_order(peers, begun[0]["run_id"], 0, next_step)
        victim = peers.index(order[0] if role == "the-leader" else order[1])  # everybody reduces a part
    others = [folder for index, folder in enumerate(folders) if index != victim]
    pid = int((folders[victim] / "pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        before = max(line["outer_step"] for folder in folders for line in rounds(folder))
        wait_for(
            lambda: all(rounds(folder)[-1]["outer_step"] >= before + 3 for folder in others),
            "three more rounds of the two that are left",
        )
        for folder in others:
            assert len(rounds(folder)[-1]["participants"]) == 2
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: len(rounds(folders[victim])[-1]["participants"]) == 3, "it is in the rounds again")
    one_history(*folders)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["tokens"] == summary["tokens_credited"] + summary["tokens_dropped"]
