"""The model checker: the round machine that ships under all orders of what may happen, up to a bound.

    python -m lowcomm.sim.checker --islands 2 --crashes 1 --losses 1 --deadlines 2

Breadth first over all states (so a trace that breaks a promise is a shortest one), or at random where those
are too many (`--walks`). Checked after every event: one entry for each outer step, ever; no contribution is
credited twice or not recognised by who sent it; every certificate proves its entry; nobody takes an honest
peer for a liar. And from states sampled on the way: once nothing goes wrong any more, all commit all.

Fragments are machines that share nothing but the view of who is live, which comes from outside in any order
here; so what holds for one holds for any number.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lowcomm.clock import SystemClock
from lowcomm.sim.checked_values import Budget, Setting, setting_of
from lowcomm.sim.checked_world import Event, Step, Swarm, World

FAIR_DEADLINES = 60
"""So many deadlines without a fault are enough for every outer step to commit."""
FAIR_EVENTS = 20_000
SAMPLED = 500
"""Every so many states it is seen whether they still come to a commit."""
PROGRESS_S = 10.0
PUBLISHED = (
    "--islands 2 --losses 1 --crashes 1 --slow 1 --deadlines 1",
    "--islands 2 --outer-steps 2 --losses 1 --crashes 1 --cuts 1",
    "--islands 2 --outer-steps 2 --crashes 1 --rollbacks 1 --slow 1 --deadlines 1",
    "--islands 2 --partition continue --cuts 1 --crashes 1 --deadlines 1",
    "--islands 3 --cuts 1 --delays 1",
    "--islands 3 --losses 1 --crashes 1 --slow 1 --delays 0 --deadlines 1 --most-states 250000",
    "--islands 4 --crashes 1 --cuts 1 --delays 0 --most-states 200000",
    "--islands 3 --run 1 --cuts 3 --crashes 1 --deadlines 1 --walks 3000",
    "--islands 3 --outer-steps 2 --losses 2 --crashes 2 --rollbacks 1 --cuts 2 --slow 3 --deadlines 4 "
    "--walks 1200",
    "--islands 4 --outer-steps 2 --losses 2 --crashes 2 --cuts 4 --slow 3 --deadlines 4 --walks 500",
    "--islands 4 --partition continue --run 5 --crashes 2 --cuts 3 --slow 3 --deadlines 6 --walks 800 "
    "--seed 10",
)
"""The searches of docs/results/model_checker.json; they take some minutes."""
FAULTS = ("lose", "slow", "crash", "cut", "time")


@dataclass(slots=True)
class Result:
    """What a search has found.

    Attributes:
        states: different ones that were visited.
        events: that were tried; of these `machine_steps` were run, the others looked up.
        depth: events on the longest path that was searched from the beginning.
        whole: whether all states within the budget were visited.
        settled: states from which a fair schedule was tried.
        broken: promises that do not hold; `trace` is how the first one comes about.
    """

    states: int = 0
    events: int = 0
    machine_steps: int = 0
    depth: int = 0
    whole: bool = False
    settled: int = 0
    broken: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


Progress = Callable[[Result], None]


def search(
    setting: Setting, budget: Budget, *, most_states: int, progress: Progress = lambda _: None
) -> Result:
    """Visit all states within a budget, those that are nearest first; ends at the first broken promise."""
    swarm, result = Swarm(setting), Result()
    first = swarm.beginning(budget)
    before: dict[int, tuple[int, Event]] = {}
    seen, waiting = {hash(first)}, deque([(first, 0)])
    while waiting and len(seen) < most_states:
        world, result.depth = waiting.popleft()
        steps = swarm.steps(world)
        for step in steps:
            result.events += 1
            name = hash(step.world)
            if name not in seen:
                seen.add(name)
                before[name] = hash(world), step.event
                waiting.append((step.world, result.depth + 1))
            if step.broken:
                events = [*_path(before, hash(world)), step.event]
                return _broken(swarm, result, budget, events, len(seen))
        result.states = len(seen)
        if not steps or result.states // SAMPLED > result.settled:
            result.settled += 1
            if stuck := settle(swarm, world):
                return _broken(swarm, result, budget, _path(before, hash(world)), len(seen), stuck)
            progress(result)
    result.whole, result.machine_steps = not waiting, swarm.local_steps
    return result


def _path(before: dict[int, tuple[int, Event]], name: int) -> list[Event]:
    events = []
    while name in before:
        name, event = before[name]
        events.append(event)
    return events[::-1]


def walk(
    setting: Setting, budget: Budget, *, walks: int, seed: int, progress: Progress = lambda _: None
) -> Result:
    """Go through the states at random, deeper than a search comes; ends at the first broken promise."""
    swarm, result = Swarm(setting), Result()
    first, seen = swarm.beginning(budget), set[int]()
    for number in range(walks):
        world, events = first, list[Event]()
        scheduler = _Scheduler(random.Random(f"{seed} {number}"), len(setting.peers))
        while possible := swarm.events(world):
            step = swarm.step(world, scheduler.choose(possible))
            world = step.world
            events.append(step.event)
            seen.add(hash(world))
            result.events += 1
            if step.broken:
                return _broken(swarm, result, budget, events, len(seen))
        result.depth, result.states = max(result.depth, len(events)), len(seen)
        result.settled += 1
        if stuck := settle(swarm, world):
            return _broken(swarm, result, budget, events, len(seen), stuck)
        progress(result)
    result.machine_steps = swarm.local_steps
    return result


class _Scheduler:
    """Chooses events at random, as in probabilistic concurrency testing (Burckhardt et al. 2010).

    Each way has a rank, and the first that has something goes on; now and then it becomes the last. So long
    stretches go in order, and a fault needs few changes of rank to be met.
    """

    def __init__(self, chance: random.Random, peers: int) -> None:
        self._chance = chance
        self._ranked = [(one, other) for one in range(peers) for other in range(peers) if one != other]
        chance.shuffle(self._ranked)
        self._faults, self._changes = chance.choice((0.02, 0.05, 0.15)), chance.choice((0.03, 0.1, 1.0))

    def choose(self, events: Sequence[Event]) -> Event:
        """One of the events that may happen next."""
        chance = self._chance
        faults = [event for event in events if event[0] in FAULTS]
        others = [event for event in events if event[0] not in FAULTS]
        if faults and (not others or chance.random() < self._faults):
            kind = chance.choice(sorted({str(event[0]) for event in faults}))
            return chance.choice([event for event in faults if event[0] == kind])
        repairs = [event for event in others if event[0] != "deliver"]
        if repairs and (len(repairs) == len(others) or chance.random() < 0.1):
            return chance.choice(repairs)
        ways = {event[1:]: event for event in others if event[0] == "deliver"}
        way = next(way for way in self._ranked if way in ways)
        if chance.random() < self._changes:
            self._ranked.remove(way)
            self._ranked.append(way)
        return ways[way]


def settle(swarm: Swarm, world: World) -> str:
    """Let nothing go wrong any more, and see whether all outer steps are committed by all; why not, if so.

    Everything arrives, everybody is back, and no two peers look at their clocks at the very same time.
    """
    world = world._replace(budget=Budget(delays=None))
    deadlines = events = turn = 0
    while not swarm.is_done(world):
        possible = swarm.events(world)
        if possible:
            step = swarm.step(world, possible[turn % len(possible)])
            turn += 1
        elif deadlines < FAIR_DEADLINES:
            deadlines += 1
            step = swarm.wait(world, deadlines % len(world.peers))
        else:
            return f"no commit any more: outer steps {swarm.heights(world)} after {deadlines} deadlines"
        events += 1
        if events > FAIR_EVENTS:
            return f"{events} events without a fault, and outer steps {swarm.heights(world)}"
        world = step.world
        if step.broken:
            return f"{step.broken[0]}, after all faults"
    return ""


def _broken(
    swarm: Swarm, result: Result, budget: Budget, events: list[Event], states: int, stuck: str = ""
) -> Result:
    """Make the trace as short as leaving out events makes it, and put it in words."""
    first = swarm.beginning(budget)

    def breaks(tried: Sequence[Event]) -> list[str]:
        world, found = first, list[str]()
        for event in tried:
            step = _if_possible(swarm, world, event)
            if step is None:
                continue
            world = step.world
            found += step.broken
            if found:
                return found
        return [why] if stuck and (why := settle(swarm, world)) else []

    size = max(1, len(events) // 2)
    while size:
        at = 0
        while at < len(events):
            fewer = events[:at] + events[at + size :]
            if breaks(fewer):
                events = fewer
            else:
                at += size
        size //= 2
    result.broken, result.states, result.machine_steps = breaks(events), states, swarm.local_steps
    world = first
    for event in events:
        if (step := _if_possible(swarm, world, event)) is not None:
            result.trace.append(swarm.told(world, event))
            world = step.world
    result.depth = max(result.depth, len(result.trace))
    return result


def _if_possible(swarm: Swarm, world: World, event: Event) -> Step | None:
    unbound = world._replace(
        budget=world.budget._replace(delays=None, deadlines=max(1, world.budget.deadlines))
    )
    return swarm.step(world, event) if event in swarm.events(unbound) else None


# -- the command -----------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lowcomm.sim.checker",
        description="Run the round machine under all orders of deliveries, losses, crashes and restarts.",
        epilog="example: python -m lowcomm.sim.checker --islands 2 --crashes 1 --losses 1 --deadlines 2",
    )
    parser.add_argument("--islands", type=int, default=2, choices=range(2, 9), help="2 to 8")
    parser.add_argument("--outer-steps", type=int, default=1, metavar="N", help="after these nobody is due")
    parser.add_argument("--partition", default="majority", choices=("majority", "continue"))
    parser.add_argument("--run", type=int, default=0, metavar="N", help="another order of leaders")
    for name, about in (
        ("losses", "messages that never arrive"),
        ("crashes", "of a process; what was not synced is on disk or not"),
        ("rollbacks", "so many of the crashes also lose all entries since the beginning"),
        ("cuts", "links that break with what is on its way; they may come back"),
        ("deadlines", "how much time may pass"),
        ("slow", "events after which a record is not on disk yet, or the island contributes late"),
    ):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=about)
    parser.add_argument(
        "--delays",
        type=int,
        metavar="N",
        help="deliveries that are not the next in turn; default: any number",
    )
    parser.add_argument("--most-states", type=int, default=1_000_000, metavar="N", help="end after so many")
    parser.add_argument("--walks", type=int, default=0, metavar="N", help="at random instead, so many times")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the walks")
    parser.add_argument("--published", action="store_true", help="all searches whose figures are published")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where a promise does not hold."""
    parser = _parser()
    options = parser.parse_args(arguments)
    searches = [line.split() for line in PUBLISHED] if options.published else [arguments]
    runs = [_run(parser, parser.parse_args(search)) for search in searches]
    if options.json is not None:
        options.json.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    return 1 if any(run["broken"] for run in runs) else 0


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, object]:
    """One search, and what it found."""
    counts = {name: getattr(options, name) for name in Budget._fields}
    for name in (*counts, "outer_steps", "walks", "most_states"):
        least = 1 if name in ("outer_steps", "most_states") else 0
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")
    budget = Budget(**counts)
    setting = setting_of(options.islands, options.outer_steps, partition=options.partition, run=options.run)
    clock = SystemClock()
    began_s = told_s = clock.monotonic_s()

    def progress(result: Result) -> None:
        nonlocal told_s
        if clock.monotonic_s() - told_s >= PROGRESS_S:
            told_s = clock.monotonic_s()
            print(f"... {_figures(result)}", file=sys.stderr)

    if options.walks:
        result = walk(setting, budget, walks=options.walks, seed=options.seed, progress=progress)
    else:
        result = search(setting, budget, most_states=options.most_states, progress=progress)
    faults = ", ".join(f"{name} {value}" for name, value in counts.items() if value or name == "delays")
    print(f"{options.islands} islands, {options.outer_steps} outer steps, {options.partition}; {faults}")
    print(f"{_bound(options, result)}: {_figures(result)}")
    for sentence in result.broken:
        print(f"BROKEN: {sentence}")
    for number, line in enumerate(result.trace, 1):
        print(f"{number:4} {line}")
    asked = {name: value for name, value in vars(options).items() if name not in ("json", "published")}
    return {**asked, **asdict(result), "seconds": round(clock.monotonic_s() - began_s, 1)}


def _figures(result: Result) -> str:
    return (
        f"{result.states:,} states, {result.events:,} events, depth {result.depth}, "
        f"{result.settled:,} fair schedules, {len(result.broken)} broken"
    )


def _bound(options: argparse.Namespace, result: Result) -> str:
    if options.walks:
        return f"{options.walks} random walks of seed {options.seed}"
    return "all states within this budget" if result.whole else "the nearest states; there are more"


if __name__ == "__main__":
    sys.exit(main())
