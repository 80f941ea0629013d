"""Which test runs what the documentation shows: `python -m tests.docs.commands` lists it."""

from __future__ import annotations

import sys

from tests.docs.pages import ROOT, Command, commands, page_id

E2E = "tests/e2e/test_quickstart.py"
SITES = "tests/docs/test_two_machines.py::test_islands_meet_at_a_seed_are_seen_stopped_and_exported"
SCRIPTS = "tests/cli/test_commands.py::test_launch_scripts_parse"
LEDGER = "tests/cli/test_ledger.py"
PLAIN = "tests/docs/test_examples.py::test_two_processes_train_one_model_with_the_plain_loop"
HF = "tests/docs/test_examples.py::test_two_processes_train_one_hugging_face_model"
TRAINER = "tests/docs/test_examples.py::test_two_processes_train_one_model_with_the_trainer"
FRONT = "tests/docs/test_examples.py::test_the_python_of_the_front_page_runs_as_it_stands"

WORDS = "tests/e2e/test_words.py::test_a_tokenizer_a_corpus_two_islands_and_a_folder_for_transformers"
TASK = "tests/e2e/test_own_task.py::test_two_islands_learn_digits_and_the_export_knows_them"
INSTALL = "tests/docs/test_install.py::test_the_wheel_works_without_a_checkout"
MACHINES = "tests/docs/test_two_machines.py::test_the_commands_of_the_front_page_join_two_machines"

RUN_BY = {
    # how a command begins -> the test that runs it in a small form
    "lowcomm quickstart": f"{E2E}::test_quickstart_writes_what_scripts_read",
    "lowcomm launch": f"{E2E}::test_interrupted_launch_saves_and_is_resumed",
    "lowcomm train": SITES,
    "lowcomm launch recipes/digits.toml": TASK,
    "lowcomm launch recipes/words.toml": WORDS,
    "lowcomm seed": SITES,
    "lowcomm status": SITES,
    "lowcomm eval": "tests/training/test_harness.py::test_a_task_of_ones_own",
    "lowcomm export": SITES,
    "lowcomm bench round": "tests/bench/test_sites.py::test_rounds_commit_and_agree",
    "lowcomm bench utilisation": "tests/bench/test_sites.py::test_utilisation_adds_up",
    "lowcomm bench codecs": "tests/bench/test_codecs.py::test_command_writes_what_scripts_read",
    "lowcomm bench speeds": "tests/bench/test_speeds.py::test_islands_of_unlike_speed_train_one_model",
    "lowcomm bench engines": "tests/bench/test_engines.py::test_unlike_engines_train_as_plain_ones_do",
    "lowcomm bench snapshot": "tests/bench/test_snapshots.py::test_a_cut_snapshot_does_not_start_over",
    "lowcomm bench deaths": "tests/bench/test_deaths.py::test_the_others_commit_the_round_in_which_one_stops",
    "lowcomm bench donors": "tests/bench/test_donors.py::test_donors_train_on_while_a_joiner_comes",
    "lowcomm bench scale": "tests/bench/test_scale.py::test_the_command_writes_figures_and_growth",
    "lowcomm bench churn": "tests/bench/test_churn.py::test_islands_come_and_go_and_one_history_stays",
    "lowcomm bench soak": "tests/bench/test_soak.py::test_real_islands_keep_no_file_thread_or_descriptor",
    "lowcomm bench corpus": "tests/bench/test_corpus.py::test_a_killed_build_ends_like_an_undisturbed_one",
    "lowcomm bench reading": "tests/bench/test_reading.py::test_the_command_writes_figures_of_each_reader",
    "lowcomm bench learning": "tests/bench/test_learning.py::test_what_is_logged_is_not_trained_again",
    "lowcomm data build": "tests/cli/test_data.py::test_build_writes_what_scripts_read",
    "lowcomm data tokenizer": "tests/cli/test_data.py::test_build_writes_what_scripts_read",
    "lowcomm data inspect": "tests/cli/test_data.py::test_inspect_shows_sources_steps_and_documents",
    "lowcomm data verify": "tests/cli/test_data.py::test_verify_names_the_chunk_that_differs",
    "lowcomm data account": "tests/training/test_provenance.py::test_each_unit_is_credited_once",
    "lowcomm provenance": "tests/training/test_provenance.py::test_it_says_what_the_ledger_credits",
    "lowcomm recover": "tests/e2e/test_recover.py::test_one_of_three_goes_on_with_a_newcomer",
    "lowcomm invite": "tests/exchanges/test_access.py::test_invite_prints_a_token_that_works",
    "lowcomm chaos": "tests/e2e/test_chaos.py::test_a_run_survives_a_kill_a_freeze_and_a_p2pd_that_dies",
    "lowcomm ledger": f"{LEDGER}::test_a_sound_ledger_is_recomputed_from_the_genesis",
    "lowcomm ledger compact": f"{LEDGER}::test_a_compacted_ledger_is_verified_like_the_whole_one",
    "lowcomm report": "tests/cli/test_commands.py::test_report_writes_page_and_figures",
    # runs the tests, so none can run it; the other scripts are run without their set-up (SETUP=off)
    "bash launch/test.sh": SCRIPTS,
    "bash launch/quickstart.sh": f"{E2E}::test_quickstart_writes_what_scripts_read",
    "bash launch/island.sh": MACHINES,
    "bash launch/seed.sh": SITES,
    "cat": MACHINES,
    "pip install": INSTALL,
    "sbatch": "tests/launch/test_clusters.py::test_slurm_job_is_one_torchrun_per_node",
    "kubectl": "tests/launch/test_clusters.py::test_kubernetes_pods_start_the_island_of_the_config_map",
    "sky": "tests/launch/test_clusters.py::test_skypilot_task_fits_its_schema",
    "torchrun --standalone": "tests/e2e/test_engines.py::test_plain_fsdp2_and_zero3_train_one_model",
    "python docs/examples/plain_loop.py": PLAIN,
    "python docs/examples/hf_model.py": HF,
    "python docs/examples/trainer.py": TRAINER,
    "python -m lowcomm.sim.search": "tests/chaos/test_search.py::test_what_is_broken_is_told",
    "python -m lowcomm.config.reference": "tests/config/test_reference.py::test_reference_is_current",
}
NOT_OURS = {
    # commands of the system, as they stand
    "source .venv/bin/activate",
    "ss -ltnup",
    "pgrep -a p2pd",
}
EXAMPLES = ROOT / "docs" / "examples"
SNIPPETS = {
    # the page whose Python is run, or the example that is run as a whole -> the test that runs it
    ROOT / "README.md": FRONT,
    EXAMPLES / "plain_loop.py": PLAIN,
    EXAMPLES / "hf_model.py": HF,
    EXAMPLES / "trainer.py": TRAINER,
}


def beginning(command: Command) -> str | None:
    """The key of `RUN_BY` that a command begins with."""
    keys = (key for key in RUN_BY if command.words[: len(key.split())] == tuple(key.split()))
    return max(keys, key=len, default=None)


def test_of(command: Command) -> str:
    """The test that runs a command in a small form; a word where it is not ours to test."""
    key = beginning(command)
    return RUN_BY[key] if key else "(a command of the system)"


def main() -> None:
    """Print all commands and snippets with their tests, those of the front page first."""
    rows = [(page_id(command.page), command.text, test_of(command)) for command in commands()]
    rows += [(page_id(page), "its Python", test) for page, test in SNIPPETS.items()]
    width = max(len(page) for page, _, _ in rows)
    for page, what, test in sorted(rows, key=lambda row: (row[0] != "README.md", row[0])):
        sys.stdout.write(f"{page:{width}}  {what}\n{'':{width}}    {test}\n")


if __name__ == "__main__":
    main()
