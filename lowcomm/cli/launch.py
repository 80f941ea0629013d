"""`lowcomm launch RECIPE --islands N`: a whole swarm on this machine, one process group per island."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

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
from lowcomm.interrupts import Asked, handling
from lowcomm.metrics.factory import goal
from lowcomm.processes import IslandProcess, IslandStartError, LaunchPlan, start_islands

POLL_S = 0.2
GRACE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class LaunchResult:
    """How the islands ended.

    Attributes:
        codes: an exit code per island that was started; negative = ended by that signal.
        failures: what to tell of those that failed.
        interrupted: whether Ctrl-C ended the run.
        wall_s: from the first start to the last end.
    """

    codes: tuple[int, ...]
    failures: tuple[str, ...]
    interrupted: bool
    wall_s: float

    @property
    def exit_code(self) -> int:
        if self.failures:
            return EXIT_FAILED
        return EXIT_INTERRUPTED if self.interrupted else EXIT_DONE


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
    result = launch(plan, SystemClock())
    tell_failures(result)
    if args.json:
        from lowcomm.report import load_run, run_figures

        write_json(args.json, {**run_figures(load_run(args.out)).to_dict(), "exit_codes": list(result.codes)})
    return result.exit_code


def launch(plan: LaunchPlan, clock: Clock) -> LaunchResult:
    """Run a plan to its end; a signal saves and stops all islands, a second Ctrl-C kills them.

    An island that dies stops none of the others.

    Raises:
        ConfigError: the plan can't work.
        StorageError: a run folder can't be made.
    """
    plan.check()
    session = _Session(plan, clock)
    began_s = clock.monotonic_s()
    with handling(session.on_signal):
        try:
            session.start()
            session.watch()
        finally:
            session.close()
    return LaunchResult(
        codes=tuple(island.code or 0 for island in session.islands),
        failures=tuple(session.failures()),
        interrupted=session.signals.to_leave,
        wall_s=clock.monotonic_s() - began_s,
    )


def tell_failures(result: LaunchResult) -> None:
    """Which islands failed, and what they said last, on the standard error."""
    for failure in result.failures:
        first, _, log = failure.partition("\n")
        print_error(first)
        print(log, file=sys.stderr, flush=True)


class _Session:
    """The processes of one launch and the view of them."""

    def __init__(self, plan: LaunchPlan, clock: Clock) -> None:
        self.islands: list[IslandProcess] = []
        self.signals = Asked(clock)
        self._plan, self._clock = plan, clock
        self._start_failure = ""
        self._asked = False
        self._give_up_s = 0.0
        self._pause = threading.Event()
        self._views = [IslandView(plan.folder(index)) for index in range(plan.islands)]
        total, key = goal(to_dict(plan.config))
        self._view = swarm_view(total, key, clock)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Count a signal; `tick` acts on it, outside of the handler."""
        self.signals.take(number)

    def start(self) -> None:
        """Start all islands; if the first one can't be reached, ask it to end."""
        try:
            start_islands(self._plan, self._clock, self.islands.append, self.tick)
        except IslandStartError as error:
            self._start_failure = str(error)

    def watch(self) -> None:
        """Show the islands until all have ended."""
        while any(island.code is None for island in self.islands):
            self.tick()
        self._show()

    def tick(self) -> bool:
        """Show, wait a moment, act on Ctrl-C; whether all goes on."""
        self._show()
        self._pause.wait(POLL_S)
        ending = self.signals.to_leave or bool(self._start_failure)
        if ending and not self._asked:
            self._asked, self._give_up_s = True, self._clock.monotonic_s() + GRACE_S
            for island in self.islands:
                island.interrupt()
            print("lowcomm: stopping: the islands save and leave; Ctrl-C again kills them", file=sys.stderr)
        if self.signals.at_once or (ending and self._clock.monotonic_s() > self._give_up_s):
            for island in self.islands:
                island.kill()
        return not ending

    def close(self) -> None:
        """End the view, and what still runs."""
        self._view.close()
        for island in self.islands:
            island.kill()

    def failures(self) -> list[str]:
        """What to tell of the islands that failed."""
        if self._start_failure:
            return [self._start_failure]
        fine = {EXIT_DONE, EXIT_INTERRUPTED}
        if self.signals.to_leave:
            fine.add(-signal.SIGTERM)  # asked before it could listen: there was nothing to save
        return [island.explain() for island in self.islands if island.code not in fine]

    def _show(self) -> None:
        for view in self._views:
            view.refresh()
        for island in self.islands:
            if (code := island.code) is not None:
                self._views[island.index].ended(code)
        self._view.show(self._views)
