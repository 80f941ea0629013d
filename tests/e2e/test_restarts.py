"""A rank dies inside an island: torchrun starts the island again, and the swarm sees one peer come back."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from lowcomm.launching.process_table import ProcessKey, alive, children_of, with_variable
from tests.e2e.runs import DEADLINE_S, ROOT, SMALL, lines
from tests.e2e.test_deaths import one_history, rounds, wait_for

RECIPE = "recipes/quickstart.toml"
SETTINGS = (
    *SMALL, "train.steps=1000000", "train.threads=1", "train.device=cpu", "exchange.lease_s=3",
    "shared.run_id=restarts", "shared.round.deadline_s=20", "metrics.console=off",
)  # fmt: skip


@pytest.fixture
def island(source, tmp_path, logged):
    """Start `launch/island.sh` with this Python."""

    def start(name, *overrides, ranks, join=""):
        words = ["bash", "launch/island.sh", RECIPE]
        for override in (*SETTINGS, f"data.source={source}", *overrides):
            words += ["--set", override]
        python = Path(sys.executable).parent
        variables = {
            "SETUP": "off", "NPROC": str(ranks), "OUT": str(tmp_path / name), "JOIN": join,
            "MAX_RESTARTS": "1", "PATH": f"{python}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        return logged(name, words, **variables)

    return start


def process_of(torchrun: int, rank: int) -> ProcessKey:
    """The process of one rank."""
    (found,) = set(with_variable("RANK", str(rank))) & set(children_of(torchrun))
    return found


def starts(folder: Path) -> list[dict]:
    return [line for line in lines(folder / "metrics.jsonl") if line["kind"] == "start"]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("victim", "checkpoint_every", "engine"),
    [(0, 1, "ddp"), (1, 0, "fsdp2")],
    ids=["the-lead-with-a-checkpoint", "another-rank-without-one"],
)
def test_a_rank_dies_and_the_island_returns(tmp_path, island, victim, checkpoint_every, engine) -> None:
    alone = island("alone", ranks=1)
    a, b = tmp_path / "alone", tmp_path / "pair"
    address = a / "address"
    join = wait_for(lambda: address.exists() and address.read_text().strip(), "an address to join")
    pair = island(
        "pair", f"train.checkpoint_every={checkpoint_every}", f"island.engine={engine}", ranks=2, join=join
    )
    both = wait_for(
        lambda: [r["participants"] for r in rounds(b) if len(r["participants"]) == 2][2:],
        "three rounds of two islands",
    )[0]
    if checkpoint_every:
        wait_for(lambda: any((b / "checkpoints").glob("step-*")), "a checkpoint")
    ranks = {rank: process_of(pair.pid, rank) for rank in range(2)}
    daemons = children_of(ranks[0].pid)
    seen = rounds(a)[-1]["outer_step"]
    os.kill(ranks[victim].pid, signal.SIGKILL)

    wait_for(lambda: not any(map(alive, (*ranks.values(), *daemons))), "torchrun ends the other rank, too")
    wait_for(
        lambda: [r for r in rounds(a) if r["outer_step"] > seen and len(r["participants"]) == 1],
        "a round of the island that is left",
    )
    wait_for(lambda: rounds(a)[-1]["participants"] == both, "the same two peers in one round again")
    wait_for(lambda: len(starts(b)) == 2 and rounds(b)[-1]["outer_step"] > seen, "its side of that round")
    assert pair.poll() is None
    # two lives of one peer, the second from its checkpoint and what the swarm has committed since, or from
    # the swarm alone; by its entries or by a snapshot, whichever is less
    first, second = starts(b)
    assert first["peer"] == second["peer"]
    assert (second["resumed_from"] is not None) is bool(checkpoint_every)
    assert second["how"] in ("replayed", "snapshot")
    assert second["inner_step"] >= 30

    for process in (pair, alone):
        process.send_signal(signal.SIGINT)
        process.wait(DEADLINE_S)
    one_history(a, b)
    for folder in (a, b):
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["interrupted"]
        assert summary["tokens"] == summary["tokens_credited"] + summary["tokens_dropped"]
