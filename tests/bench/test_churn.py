"""`lowcomm bench churn` as a user runs it, in a small form; no figure of time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.bench.churn_figures import (
    Life,
    Units,
    all_stay,
    churn_figures,
    committed_rounds,
    joiners_waits,
    unit_figures,
)
from lowcomm.bench.settings import ChurnBench
from lowcomm.cli.main import main
from lowcomm.ledger.audit import Audit
from lowcomm.ledger.credits import Credits

TIMEOUT_S = 280.0
NONE = Units(credited=0, twice=0, missing=0, samples=0, samples_twice=0)


@pytest.mark.processes
def test_islands_come_and_go_and_one_history_stays(tmp_path: Path) -> None:
    out = tmp_path / "churn.json"
    options = ["--events", "4", "--every-s", "0.1", "--settle-s", "1", "--json", str(out)]
    command = [sys.executable, "-m", "lowcomm", "bench", "churn", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    churn = json.loads(out.read_text())["churn"]
    assert churn["joins"] == len(churn["join_s"]) == 2
    assert churn["exits"] + churn["kills"] == 2
    assert len(churn["waited"]) + churn["never"] <= 2
    assert churn["rounds"] >= 6
    assert churn["forks"] == 0
    assert churn["units"]["credited"] > 0
    assert churn["units"]["samples_twice"] == 0
    assert churn["equal"] is True


def test_units_that_a_ledger_credits() -> None:
    samples = Credits(data="x", trained=(), credited=((0, 10), (12, 21)), twice=3)
    audit = Audit(samples=samples, twice=((5, 8),))
    found = unit_figures(4, audit, begun=22)
    # whole are 0 to 7 and 12 to 19; 8 to 11 lacks two samples, 20 to 23 had only begun
    assert found == Units(credited=4, twice=1, missing=1, samples=19, samples_twice=3)
    assert unit_figures(4, Audit(), begun=0) == NONE


def life(number: int, joined_s: float, gone_s: float, rounds: dict[int, tuple[float, list[str]]]) -> Life:
    events = [
        {"event": "connected", "at_s": joined_s - 0.5},
        {"event": "joined", "at_s": joined_s, "peer": f"p{number}", "how": "snapshot"},
    ]
    for outer_step, (at_s, participants) in rounds.items():
        events.append(
            {
                "event": "round",
                "at_s": at_s,
                "round_s": 0.5,
                "committed": True,
                "attempts": 1,
                "outer_step": outer_step,
                "participants": participants,
                "digest": str(outer_step),
            }
        )
    return Life(number=number, started_s=joined_s - 1, gone_s=gone_s, events=events)


def test_who_is_live_is_who_was_in_before_the_round_and_stayed() -> None:
    steady = life(0, 0.0, 99.0, {1: (10.0, ["p0", "p1"]), 2: (20.0, ["p0"]), 3: (30.0, ["p0", "p2"])})
    killed_in_round_two = life(1, 0.0, 19.8, {1: (10.1, ["p0", "p1"])})
    missed_round_two = life(2, 15.0, 99.0, {3: (30.0, ["p0", "p2"])})
    rounds = committed_rounds([steady, killed_in_round_two, missed_round_two])
    assert [sorted(one.live) for one in rounds] == [["p0", "p1"], ["p0", "p2"], ["p0", "p2"]]
    assert [one.share for one in rounds] == [1.0, 0.5, 1.0]
    assert joiners_waits([missed_round_two], rounds) == ([2], 0)


def test_a_joiner_that_is_never_in_a_round_is_counted_if_it_stayed_for_two() -> None:
    steady = life(0, 0.0, 99.0, {step: (10.0 * step, ["p0"]) for step in (1, 2, 3)})
    rounds = committed_rounds([steady])
    assert joiners_waits([life(1, 5.0, 99.0, {})], rounds) == ([], 1)
    assert joiners_waits([life(1, 5.0, 15.0, {})], rounds) == ([], 0)


def test_nobody_else_goes_before_a_round_without_who_has_gone() -> None:
    steady = life(0, 0.0, float("inf"), {1: (10.0, ["p0", "p1"])})
    killed = life(1, 0.0, 11.0, {1: (10.1, ["p0", "p1"])})
    assert not all_stay([steady, killed])
    later = life(2, 9.0, float("inf"), {2: (20.0, ["p0", "p2"])})
    assert all_stay([steady, killed, later])


def test_a_round_without_a_live_island_and_a_fork_are_seen() -> None:
    steady = life(0, 0.0, 99.0, {1: (10.0, ["p0", "p1"]), 2: (20.0, ["p0"])})
    other = life(1, 0.0, 99.0, {1: (10.1, ["p0", "p1"])})
    churn = churn_figures(ChurnBench(islands=2), [steady, other], exits=0, units=NONE)
    assert (churn.rounds, churn.full, churn.share) == (2, 1, 0.75)
    assert churn.short == ((2, 2, 1),)
    assert churn.forks == 0
    other.events[-1]["digest"] = "another"
    assert churn_figures(ChurnBench(islands=2), [steady, other], exits=0, units=NONE).forks == 1


def test_too_few_islands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "churn", "--islands", "4"]) == 2
    assert "--islands: expected" in capsys.readouterr().err
