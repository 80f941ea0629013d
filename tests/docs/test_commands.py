"""Every command in the documentation parses, names what exists, and is run by a test."""

from __future__ import annotations

import re

import pytest

from lowcomm.cli.main import make_parser
from lowcomm.cli.train import all_overrides
from lowcomm.config.load import load_config
from tests.docs.pages import ROOT, Command, commands, test_exists

E2E = "tests/e2e/test_quickstart.py"
SITES = "tests/docs/test_two_machines.py::test_islands_meet_at_a_seed_are_seen_stopped_and_exported"
SCRIPTS = "tests/cli/test_commands.py::test_launch_scripts_parse"
PLAIN = "tests/docs/test_examples.py::test_two_processes_train_one_model_with_the_plain_loop"
HF = "tests/docs/test_examples.py::test_a_hugging_face_model_learns"

RUN_BY = {
    # how a command begins -> the test that runs it in a small form
    "lowcomm quickstart": f"{E2E}::test_quickstart_writes_what_scripts_read",
    "lowcomm launch": f"{E2E}::test_interrupted_launch_saves_and_is_resumed",
    "lowcomm train": SITES,
    "lowcomm seed": SITES,
    "lowcomm status": SITES,
    "lowcomm export": SITES,
    "lowcomm bench round": "tests/bench/test_sites.py::test_rounds_commit_and_agree",
    "lowcomm bench utilisation": "tests/bench/test_sites.py::test_utilisation_adds_up",
    "lowcomm bench codecs": "tests/bench/test_codecs.py::test_command_writes_what_scripts_read",
    "lowcomm bench speeds": "tests/bench/test_speeds.py::test_islands_of_unlike_speed_train_one_model",
    "lowcomm bench engines": "tests/bench/test_engines.py::test_unlike_engines_train_as_plain_ones_do",
    "lowcomm bench snapshot": "tests/bench/test_snapshots.py::test_a_cut_snapshot_does_not_start_over",
    "lowcomm bench deaths": "tests/bench/test_deaths.py::test_the_others_commit_the_round_in_which_one_stops",
    "lowcomm bench donors": "tests/bench/test_donors.py::test_donors_train_on_while_a_joiner_comes",
    "lowcomm bench churn": "tests/bench/test_churn.py::test_islands_come_and_go_and_one_history_stays",
    "lowcomm bench learning": "tests/bench/test_learning.py::test_what_is_logged_is_not_trained_again",
    "lowcomm invite": "tests/membership/test_access.py::test_invite_prints_a_token_that_works",
    "lowcomm chaos": "tests/e2e/test_chaos.py::test_a_run_survives_a_kill_a_freeze_and_a_p2pd_that_dies",
    "lowcomm ledger": "tests/cli/test_ledger.py::test_a_sound_ledger_is_recomputed_from_the_genesis",
    "lowcomm report": "tests/cli/test_commands.py::test_report_writes_page_and_figures",
    # the scripts set up a virtual environment, then run `lowcomm` or pytest; parsed as those below
    "bash launch/quickstart.sh": SCRIPTS,
    "bash launch/island.sh": SCRIPTS,
    "bash launch/seed.sh": SCRIPTS,
    "bash launch/test.sh": SCRIPTS,
    "sbatch": "tests/launch/test_clusters.py::test_slurm_job_is_one_torchrun_per_node",
    "kubectl": "tests/launch/test_clusters.py::test_kubernetes_pods_start_the_island_of_the_config_map",
    "sky": "tests/launch/test_clusters.py::test_skypilot_task_fits_its_schema",
    "torchrun --standalone": "tests/e2e/test_engines.py::test_plain_fsdp2_and_zero3_train_one_model",
    "python docs/examples/plain_loop.py": PLAIN,
    "python docs/examples/hf_model.py": HF,
    "python -m lowcomm.config.reference": "tests/config/test_reference.py::test_reference_is_current",
}
NOT_OURS = {
    # commands of the system, as they stand
    "source .venv/bin/activate",
    "cat runs/150m/address",
    "cat runs/1b/address",
    "ss -ltnup",
    "pgrep -a p2pd",
}
SCRIPT_COMMANDS = {
    "launch/quickstart.sh": "quickstart",
    "launch/island.sh": "train",
    "launch/seed.sh": "seed",
}

ALL = commands()
LOWCOMM = [c for c in ALL if c.words[0] in ("lowcomm", "torchrun") or c.words[:1] == ("bash",)]


def beginning(command: Command) -> str | None:
    """The key of `RUN_BY` that a command begins with."""
    keys = (key for key in RUN_BY if command.words[: len(key.split())] == tuple(key.split()))
    return max(keys, key=len, default=None)


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


@pytest.mark.parametrize("name", sorted(set(RUN_BY.values())))
def test_named_test_exists(name):
    assert test_exists(name) if "::" in name else (ROOT / name).is_file()


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
        load_config(ROOT / recipe if recipe else None, overrides, profile=profile)
