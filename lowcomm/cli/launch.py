"""`lowcomm launch RECIPE --islands N`: a whole swarm on this machine, one process group per island."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Subparsers,
    add_command,
    add_json,
    add_profile,
    add_set,
    check_writable,
    positive,
    print_error,
    write_json,
)
from lowcomm.cli.watch import IslandView, swarm_view
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.load import to_dict
from lowcomm.launching.islands import IslandProcess, LaunchPlan
from lowcomm.launching.session import LaunchResult, launch
from lowcomm.metrics.factory import goal


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "launch",
        about="run several islands on this machine",
        example="lowcomm launch recipes/quickstart.toml --islands 4 --out runs/demo",
    )
    parser.add_argument("recipe", metavar="RECIPE.toml", type=Path, help="the run's settings")
    parser.add_argument("--islands", metavar="N", type=positive, required=True, help="how many")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="island i runs in DIR/island-i; resumed if it is there",
    )
    parser.add_argument(
        "--nproc", metavar="N", type=positive, default=1, help="ranks of each island (torchrun)"
    )
    add_profile(parser)
    add_set(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Start all islands, show them until they end."""
    check_writable(args.json)
    from lowcomm.config.load import load_config

    plan = LaunchPlan(
        recipe=args.recipe,
        config=load_config(args.recipe, args.overrides, profile=args.profile),
        profile=args.profile,
        overrides=tuple(args.overrides),
        out=args.out,
        islands=args.islands,
        ranks=args.nproc,
    )
    result = launch_and_show(plan, SystemClock())
    tell_failures(result)
    if args.json:
        from lowcomm.report import load_run, run_figures

        write_json(args.json, {**run_figures(load_run(args.out)).to_dict(), "exit_codes": list(result.codes)})
    return exit_code(result)


def launch_and_show(plan: LaunchPlan, clock: Clock) -> LaunchResult:
    """Run a plan to its end and show it; see `lowcomm.launching.session.launch`."""
    view = _View(plan, clock)
    with contextlib.closing(view):
        return launch(plan, clock, view)


def exit_code(result: LaunchResult) -> int:
    """What the command ends with."""
    if result.failures:
        return EXIT_FAILED
    return EXIT_INTERRUPTED if result.interrupted else EXIT_DONE


def tell_failures(result: LaunchResult) -> None:
    """Which islands failed, and what they said last, on the standard error."""
    for failure in result.failures:
        first, _, log = failure.partition("\n")
        print_error(first)
        print(log, file=sys.stderr, flush=True)


class _View:
    """Shows the islands of one launch."""

    def __init__(self, plan: LaunchPlan, clock: Clock) -> None:
        self._islands = [IslandView(plan.folder(index)) for index in range(plan.islands)]
        total, key = goal(to_dict(plan.config))
        self._view = swarm_view(total, key, clock)

    def show(self, islands: Sequence[IslandProcess]) -> None:
        """See `Watcher`."""
        for view in self._islands:
            view.refresh()
        for island in islands:
            if (code := island.code) is not None:
                self._islands[island.index].ended(code)
        self._view.show(self._islands)

    def stopping(self) -> None:
        """See `Watcher`."""
        print("lowcomm: stopping: the islands save and leave; Ctrl-C again kills them", file=sys.stderr)

    def close(self) -> None:
        """Give the terminal back."""
        self._view.close()
