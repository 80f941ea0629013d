"""The search for schedules that break promises: what it has found, and that it is led and repeats itself."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from lowcomm.sim import search
from lowcomm.sim.search import Played, Setup, changed, new_schedule, play
from lowcomm.sim.tapes import MessageFault, PeerFault, Tape

NAMES = {"Setup": Setup, "Tape": Tape, "MessageFault": MessageFault, "PeerFault": PeerFault}
FOUND = [
    pytest.param(line["setup"], line["tape"], id=line["found"])
    for line in map(
        json.loads, Path(__file__).with_name("found_schedules.jsonl").read_text(encoding="utf-8").splitlines()
    )
]
"""As the command prints them."""


@pytest.mark.parametrize(("setup", "tape"), FOUND)
def test_schedules_that_were_found_break_nothing(setup: str, tape: str) -> None:
    assert play(eval(setup, NAMES), eval(tape, NAMES)).problems == ()


def test_the_same_seed_plays_the_same_schedules() -> None:
    one, other = (search.search(3, 3600.0, most=2) for _ in range(2))
    assert one.schedules == other.schedules == 2
    assert (one.few, one.rivals, one.best) == (other.few, other.rivals, other.best)


def test_changed_schedules_aim_at_first_votes_and_stay_within_their_time() -> None:
    rng, aimed = random.Random(0), 0
    for _ in range(200):
        setup, tape = new_schedule(rng)
        played = Played(setup, tape, (), few=0, rivals=0, moments=(7.0,))
        same, other = changed(played, rng)
        assert same == setup
        assert [fault.start_s for fault in other.peers] == sorted(fault.start_s for fault in other.peers)
        assert all(1.0 <= fault.start_s < tape.quiet_s for fault in set(other.peers) - set(tape.peers))
        assert all(set(fault.peers) < set(range(setup.islands)) for fault in other.peers)
        aimed += any(7.0 <= fault.start_s <= 7.5 for fault in set(other.peers) - set(tape.peers))
    assert aimed > 50


def test_what_is_broken_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "broken", lambda outcome: ["two histories"])
    file = tmp_path / "search.jsonl"
    assert search.main(["--seed", "4", "--most", "1", "--json", str(file)]) == 1
    (violation,) = json.loads(file.read_text())["violations"]
    assert violation["problems"].startswith("two histories")
    assert eval(violation["setup"], {"Setup": Setup}).islands in (3, 4, 5)
    assert "seed 4: 1 schedules in" in capsys.readouterr().out


def test_bad_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--minutes", "0"], ["--most", "0"]):
        with pytest.raises(SystemExit):
            search.main(words)
    assert "--minutes: expected more than 0, got 0" in capsys.readouterr().err
