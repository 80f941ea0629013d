"""Every command in the documentation parses, names what exists, and is run by a test."""

from __future__ import annotations

import re

import pytest

from lowcomm.cli.main import make_parser
from lowcomm.cli.train import all_overrides
from lowcomm.config.load import load_config
from tests.docs.commands import EXAMPLES, NOT_OURS, RUN_BY, SNIPPETS, beginning, main
from tests.docs.pages import ROOT, Command, commands, prose, test_exists

SCRIPT_COMMANDS = {
    "launch/quickstart.sh": "quickstart",
    "launch/island.sh": "train",
    "launch/seed.sh": "seed",
}

ALL = commands()
LOWCOMM = [c for c in ALL if c.words[0] in ("lowcomm", "torchrun") or c.words[:1] == ("bash",)]


def lowcomm_words(command: Command) -> list[str] | None:
    """The arguments that `lowcomm` gets in the end; None if it is not called."""
    words = list(command.words)
    if words[0] == "lowcomm":
        return words[1:]
    if words[0] == "torchrun":
        at = words.index("lowcomm")
        assert words[at - 1] == "-m"
        return words[at + 1 :]
    subcommand = SCRIPT_COMMANDS.get(words[1])
    return None if subcommand is None else [subcommand, *words[2:]]


def test_there_are_commands():
    assert len(ALL) > 20


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.id)
def test_command_is_run_by_a_test(command):
    assert beginning(command) or command.text in NOT_OURS, "add it to RUN_BY, with a test that runs it"


@pytest.mark.parametrize("name", sorted({*RUN_BY.values(), *SNIPPETS.values()}))
def test_named_test_exists(name):
    assert test_exists(name) if "::" in name else (ROOT / name).is_file()


def test_every_example_is_run_by_a_test():
    assert set(EXAMPLES.glob("*.py")) <= set(SNIPPETS)


def test_the_list_shows_each_command_with_its_test(capsys):
    main()
    listed = capsys.readouterr().out
    assert all(command.text in listed for command in ALL)
    assert listed.index("README.md") == 0


@pytest.mark.parametrize("command", LOWCOMM, ids=lambda command: command.id)
def test_command_parses(command):
    words = lowcomm_words(command)
    if command.words[0] == "bash":
        script = ROOT / command.words[1]
        assert script.is_file()
        text = script.read_text()
        assert all(re.search(rf"\b{name}\b", text) for name in command.variables), (
            "a variable it doesn't read"
        )
    if words is None:
        return
    args = make_parser().parse_args(words)
    recipe = getattr(args, "recipe", None)
    if recipe is not None:
        assert (ROOT / recipe).is_file()
    if hasattr(args, "overrides"):
        overrides = all_overrides(args.overrides, None, getattr(args, "join", []))
        profile = getattr(args, "profile", None)
        config = load_config(ROOT / recipe if recipe else None, overrides, profile=profile)
        if recipe is not None and config.data.source != "stdlib":
            named = any(override.startswith("data.source=") for override in args.overrides)
            assert named or f"`{config.data.source}`" in prose(command.page), (
                "the text is the reader's: name it in the command, or say on the page where it has to lie"
            )
