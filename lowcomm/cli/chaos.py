"""`lowcomm chaos`: real islands, a seeded tape of faults, and whether the promises held."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from lowcomm.cli.common import (
    EXIT_DONE,
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
from lowcomm.clock import SystemClock
from lowcomm.interrupts import handling

if TYPE_CHECKING:
    from lowcomm.chaos.network import Network
    from lowcomm.chaos.records import Story, Struck
    from lowcomm.chaos.settings import ChaosPlan
    from lowcomm.chaos.swarm import Swarm

SECONDS_PER_FAULT = 5.0
WARM_UP_COMMITS = 3
STORY_FILE = "chaos.json"


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "chaos",
        about="break real islands on this machine in many ways, and check that the run survives it",
        example="lowcomm chaos --islands 4 --faults 20 --seed 1\n"
        "         lowcomm chaos --islands 4 --faults 20 --seed 1 --no-wan    (faults of processes only)",
    )
    parser.add_argument("--islands", metavar="N", type=positive, default=4, help="islands (default 4)")
    parser.add_argument("--faults", metavar="K", type=positive, default=20, help="faults (default 20)")
    parser.add_argument(
        "--seed", metavar="S", type=int, default=1, help="of the tape and the run (default 1)"
    )
    parser.add_argument(
        "--minutes",
        metavar="M",
        type=float,
        help=f"time that the faults are spread over (default: {SECONDS_PER_FAULT:g} s for each)",
    )
    parser.add_argument(
        "--only", metavar="KIND", action="append", default=[], help="this kind of fault; may be repeated"
    )
    parser.add_argument(
        "--away",
        metavar="S",
        type=float,
        help="seconds that each fault lasts, or until who was killed is started again (default: by its kind)",
    )
    parser.add_argument(
        "--partition",
        choices=("majority", "continue"),
        default="majority",
        help="who may commit: more than half of the participants of the round before, or whoever is left, as "
        "in a run by default; what must hold is checked for either (default majority)",
    )
    parser.add_argument(
        "--wan",
        action=argparse.BooleanOptionalAction,
        help="in network namespaces, and break their network, too (default: where that can be done: as root, "
        "with iproute2 and gcc)",
    )
    parser.add_argument(
        "--no-fault-free", action="store_true", help="don't train once more without faults, to compare with"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder of the run (default: the next free runs/chaos-*)"
    )
    add_set(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Play the tape, check the invariants, train once more without faults."""
    check_writable(args.json)
    from lowcomm.chaos.figures import contract, rows
    from lowcomm.chaos.settings import make_plan
    from lowcomm.chaos.tape import LOCAL, ON_REQUEST, WAN, WORDS, make_tape
    from lowcomm.errors import ConfigError

    known = LOCAL if args.wan is False else (*WAN, *ON_REQUEST)
    unknown = [kind for kind in args.only if kind not in known]
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: expected one of {', '.join(known)}")
    minutes = args.minutes if args.minutes is not None else args.faults * SECONDS_PER_FAULT / 60
    if minutes <= 0:
        raise ConfigError(f"--minutes {minutes:g}: expected more than 0")
    if args.away is not None and args.away <= 0:
        raise ConfigError(f"--away {args.away:g}: expected more than 0")
    out = args.out if args.out is not None else _free_folder()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_signals_as_interrupts())
        network = _network(args, stack)
        plan = make_plan(out / "chaos", args.islands, args.seed, args.overrides, partition=args.partition)
        possible = WAN if network else LOCAL
        kinds = tuple(kind for kind in WORDS if kind in args.only) or possible
        tape = make_tape(args.seed, args.islands, args.faults, 60 * minutes, kinds, args.away)
        story = _play(plan, tape, network)
        fault_free = None
        if not args.no_fault_free:
            calm = make_plan(
                out / "fault-free", args.islands, args.seed, args.overrides, partition=args.partition
            )
            fault_free = _train_calmly(calm, story, network)
    figures = contract(story, fault_free)
    write_json(str(out / STORY_FILE), figures)
    if args.json:
        write_json(args.json, figures)
    if args.json != "-":
        struck = Counter(fault.kind for fault in story.faults)
        print_table(
            ("fault", "times", ""), [(kind, str(n), WORDS[kind]) for kind, n in sorted(struck.items())]
        )
        print_table(("", ""), rows(figures), title=f"{len(story.faults)} faults, in {out}")
        verdicts = [
            (name, "holds" if held is True else str(held)) for name, held in figures["invariants"].items()
        ]
        print_table(("invariant", ""), verdicts)
    broken = [name for name, held in figures["invariants"].items() if held is not True]
    for name in broken:
        print_error(f"{name}: {figures['invariants'][name]}; the islands' files are in {out}")
    return EXIT_FAILED if broken else EXIT_DONE


def _network(args: argparse.Namespace, stack: contextlib.ExitStack) -> Network | None:
    """A WAN that can be broken, unless nobody wants one, or nobody insists and it can't be made.

    Raises:
        NetworkError: it can't be made, and was asked for.
    """
    from lowcomm.chaos.network import Network, NetworkError
    from lowcomm.chaos.settings import NEWCOMERS
    from lowcomm.chaos.tape import NETWORK

    asked = args.wan or any(kind in NETWORK for kind in args.only)
    if args.wan is False or (args.only and not asked):
        return None
    try:
        return stack.enter_context(Network(args.islands + NEWCOMERS))
    except NetworkError as error:
        if asked:
            raise NetworkError(f"no network to break: {error}; without it: --no-wan") from error
        print(f"Only processes are broken, the network is not: {error}", file=sys.stderr)
        return None


def _play(plan: ChaosPlan, tape: Any, network: Any) -> Story:
    from lowcomm.chaos.player import Player
    from lowcomm.chaos.swarm import ChaosError, Swarm

    view = _View(len(tape), "faults")
    with contextlib.closing(view), Swarm(plan, SystemClock(), network) as swarm:
        swarm.start_all(lambda: view.tick(swarm))
        swarm.wait_for_commits(WARM_UP_COMMITS, lambda: view.tick(swarm))
        try:
            Player(swarm, tape, lambda fault: view.struck(fault, swarm), network).play(
                lambda: view.tick(swarm)
            )
        except ChaosError as error:
            swarm.story.hangs.append(str(error))
        swarm.leave_all(lambda: view.tick(swarm))
        return swarm.tell()


def _train_calmly(plan: ChaosPlan, story: Story, network: Any) -> Story:
    """The same run without a fault, until as many tokens are credited."""
    from lowcomm.chaos.invariants import credited_tokens
    from lowcomm.chaos.swarm import Swarm

    goal = credited_tokens(story)
    view = _View(goal, "tokens without faults")
    with contextlib.closing(view), Swarm(plan, SystemClock(), network) as swarm:
        swarm.start_all(lambda: view.tick(swarm))
        while swarm.credited < goal:
            swarm.poll()
            view.advance(swarm.credited)
        swarm.leave_all(lambda: view.tick(swarm))
        return swarm.tell()


class _View:
    """A bar on a terminal, else a line per fault."""

    def __init__(self, total: int, what: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._terminal = sys.stderr.isatty()
        self._total, self._what, self._said = total, what, 0
        if self._terminal:
            from rich.console import Console

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(what, total=total)
            self._bar.start()

    def struck(self, fault: Struck, swarm: Swarm) -> None:
        """A fault was struck."""
        self._said += 1
        words = (
            f"[{fault.at_s:6.1f} s] {self._said}/{self._total} {fault.kind} {fault.island}; outer step "
            f"{fault.outer_step}, {len(swarm.healthy)} of {len(swarm.running)} islands take part"
        )
        if self._terminal:
            self._bar.update(self._task, completed=self._said)
            self._bar.console.print(words, highlight=False, markup=False)
        else:
            print(words, file=sys.stderr, flush=True)

    def advance(self, done: int) -> None:
        """So much is done."""
        if self._terminal:
            self._bar.update(self._task, completed=min(done, self._total))
        elif done * 10 // self._total > self._said:
            self._said = done * 10 // self._total
            print(f"{self._what}: {done:,} of {self._total:,}", file=sys.stderr, flush=True)

    def tick(self, swarm: Swarm) -> None:
        """Time passes."""
        if self._terminal:
            names = f"{self._what}; outer step {swarm.outer_step}, {len(swarm.healthy)} islands take part"
            self._bar.update(self._task, description=names)

    def close(self) -> None:
        """Give the terminal back."""
        if self._terminal:
            self._bar.stop()


@contextlib.contextmanager
def _signals_as_interrupts() -> Any:
    """SIGTERM and SIGHUP end the command as Ctrl-C does, so that nothing is left behind.

    SIGINT is among them because a shell that starts a command in the background has it ignored.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling(interrupt):
        yield


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / f"chaos-{number}").exists():
        number += 1
    return folder
