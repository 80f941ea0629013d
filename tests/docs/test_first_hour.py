"""What the log of the first hour notes of a terminal."""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest

from tests.docs.pages import ROOT

SCRIPT = ROOT / "docs" / "results" / "first_hour.py"


@pytest.fixture(scope="module")
def first_hour():
    spec = importlib.util.spec_from_file_location("first_hour", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("one\r\ntwo\r\n", ["one", "two"]),
        ("10 %\r20 %\r\x1b[K30 %", ["30 %"]),
        ("\x1b[1mbold\x1b[0m \x1b[?25lhidden", ["bold hidden"]),
        ("a\r\nb\r\n\x1b[2A\x1b[2Knew\r\n\x1b[2Kbelow\r\n", ["new", "below"]),
        ("a\r\nb\r\nc\x1b[2F\x1b[Jd", ["d"]),
        ("x" * 101, ["x" * 100, "x"]),
    ],
    ids=["lines", "rewritten", "colours", "table-drawn-again", "erased-below", "wrapped"],
)
def test_the_screen_shows_what_a_terminal_would(first_hour, output, shown):
    for pieces in ([output], list(output)):
        screen = first_hour.Screen()
        for piece in pieces:
            screen.feed(piece)
        assert screen.last(10) == shown


def test_a_command_is_watched_until_it_ends(first_hour, tmp_path):
    run = tmp_path / "runs" / "one" / "island-0"
    run.mkdir(parents=True)
    line = json.dumps({"kind": "round", "committed": True})
    command = f"test -t 1 && echo at a terminal; echo '{line}' > {run}/metrics.jsonl; exit 3"
    seen = first_hour.watch(command, tmp_path, dict(os.environ))
    assert seen["exit_code"] == 3
    assert 0 <= seen["first_round_s"] <= seen["ended_s"]
    assert seen["seconds"][-1]["console"] == ["at a terminal"]
    assert json.loads(first_hour.as_text(seen)) == seen


def test_it_types_what_the_front_page_shows(first_hour):
    assert first_hour.first_command((ROOT / "README.md").read_text()) == "bash launch/quickstart.sh"


def test_its_programs_are_not_those_of_an_environment(first_hour, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", "/some/venv")
    monkeypatch.setenv("PATH", f"/some/venv/bin:{sys.prefix}/bin:/usr/bin")
    parts = first_hour.path_without_venv().split(":")
    assert parts[-1] == "/usr/bin"
    assert "/some/venv/bin" not in parts
