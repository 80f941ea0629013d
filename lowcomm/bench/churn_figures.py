"""What follows from the events of islands that came and went.

An island is *live* in a round if it had announced itself and caught up (its `join` had returned) before the
first participant of the round was due, and had been neither asked to leave nor killed when the round
committed. Nobody is put out in this run, so none of them is on probation. A joiner *waits* from its first
link to the swarm on, when it has no state yet.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from lowcomm.bench.settings import ChurnBench
from lowcomm.ledger.audit import Audit
from lowcomm.spans import joined, size, without
from lowcomm.types import Json

WITHIN_ROUNDS = 2
FULL = 0.95


@dataclass(kw_only=True)
class Life:
    """One island as it was seen from outside, and what it wrote.

    Attributes:
        gone_s: when it was asked to leave, or killed; infinite if neither.
    """

    number: int
    started_s: float
    killed: bool = False
    gone_s: float = float("inf")
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Its events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    def reached_s(self, kind: str) -> float:
        """When the first event of a kind was; infinite if there is none."""
        return min((float(event["at_s"]) for event in self.of(kind)), default=float("inf"))

    @property
    def inside(self) -> bool:
        """Whether it is in, and stays."""
        return bool(self.of("joined")) and self.gone_s == float("inf")

    @property
    def peer(self) -> str:
        """Its name; empty before it is in."""
        return next((str(event["peer"]) for event in self.of("joined")), "")

    @property
    def commits(self) -> list[dict[str, Any]]:
        """The rounds that it has committed."""
        return [event for event in self.of("round") if event["committed"]]

    @property
    def outer_step(self) -> int:
        """The last one that it has committed; 0 = none."""
        return max((int(event["outer_step"]) for event in self.commits), default=0)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One committed outer step.

    Attributes:
        began_s, committed_s: when the first of its participants was due, and when the first had committed.
        live: islands that were, see above.
    """

    outer_step: int
    began_s: float
    committed_s: float
    participants: frozenset[str]
    live: frozenset[str]

    @property
    def share(self) -> float:
        """Live islands that took part, over live islands."""
        return len(self.participants & self.live) / len(self.live) if self.live else 1.0


@dataclass(frozen=True, kw_only=True)
class Units:
    """What the ledger credits at the end.

    Attributes:
        credited: units whose samples are all credited.
        twice: units with a sample that entries credit more than once.
        missing: units that are not credited, of those before the furthest one at the last event.
        samples, samples_twice: credited, and credited again.
    """

    credited: int
    twice: int
    missing: int
    samples: int
    samples_twice: int

    @property
    def row(self) -> str:
        """For the table."""
        return f"{self.credited}, {self.twice}, {self.missing}"


@dataclass(frozen=True, kw_only=True)
class Churn:
    """The figures.

    Attributes:
        joins, exits, kills: of the run.
        rounds, full: committed rounds, and those with at least 95 % of the live islands.
        given_up: reports of rounds that an island gave up; its progress went into the next one.
        share: mean over the rounds of live participants over live islands.
        short: of each round that was not full: outer step, live islands, those of them that took part.
        waited: of each joiner, rounds that committed from its first link on up to the first one with it.
        never: joiners that two rounds or more went by without, to their end.
        join_s: of each joiner, from its start until it was in.
        snapshots: joiners that took one.
        forks: outer steps with more than one digest.
        equal: whether there was none, and those at the end had one state.
        rounds_s: from the first round to the last one.
        gap_s: longest time between two commits.
        ballots: how many of the islands' commits took how many.
        units: what the ledger credits.
    """

    bench: ChurnBench
    joins: int
    exits: int
    kills: int
    rounds: int
    full: int
    given_up: int
    share: float
    short: Sequence[Sequence[int]]
    waited: Sequence[int]
    never: int
    join_s: Sequence[float]
    snapshots: int
    forks: int
    equal: bool
    rounds_s: float
    gap_s: float
    ballots: Mapping[str, int]
    units: Units

    HEADINGS: ClassVar[tuple[str, ...]] = ("churn", "")

    @property
    def within(self) -> float:
        """Share of the joiners that took part within two rounds."""
        count = len(self.waited) + self.never
        return sum(waited <= WITHIN_ROUNDS for waited in self.waited) / count if count else 0.0

    def rows(self) -> list[tuple[str, str]]:
        """Under `HEADINGS`."""
        waited, join_s = self.waited or (0,), self.join_s or (0.0,)
        return [
            ("joins, exits in order, SIGKILLs", f"{self.joins}, {self.exits}, {self.kills}"),
            ("committed rounds, seconds", f"{self.rounds}, {self.rounds_s:.0f}"),
            ("rounds that an island gave up", str(self.given_up)),
            ("live islands that took part, mean", f"{self.share:.1%}"),
            ("rounds with at least 95 % of the live islands", f"{self.full} of {self.rounds}"),
            ("joiners that took part within two rounds", f"{self.within:.1%}"),
            (
                "rounds until a joiner takes part, mean and most",
                f"{statistics.fmean(waited):.2f}, {max(waited)}",
            ),
            (
                "from its start until a joiner is in, median and most",
                f"{statistics.median(join_s):.1f} s, {max(join_s):.1f} s",
            ),
            ("joiners that took a snapshot", f"{self.snapshots} of {self.joins}"),
            ("longest time between two commits", f"{self.gap_s:.1f} s"),
            ("units credited, with a sample twice, missing", self.units.row),
            ("one history, equal states at the end", "yes" if self.equal else "NO"),
        ]

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {**asdict(self), "within": self.within}


def unit_figures(unit: int, audit: Audit, begun: int) -> Units:
    """What a ledger credits.

    Args:
        unit: samples in one.
        begun: the sample up to which units had been begun when the last island had come or gone.
    """
    named = audit.samples
    credited = named.credited if named else ()
    whole = joined((-(-first // unit), stop // unit) for first, stop in credited)
    twice = joined((first // unit, (stop - 1) // unit + 1) for first, stop in audit.twice)
    return Units(
        credited=size(whole),
        twice=size(twice),
        missing=size(without(((0, begun // unit),), whole)) if begun >= unit else 0,
        samples=size(credited),
        samples_twice=named.twice if named else 0,
    )


def churn_figures(bench: ChurnBench, lives: Sequence[Life], exits: int, units: Units) -> Churn:
    """What follows from the islands' events.

    Args:
        lives: of all islands; the first `bench.islands` of them did not join a run that was there.
        exits: islands that were asked to leave, those at the end left out.
        units: see `unit_figures`.
    """
    rounds, joiners = committed_rounds(lives), lives[bench.islands :]
    commits = [event for life in lives for event in life.commits]
    digests: dict[int, set[str]] = {}
    ballots: dict[str, int] = {}
    for event in commits:
        digests.setdefault(event["outer_step"], set()).add(event["digest"])
        ballots[str(event["attempts"])] = ballots.get(str(event["attempts"]), 0) + 1
    forks = sum(len(found) > 1 for found in digests.values())
    last = max(digests, default=0)
    at_end = {event["digest"] for life in lives if life.outer_step == last for event in life.of("left")}
    waited, never = joiners_waits(joiners, rounds)
    return Churn(
        bench=bench,
        joins=len(joiners),
        exits=exits,
        kills=sum(life.killed for life in lives),
        rounds=len(rounds),
        full=sum(one.share >= FULL for one in rounds),
        given_up=sum(len(life.of("round")) - len(life.commits) for life in lives),
        share=statistics.fmean(one.share for one in rounds) if rounds else 0.0,
        short=tuple(
            (one.outer_step, len(one.live), len(one.participants & one.live))
            for one in rounds
            if one.share < FULL
        ),
        waited=tuple(waited),
        never=never,
        join_s=tuple(life.reached_s("joined") - life.started_s for life in joiners if life.peer),
        snapshots=sum(event["how"] == "snapshot" for life in joiners for event in life.of("joined")),
        forks=forks,
        equal=forks == 0 and len(at_end) == 1,
        rounds_s=rounds[-1].committed_s - rounds[0].began_s if rounds else 0.0,
        gap_s=max((b.committed_s - a.committed_s for a, b in itertools.pairwise(rounds)), default=0.0),
        ballots=ballots,
        units=units,
    )


def all_stay(lives: Sequence[Life]) -> bool:
    """Whether nobody who took part in the newest round has gone.

    A second one that goes before the next round commits could take the majority of its participants along.
    """
    newest = max((event for life in lives for event in life.commits), key=lambda event: event["outer_step"])
    return not any(life.peer in newest["participants"] for life in lives if life.gone_s < float("inf"))


def committed_rounds(lives: Sequence[Life]) -> list[Round]:
    """Every outer step that an island has reported, in order."""
    found: dict[int, list[dict[str, Any]]] = {}
    for life in lives:
        for event in life.commits:
            found.setdefault(event["outer_step"], []).append(event)
    rounds = []
    for outer_step, events in sorted(found.items()):
        committed_s = min(event["at_s"] for event in events)
        began_s = min(event["at_s"] - event["round_s"] for event in events)
        live = (life for life in lives if life.reached_s("joined") <= began_s and life.gone_s > committed_s)
        rounds.append(
            Round(
                outer_step=outer_step,
                began_s=began_s,
                committed_s=committed_s,
                participants=frozenset(map(str, events[0]["participants"])),
                live=frozenset(life.peer for life in live),
            )
        )
    return rounds


def joiners_waits(joiners: Sequence[Life], rounds: Sequence[Round]) -> tuple[list[int], int]:
    """Of each joiner the rounds from its first link up to the first with it; how many never took part.

    Who was gone before two rounds had committed can't be told to have waited, and isn't counted.
    """
    waited, never = [], 0
    for life in joiners:
        after = [one for one in rounds if life.reached_s("connected") < one.committed_s < life.gone_s]
        places = [n for n, one in enumerate(after, start=1) if life.peer in one.participants]
        if places:
            waited.append(places[0])
        elif len(after) >= WITHIN_ROUNDS:
            never += 1
    return waited, never
