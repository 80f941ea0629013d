"""`lowcomm quickstart`: the main job on this machine, from nothing to a report with plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.cli.common import (
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    add_set,
    check_writable,
    positive,
    print_error,
    print_table,
    write_json,
)
from lowcomm.cli.launch import exit_code, launch_and_show, tell_failures
from lowcomm.clock import SystemClock
from lowcomm.config.profiles import RECIPES
from lowcomm.errors import ConfigError
from lowcomm.launching.islands import LaunchPlan
from lowcomm.launching.session import LaunchResult
from lowcomm.metrics import METRICS_FILE
from lowcomm.types import Json

RECIPE, BASELINE_RECIPE = RECIPES / "quickstart.toml", RECIPES / "baseline.toml"
COMMITTED = RECIPES / "quickstart_baseline.json"


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "quickstart",
        about="train on this machine with several islands, and report",
        example="lowcomm quickstart\n         lowcomm quickstart --islands 4 --steps 1500 --baseline",
    )
    parser.add_argument("--islands", metavar="N", type=positive, default=2, help="islands (default 2)")
    parser.add_argument(
        "--steps", metavar="S", type=positive, help="inner steps of each (default: the recipe's)"
    )
    parser.add_argument(
        "--seed", metavar="K", type=int, help="seed of weights and data (default: the recipe's)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the run; an unfinished run in it is resumed"
        " (default: the next free runs/quickstart-*)",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", metavar="FILE", type=Path, default=RECIPE, help="another recipe than its own"
    )
    parser.add_argument(
        "--baseline", action="store_true", help="train data-parallel, too, at equal tokens, to compare with"
    )
    parser.add_argument(
        "--save-baseline",
        metavar="FILE",
        type=Path,
        help="add the data-parallel figures to FILE, where later runs with these settings find them",
    )
    add_set(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Launch the islands, run the baseline if asked, print the table, write the report."""
    check_writable(args.json)
    from lowcomm.config.load import load_config

    overrides = [*args.overrides]
    if args.steps is not None:
        overrides.append(f"train.steps={args.steps}")
    if args.seed is not None:
        overrides.append(f"shared.seed={args.seed}")
    config = load_config(args.recipe, overrides)
    out = args.out if args.out is not None else _free_folder()
    print(
        f"lowcomm: {args.islands} islands, {config.train.steps} inner steps each, in {out}", file=sys.stderr
    )
    plan = LaunchPlan(
        recipe=args.recipe, config=config, overrides=tuple(overrides), out=out, islands=args.islands
    )
    result = launch_and_show(plan, SystemClock())
    tell_failures(result)
    if result.interrupted:
        print_error(f"interrupted; go on with: lowcomm quickstart --islands {args.islands} --out {out}")
        return exit_code(result)
    if result.failures and not any((plan.folder(i) / METRICS_FILE).exists() for i in range(plan.islands)):
        return exit_code(result)  # nothing has begun: there is nothing to report
    baseline = _baseline(plan, afresh=args.baseline, save=args.save_baseline)
    return _conclude(plan, result, baseline, args.json)


@dataclass(frozen=True)
class _Baseline:
    """Figures of a data-parallel run, and where they come from."""

    figures: dict[str, Any]
    words: str


def _baseline(plan: LaunchPlan, *, afresh: bool, save: Path | None) -> _Baseline | None:
    from lowcomm.training.baseline import baseline_key, run_baseline

    key = baseline_key(plan.config, plan.islands, BASELINE_RECIPE)
    if afresh or save is not None:
        from rich.progress import Progress

        with Progress(transient=True) as progress:
            task = progress.add_task("data-parallel, for comparison", total=plan.config.train.steps)
            figures = run_baseline(
                plan.config,
                plan.islands,
                BASELINE_RECIPE,
                # more threads than the recipe's slow a small model down where the cores have other work
                threads=plan.config.train.threads,
                on_step=lambda step: progress.update(task, completed=step),
            )
        if save is not None:
            entries = {**_read_entries(save), key: figures}
            save.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        return _Baseline(figures, "trained just now")
    entry = _read_entries(COMMITTED).get(key)
    if entry is None:
        return None
    return _Baseline(entry, f"committed, text of Python {entry.get('python', '?')}")


def _read_entries(path: Path) -> dict[str, Any]:
    """Baselines by their key; none where there is no such file."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON, got: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: expected a JSON object, got a {type(entries).__name__}")
    return entries


def _conclude(
    plan: LaunchPlan, result: LaunchResult, baseline: _Baseline | None, json_file: str | None
) -> int:
    from lowcomm.report import load_run, run_figures, write_page
    from lowcomm.report.runs import BASELINE_FILE
    from lowcomm.report.table import figure_rows

    path = plan.out / BASELINE_FILE
    if baseline is not None:
        path.write_text(json.dumps(baseline.figures) + "\n", encoding="utf-8")
    else:
        path.unlink(missing_ok=True)  # of an earlier run in this folder, perhaps with other settings
    run = load_run(plan.out)
    figures = run_figures(run)
    if json_file:
        write_json(json_file, contract(figures.to_dict(), result.wall_s))
    if json_file != "-":
        rows = figure_rows(figures)
        if baseline is not None:
            rows.append(("the data-parallel run was", baseline.words))
        print_table(("", ""), rows, title=f"run {run.run_id} in {plan.out}")
    page = plan.out / "report.html"
    write_page([run], page)
    print(f"lowcomm: the report with plots is in {page}", file=sys.stderr)
    if not result.failures and figures.islands > 1 and figures.digests_equal is not True:
        print_error("the islands ended with different outer states; see the digests in the report")
        return EXIT_FAILED
    return exit_code(result)


CONTRACT_KEYS: Sequence[str] = (
    "islands", "inner_steps", "outer_steps", "tokens", "eval_loss", "baseline_eval_loss", "wan_bytes_sent",
    "data_parallel_bytes", "digests",
)  # fmt: skip


def contract(figures: dict[str, Json], wall_s: float) -> dict[str, Json]:
    """What scripts read: these keys and no others, with `wall_s` from the first start to the last end."""
    return {**{key: figures[key] for key in CONTRACT_KEYS}, "wall_s": wall_s}


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / f"quickstart-{number}").exists():
        number += 1
    return folder
