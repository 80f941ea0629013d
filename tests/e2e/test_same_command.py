"""Islands are killed and started again with the same command while the other trains on: one history stays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lowcomm.launching.process_table import alive, children_of
from tests.e2e.runs import DEADLINE_S, ROOT, lines
from tests.e2e.test_deaths import LONG, one_history, rounds, wait_for

RECIPE = ROOT / "recipes" / "quickstart.toml"
SETTINGS = (*LONG, "--set", "train.checkpoint_every=1", "--set", "metrics.console=off")


def starts(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return [line for line in lines(file) if line["kind"] == "start"] if file.exists() else []


def credited(folder: Path) -> dict[int, dict[str, int]]:
    """Tokens of each participant, by outer step, as the ledger of an island has them."""
    whole = [line for line in lines(folder / "ledger.jsonl") if "participants" in line]
    return {line["outer_step"]: dict(line["participants"]) for line in whole}


@pytest.mark.processes
@pytest.mark.timeout(500)
def test_the_founder_and_then_who_joined_through_it_come_back(tmp_path, start) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    a = start("train", RECIPE, "--out", first, *SETTINGS)
    address = first / "address"
    join = wait_for(lambda: address.exists() and address.read_text().strip(), "an address to join")
    joined = ("train", RECIPE, "--out", second, "--join", join, *SETTINGS)
    b = start(*joined)

    def together(more: int) -> None:
        """Both commit so many more rounds of two."""
        seen = max(
            line["outer_step"]
            for folder in (first, second)
            for line in rounds(folder)[-1:] or [{"outer_step": 0}]
        )
        for folder in (first, second):
            wait_for(
                lambda folder=folder: (
                    len([r for r in rounds(folder) if r["outer_step"] > seen and len(r["participants"]) == 2])
                    >= more
                ),
                f"{more} rounds of two in {folder.name}",
            )

    def killed(island) -> None:
        daemons = children_of(island.pid)
        os.kill(island.pid, signal.SIGKILL)
        island.wait(DEADLINE_S)
        wait_for(lambda: not any(map(alive, daemons)), "its daemon ends, too")

    together(2)
    killed(a)
    a = start("train", RECIPE, "--out", first, *SETTINGS)  # has another port now
    together(2)
    assert address.read_text().strip() != join
    killed(b)
    b = start(*joined)  # nobody is there any more
    together(2)
    for island in (a, b):
        island.send_signal(signal.SIGINT)
        _, stderr = island.communicate(timeout=DEADLINE_S)
        assert island.returncode == 130, stderr
        assert "starts alone" not in stderr

    one_history(first, second)
    for folder in (first, second):
        assert len(starts(folder)) == 2
        assert starts(folder)[1]["how"] in ("aligned", "replayed", "snapshot")
        assert starts(folder)[0]["peer"] == starts(folder)[1]["peer"]
    here, there = credited(first), credited(second)
    assert len(here.keys() & there.keys()) > 3
    assert all(here[step] == there[step] for step in here.keys() & there.keys())
