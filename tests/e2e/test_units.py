"""Units of a corpus with real processes: islands of two ranks, and one that is killed and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lowcomm.data.corpus.manifest import Manifest
from tests.data.reading.corpora import counting, make_corpus
from tests.e2e.runs import DEADLINE_S, ROOT, lines
from tests.e2e.test_deaths import one_history, rounds, wait_for

RECIPE = ROOT / "recipes" / "quickstart.toml"
CONTEXT, WORLD = 16, 2


@pytest.fixture
def corpus(tmp_path: Path) -> list[str]:
    """Settings for it."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    manifest: Manifest = make_corpus(folder, {"numbers": counting(16, 400)})
    settings = (
        f"shared.data.manifest={manifest.digest}", f"data.source={folder}", f"shared.model.context={CONTEXT}",
        "shared.model.layers=1", "train.eval_every=0", "shared.schedule.inner_steps=5", "metrics.console=off",
    )  # fmt: skip
    return [word for setting in settings for word in ("--set", setting)]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lowcomm", *map(str, words)]


def account(folder: Path) -> dict[str, Any]:
    words = command("data", "account", folder, "--json", "-")
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=DEADLINE_S)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.processes
def test_the_ranks_of_an_island_lease_as_one(tmp_path: Path, corpus: list[str], logged: Any) -> None:
    launch = ("launch", RECIPE, "--islands", 2, "--nproc", WORLD, "--out", tmp_path / "run", *corpus)
    process = logged("launch", command(*launch, "--set", "train.steps=20"))
    assert process.wait(DEADLINE_S) == 0, (tmp_path / "launch.log").read_text()
    summaries = [json.loads((tmp_path / "run" / f"island-{i}" / "summary.json").read_text()) for i in (0, 1)]
    found = account(tmp_path / "run" / "island-0")
    assert (found["credited_twice"], found["missing"], found["problem"]) == (0, 0, "")
    assert found["samples"] * CONTEXT == sum(summary["tokens_credited"] for summary in summaries)


@pytest.mark.processes
def test_who_is_killed_goes_on_with_what_it_held(tmp_path: Path, corpus: list[str], logged: Any) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    settings = (*corpus, "--set", "train.steps=1000000", "--set", "train.checkpoint_every=1")
    a = logged("first", command("train", RECIPE, "--out", first, *settings))
    join = wait_for(lambda: (first / "address").exists() and (first / "address").read_text(), "an address")
    joined = command("train", RECIPE, "--out", second, "--join", join.strip(), *settings)
    b = logged("second", joined)

    def together(more: int) -> None:
        seen = len(rounds(second))
        wait_for(lambda: len(rounds(second)) >= seen + more, f"{more} rounds more")

    together(3)
    os.kill(b.pid, signal.SIGKILL)
    b.wait(DEADLINE_S)
    b = logged("again", joined)
    together(3)
    for island in (b, a):
        island.send_signal(signal.SIGINT)
        assert island.wait(DEADLINE_S) == 128 + signal.SIGINT
    one_history(first, second)
    found = account(first)
    assert found["problem"] == ""
    entries = [line for line in lines(first / "ledger.jsonl") if "participants" in line]
    seen = found["samples"] + found["samples_twice"]
    assert seen * CONTEXT == entries[-1]["total_tokens"]
    assert {line["samples"]["data"] for line in entries} == {found["manifest"]}
