"""`python -m lowcomm.sim.search`: looks for schedules that break what rounds promise, on the virtual clock.

Where few have voted for an update, and whoever goes on may know of none of them, two histories can begin. So
the search is led there: it watches the votes of a run, and changes the schedules in which most updates got
few votes, or had rivals; a fault is put at just the moment of a first vote. Half of the schedules are new.
The n-th schedule depends on the seed alone, so whatever is found comes again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import SystemClock
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.shaped import Fate
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken, lost
from lowcomm.sim.island import IslandSettings
from lowcomm.sim.swarm import SETTLE_S, SimSwarm
from lowcomm.sim.tapes import (
    ACTIONS,
    PEER_FAULTS,
    MessageFault,
    PeerFault,
    PeerFaultKind,
    Tape,
    TapeShaper,
    make_tape,
)
from lowcomm.sim.virtual_time import HungError, run_virtually
from lowcomm.types import PeerId

DEADLINE_S = 3.0
STEP_S = 0.4
POOL = 12
"""Schedules that others are made of."""
NEW_SHARE = 0.5
RIVAL_SCORE = 3
"""A step with votes for several updates counts as much as so many updates with few votes."""
MODES: tuple[Literal["fixed", "matched", "timed"], ...] = ("fixed", "fixed", "matched", "timed")
VOTING = ("ready", "roster", "part", "mean", "joined", "vote", "abort")
AIMED: tuple[PeerFaultKind, ...] = (
    "crash",
    "power",
    "again",
    "partition",
    "one_way",
    "blip",
    "hold",
    "stall_in",
)
PROGRESS_S = 60.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What a schedule is played on.

    Attributes:
        delay: inner steps for which an update is on its way.
        steps_s: of each island's inner step.
    """

    islands: int
    partition: str
    inner_steps: int
    fragments: int
    delay: int
    mode: Literal["fixed", "matched", "timed"]
    steps_s: tuple[float, ...]
    error_feedback: bool

    def settings(self) -> IslandSettings:
        """Of all islands."""
        schedule = Schedule(
            inner_steps=self.inner_steps,
            num_fragments=self.fragments,
            delay=self.delay,
            mode=self.mode,
            round_s=4.0 if self.mode == "timed" else 0.0,
        )
        return IslandSettings(
            policy=RoundPolicy(deadline_s=DEADLINE_S, partition=self.partition),
            schedule=schedule,
            step_s=lambda island, _: self.steps_s[island],
            error_feedback=self.error_feedback,
        )


@dataclass(frozen=True, slots=True)
class Played:
    """A schedule and what it came to.

    Attributes:
        few: updates that at most half of the islands voted for.
        rivals: outer steps of a fragment with votes for several updates.
        moments: seconds at which an update got its first votes.
    """

    setup: Setup
    tape: Tape
    problems: tuple[str, ...]
    few: int
    rivals: int
    moments: tuple[float, ...]

    @property
    def score(self) -> int:
        """How near it came."""
        return self.few + RIVAL_SCORE * self.rivals


class VoteWatcher(TapeShaper):
    """Plays a tape, and notes who votes for what."""

    def __init__(self, tape: Tape) -> None:
        super().__init__(tape)
        self.votes: dict[tuple[object, object], dict[object, set[PeerId]]] = defaultdict(
            lambda: defaultdict(set)
        )
        self.moments: list[float] = []

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        """See `Shaper`."""
        if message.kind == "vote":
            step = message.body["fragment"], message.body["outer_step"]
            voters = self.votes[step][message.body["entry"]]
            if not voters:
                self.moments.append(now_s)
            voters.add(sender)
        return super().fate(sender, receiver, message, now_s)


def play(setup: Setup, tape: Tape) -> Played:
    """Run a schedule, and say what is broken."""
    watcher, settings = VoteWatcher(tape), setup.settings()
    with tempfile.TemporaryDirectory(prefix="lowcomm-search-") as folder:
        swarm = SimSwarm(setup.islands, tape, settings, Path(folder), shaper=watcher)
        try:
            with swarm.disk.noting():
                outcome = run_virtually(swarm.run(), tape.quiet_s + SETTLE_S + 60.0)
            problems = [*broken(outcome), *(lost(outcome) if setup.partition == "continue" else ())]
        except HungError as error:
            problems = [str(error)]
    steps = watcher.votes.values()
    return Played(
        setup,
        tape,
        tuple(problems),
        few=sum(len(voters) <= setup.islands // 2 for votes in steps for voters in votes.values()),
        rivals=sum(len(votes) > 1 for votes in steps),
        moments=tuple(moment for moment in watcher.moments if moment < tape.quiet_s),
    )


def new_schedule(rng: random.Random) -> tuple[Setup, Tape]:
    """Any set-up, and a harsh tape."""
    inner_steps, islands = rng.choice([2, 5, 12]), rng.choice([3, 4, 4, 5])
    mode = rng.choice(MODES)
    setup = Setup(
        islands=islands,
        partition=rng.choice(["majority", "continue"]),
        inner_steps=inner_steps,
        fragments=rng.choice([1, 2]) if inner_steps > 2 else 1,
        delay=rng.choice([0, 1, min(3, inner_steps - 1)]),
        mode=mode,
        steps_s=tuple(STEP_S if mode == "fixed" else rng.choice([0.2, 0.4, 0.8]) for _ in range(islands)),
        error_feedback=rng.random() < 0.5,
    )
    tape = make_tape(
        rng.randrange(1 << 30),
        islands,
        faulty_s=rng.choice([15.0, 30.0, 45.0]),
        deadline_s=DEADLINE_S,
        peer_faults=5,
        more=tuple(PEER_FAULTS) if rng.random() < 0.5 else (),
    )
    return setup, tape


def changed(played: Played, rng: random.Random) -> tuple[Setup, Tape]:
    """A schedule that differs in one to three faults."""
    tape = played.tape
    for _ in range(rng.randint(1, 3)):
        peers, messages = list(tape.peers), list(tape.messages)
        match rng.randrange(5):
            case 0 | 1:
                peers.append(_aimed(played, rng))
            case 2 if peers:
                number = rng.randrange(len(peers))
                start_s = max(1.0, peers[number].start_s + rng.uniform(-1.0, 1.0))
                peers[number] = replace(peers[number], start_s=min(start_s, 0.9 * tape.quiet_s))
            case 3 if len(peers) + len(messages) > 1:
                victims = peers if peers and (not messages or rng.random() < 0.5) else messages
                victims.pop(rng.randrange(len(victims)))
            case _:
                messages.append(_unheard(tape, rng))
        ordered = tuple(sorted(peers, key=lambda fault: fault.start_s))
        tape = replace(tape, peers=ordered, messages=tuple(messages))
    return played.setup, tape


def _aimed(played: Played, rng: random.Random) -> PeerFault:
    """A fault at the moment of a first vote, or a little later."""
    quiet_s, islands = played.tape.quiet_s, played.setup.islands
    start_s = (
        rng.choice(played.moments) if played.moments else rng.uniform(2.0, 0.7 * quiet_s)
    ) + rng.choice([0.0, 0.005, 0.01, 0.02, 0.5])
    start_s = min(max(1.0, start_s), 0.9 * quiet_s)
    kind = rng.choice(AIMED)
    count = rng.randint(1, islands - 1) if kind in ("partition", "crash", "power") else 1
    struck = [0] if kind == "again" else rng.sample(range(islands), count)
    away_s = 1.0 if kind == "blip" else rng.uniform(0.5, max(1.0, quiet_s - start_s))
    return PeerFault(kind, tuple(sorted(struck)), start_s, away_s)


def _unheard(tape: Tape, rng: random.Random) -> MessageFault:
    """Messages of a round that are lost, late, or come twice."""
    start_s = rng.uniform(1.0, 0.8 * tape.quiet_s)
    return MessageFault(
        action=rng.choice([action for action in ACTIONS if action != "corrupt"]),
        kinds=tuple(rng.sample(VOTING, rng.randint(1, 3))),
        share=rng.choice([0.1, 0.3, 0.7, 1.0]),
        start_s=start_s,
        stop_s=min(tape.quiet_s, start_s + rng.uniform(0.5, 8.0)),
        delay_s=rng.choice([0.2, 1.0]) * DEADLINE_S,
    )


@dataclass(slots=True)
class Search:
    """What a search has come to.

    Attributes:
        schedules, changed: how many were played, and how many of them are changes of others.
        few, rivals: of all of them, see `Played`.
        violations: the schedules that broke something, with what it was.
    """

    seed: int
    seconds: float = 0.0
    schedules: int = 0
    changed: int = 0
    few: int = 0
    rivals: int = 0
    best: int = 0
    violations: list[dict[str, str]] = field(default_factory=list)

    def words(self) -> str:
        """For people."""
        return (
            f"seed {self.seed}: {self.schedules:,} schedules in {self.seconds:,.0f} s, {self.few:,} updates "
            f"with few votes, {self.rivals:,} steps with rivals, {len(self.violations)} violations"
        )


def search(seed: int, seconds: float, most: int | None = None) -> Search:
    """Play schedules for so long, or so many."""
    rng, clock, found = random.Random(f"lowcomm search {seed}"), SystemClock(), Search(seed)
    began_s = told_s = clock.monotonic_s()
    pool: list[Played] = []
    while (now_s := clock.monotonic_s()) - began_s < seconds and (most is None or found.schedules < most):
        led = bool(pool) and rng.random() >= NEW_SHARE
        played = play(*(changed(rng.choice(pool), rng) if led else new_schedule(rng)))
        found.schedules, found.changed = found.schedules + 1, found.changed + led
        found.few, found.rivals = found.few + played.few, found.rivals + played.rivals
        if played.problems:
            found.violations.append(
                {
                    "schedule": str(found.schedules),
                    "problems": "; ".join(played.problems),
                    "setup": repr(played.setup),
                    "tape": repr(played.tape),
                }
            )
            print(f"BROKEN: {found.violations[-1]}", flush=True)
        else:
            pool = sorted([*pool, played], key=lambda one: -one.score)[:POOL]
        found.seconds = round(clock.monotonic_s() - began_s, 1)
        found.best = pool[0].score if pool else 0
        if now_s - told_s >= PROGRESS_S:
            told_s = now_s
            print(f"... {found.words()}", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 where something was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m lowcomm.sim.search",
        description="Search for schedules of faults that break what rounds promise, led to few votes.",
        epilog="example: python -m lowcomm.sim.search --seed 0 --minutes 10 --json search.json",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (default 0)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long (default 10)")
    parser.add_argument("--most", type=int, metavar="N", help="end after so many schedules")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file, as a line")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes: expected more than 0, got {options.minutes:g}")
    if options.most is not None and options.most < 1:
        parser.error(f"--most: expected 1 or more, got {options.most}")
    logging.basicConfig(level=logging.CRITICAL)  # islands tell of every fault
    found = search(options.seed, 60 * options.minutes, options.most)
    print(found.words())
    if options.json is not None:
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
    return 1 if found.violations else 0


if __name__ == "__main__":
    sys.exit(main())
