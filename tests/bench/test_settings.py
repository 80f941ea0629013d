"""The settings of the benches: their command, its help and its errors follow from the fields."""

from __future__ import annotations

import importlib
import re

import pytest

from lowcomm.bench.options import Settings, flag
from lowcomm.bench.settings import BENCHES
from lowcomm.cli.main import main, make_parser

ALL = pytest.mark.parametrize("bench", BENCHES.values(), ids=lambda bench: bench.NAME)


@ALL
def test_the_help_has_every_option_with_its_default_and_an_example(
    bench: type[Settings], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        main(["bench", bench.NAME, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, option in bench.options().items():
        assert (option.metavar if option.positional else flag(name)) in shown
        assert option.help in shown
    assert f"example: {' '.join(bench.EXAMPLE.split())}" in shown


@ALL
def test_the_example_of_the_help_is_taken(bench: type[Settings]) -> None:
    for example in bench.EXAMPLE.split("\n"):
        words = example[example.index("lowcomm ") :].split()[1:]
        args = make_parser().parse_args(words)
        bench(**{name: getattr(args, name) for name in bench.options()}).check()


@ALL
def test_its_module_measures(bench: type[Settings]) -> None:
    assert callable(importlib.import_module(bench.MODULE).run)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("codecs --rounds 0", r"--rounds: expected at least 1, got 0"),
        ("codecs --payload-mib 0", r"--payload-mib: expected more than 0, got 0"),
        ("codecs --payload-mib nan", r"--payload-mib: expected more than 0, got nan"),
        ("round --peers 2,1", r"--peers: expected at least 2, got 1"),
        ("round --islands 2", r"--islands, .*: expected --run-id ID with them"),
        ("round --run-id a --stock", r"--stock and --prefix start processes here"),
        ("utilisation --run-id a", r"expected --run-id ID and --islands N of at least 2"),
        ("utilisation --delay soon", r"--delay: expected a number of inner steps or auto, got soon"),
        ("speeds --steps-s 1", r"--steps-s: expected the seconds of at least 2 islands, got 1"),
        ("speeds --slow-island 3", r"--slow-island: expected an island from 0 to 2, got 3"),
        ("speeds --slow-rounds 5", r"--slow-rounds: expected at least 6, got 5"),
        ("snapshot --cut 1", r"--cut: expected a number between 0 and 1, got 1"),
    ],
)
def test_what_can_not_be_measured_is_one_line(
    words: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(says, line)
