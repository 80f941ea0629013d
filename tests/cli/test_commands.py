"""The commands as their users meet them: help, exit codes, one line per error."""

import json
import logging
import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

from lowcomm.cli.main import main, make_parser
from tests.report.make_runs import write_island

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "quickstart.toml"
COMMANDS = sorted(
    command
    for action in make_parser()._subparsers._group_actions  # argparse has no public way to list them
    for command in action.choices
)


@pytest.fixture(autouse=True)
def _own_log_handler():
    logger = logging.getLogger("lowcomm")
    before, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = before
    logger.setLevel(level)


def call(capsys, *arguments):
    """(exit code, standard output, standard error) of a command."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse leaves by itself
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err


def assert_refused(result, code, words):
    got, out, err = result
    assert got == code
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("lowcomm: error: ")
    assert re.search(words, err)


def test_the_promised_commands_are_there():
    assert {"quickstart", "train", "launch", "seed", "status", "report", "export"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"example: lowcomm {command}" in out


def test_ctrl_c_while_the_commands_are_loaded_is_one_line(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("lowcomm.cli.main.make_parser", interrupted)
    assert call(capsys, "launch") == (130, "", "lowcomm: error: interrupted\n")


def test_no_command_is_wrong_usage(capsys):
    code, _, err = call(capsys)
    assert code == 2
    assert "COMMAND" in err


def test_dry_run_prints_the_resolved_settings(capsys):
    code, out, err = call(
        capsys, "train", RECIPE, "--dry-run", "--set", "shared.schedule.inner_steps=7", "--out", "some/where",
        "--join", "other@/ip4/10.0.0.1/tcp/1/p2p/12D3KooWx", "--join", "/ip4/10.0.0.2/tcp/1/p2p/12D3KooWy",
    )  # fmt: skip
    settings = tomllib.loads(out)
    assert (code, err) == (0, "")
    assert settings["shared"]["schedule"]["inner_steps"] == 7
    assert settings["out"] == "some/where"
    assert settings["shared"]["run_id"] == "other"
    assert settings["exchange"]["initial_peers"] == [
        "/ip4/10.0.0.1/tcp/1/p2p/12D3KooWx",
        "/ip4/10.0.0.2/tcp/1/p2p/12D3KooWy",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_resolves_and_says_what_it_needs(capsys, path):
    code, out, _ = call(capsys, "train", path, "--dry-run")
    assert code == 0
    assert tomllib.loads(out)
    header = path.read_text().split("\n[")[0]
    assert "Hardware:" in header
    assert "Time:" in header or "Expect:" in header


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "missing.toml"], "missing.toml: expected a recipe"),
        (["train", RECIPE, "--set", "shared.schedul.inner_steps=3"], "did you mean shared.schedule.inner_st"),
        (["train", RECIPE, "--set", "train.steps=0"], "train.steps"),
        (["train", RECIPE, "--join", "nonsense"], "RUN_ID@"),
        (["train", RECIPE, "--join", "a@/ip4/1.2.3.4/tcp/1", "--join", "b@/ip4/1.2.3.4/tcp/1"], "of a, b"),
        (["train", RECIPE, "--json", "no/such/folder/f.json"], "folder that exists"),
        (["launch", RECIPE, "--islands", "9", "--out", "never"], "shared.data.shards=9"),
        (["quickstart", "--recipe", "missing.toml"], "missing.toml: expected a recipe, got no such file"),
        (["quickstart", "--set", "nonsense"], "KEY=VALUE"),
        (["status", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWx"], "RUN_ID@multiaddr"),
        (["status", ""], r"STRING \(empty\): expected RUN_ID@"),
    ],
    ids=["no-recipe", "unknown-key", "out-of-range", "no-address", "two-runs", "json-folder", "shards",
         "no-quickstart-recipe", "no-equals", "status-without-run", "status-of-nothing"],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_code_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(call(capsys, *arguments), 2, words)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_one_line_and_code_1(capsys, tmp_path):
    assert_refused(call(capsys, "report", tmp_path), 1, "expected a run folder")


def test_exporting_what_is_no_run_is_one_line_and_code_1(capsys, tmp_path):
    assert_refused(call(capsys, "export", tmp_path, "--out", tmp_path / "out"), 1, str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_traceback_on_request(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWCOMM_TRACEBACK", "1")
    with pytest.raises(Exception, match="expected a run folder"):
        main(["report", str(tmp_path)])


def test_report_writes_page_and_figures(capsys, tmp_path):
    for index in range(2):
        write_island(tmp_path / "run" / f"island-{index}", index)
    code, out, err = call(capsys, "report", tmp_path / "run", "--json", tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())["runs"][0]
    assert code == 0
    assert figures["digests_equal"] is True
    assert "outer states equal, bit for bit\tyes" in out
    assert str(tmp_path / "run" / "report.html") in err
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_json_on_standard_output_is_nothing_but_json(capsys, tmp_path):
    write_island(tmp_path, 0, islands=1)
    code, out, _ = call(capsys, "report", tmp_path, "--json", "-")
    assert code == 0
    assert json.loads(out)["runs"][0]["islands"] == 1


SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_launch_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("name", ["quickstart.sh", "island.sh", "seed.sh"])
def test_launch_scripts_explain_themselves(name):
    shown = subprocess.run(
        ["bash", ROOT / "launch" / name, "--help"], capture_output=True, text=True, check=True
    )
    assert "usage:" in shown.stdout
    assert "example:" in shown.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "environment", "words"),
    [
        ("seed.sh", [], {}, "RUN_ID=NAME"),
        ("seed.sh", [], {"RUN_ID": "a", "PORT": "99999"}, "PORT: expected 1 to 65535"),
        ("island.sh", [], {}, "usage:"),
        ("island.sh", ["missing.toml"], {}, "no file missing.toml"),
        ("island.sh", [str(RECIPE)], {"NPROC": "two"}, "NPROC"),
        ("island.sh", [str(RECIPE)], {"JOIN": "10.0.0.1"}, "JOIN: expected RUN_ID@"),
    ],
    ids=["no-run-id", "bad-port", "no-recipe", "missing-recipe", "bad-nproc", "bad-join"],
)
def test_launch_scripts_check_what_they_need(name, arguments, environment, words):
    ran = subprocess.run(
        ["bash", ROOT / "launch" / name, *arguments],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip
    assert ran.returncode == 2
    assert words in ran.stderr


def train(capsys, tmp_path, setting):
    """`lowcomm train` with one setting that can't be right, on a little text."""
    (tmp_path / "text").mkdir()
    for number in range(4):
        (tmp_path / "text" / f"{number}.txt").write_text("a little text, many times over. " * 100)
    settings = [f"data.source={tmp_path / 'text'}", "shared.data.shards=2", "metrics.wandb=off", setting]
    settings.append("metrics.console=off")  # without the phases before
    words = [word for one in settings for word in ("--set", one)]
    return call(capsys, "train", RECIPE, "--out", tmp_path / "run", *words)


def test_an_initial_peer_that_is_no_address(capsys, tmp_path):
    assert_refused(
        train(capsys, tmp_path, 'exchange.initial_peers=["nonsense"]'), 2, "'nonsense': expected /ip4/"
    )


def test_a_port_that_is_taken(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = train(capsys, tmp_path, f'exchange.listen=["/ip4/127.0.0.1/tcp/{port}"]')
    assert_refused(result, 1, f"port {port} is taken")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon", "1e9"])
def test_watching_takes_seconds(capsys, seconds):
    code, out, err = call(capsys, "status", "r@/ip4/127.0.0.1/tcp/1/p2p/12D3KooWx", f"--watch={seconds}")
    assert (code, out) == (2, "")
    assert "expected seconds from 0.1 to 86400, got" in err
