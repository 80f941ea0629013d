"""What an island says before it trains, and who hears it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowcomm.training.phases import VARIABLE, Phases


def test_the_launcher_finds_the_newest_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "phase"))
    phases = Phases(console=True)
    phases.begin("reading the text")
    phases.begin("building the model")
    assert (tmp_path / "phase").read_text() == "building the model\n"
    assert capsys.readouterr().err == "lowcomm: reading the text\nlowcomm: building the model\n"


def test_other_ranks_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "phase"))
    monkeypatch.setenv("RANK", "1")
    Phases(console=True).begin("reading the text")
    assert not (tmp_path / "phase").exists()
    assert capsys.readouterr().err == ""


def test_a_phase_that_can_not_be_written_stops_nothing(tmp_path: Path) -> None:
    phases = Phases(console=False, file=tmp_path / "gone" / "phase")
    phases.begin("reading the text")
    assert phases.now == "reading the text"
