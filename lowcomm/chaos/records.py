"""What a chaos run leaves: the islands' own files, and what was seen from outside."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowcomm.chaos.tape import FaultKind

Line = dict[str, Any]
Ended = Literal["left", "killed", "failed"]

METRICS = "metrics.jsonl"
LEDGER = "ledger.jsonl"


@dataclass(kw_only=True)
class Life:
    """What one process of an island wrote, from its start line on.

    Attributes:
        ended: `left` in order, `killed` by a fault, or `failed` by itself.
    """

    start: Line
    lines: list[Line] = field(default_factory=list)
    ended: Ended = "killed"

    def of(self, kind: str) -> list[Line]:
        """Its lines of one kind."""
        return [line for line in self.lines if line["kind"] == kind]

    @property
    def commits(self) -> list[Line]:
        """Its committed rounds."""
        return [line for line in self.of("round") if line["committed"]]

    @property
    def tokens(self) -> int:
        """Tokens on its island's count when it was last heard of."""
        counts = [int(line["tokens"]) for line in self.of("train")]
        return max([int(self.start["tokens"]), *counts])


@dataclass(kw_only=True)
class IslandLog:
    """One run folder: one island with one identity, over all its lives.

    Attributes:
        ledger: the entries that it applied, as it wrote them.
        torn: lines of either file that can't be read.
        stayed: it was there when all left.
    """

    name: str
    lives: list[Life] = field(default_factory=list)
    ledger: list[Line] = field(default_factory=list)
    torn: int = 0
    stayed: bool = True

    @property
    def peer(self) -> str:
        return str(self.lives[0].start["peer"]) if self.lives else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """An outer step as it was first seen, and who was alive then.

    Attributes:
        at_s: since the run began.
        participants, live: peer ids; `live` are those that could be expected to take part.
    """

    at_s: float
    fragment: int
    outer_step: int
    participants: tuple[str, ...]
    live: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """A fault as it was struck."""

    at_s: float
    kind: FaultKind
    island: str
    away_s: float
    outer_step: int

    def to_json(self) -> dict[str, Any]:
        """For the contract's `faults`."""
        return {
            "kind": self.kind,
            "at_s": round(self.at_s, 3),
            "island": self.island,
            "away_s": round(self.away_s, 3),
            "outer_step": self.outer_step,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """How long after a fault was over the island took part in a commit again."""

    kind: FaultKind
    island: str
    seconds: float


@dataclass(kw_only=True)
class Story:
    """One run with its faults.

    Attributes:
        hangs, orphans, failures: sentences, as they were found while the run went on.
        partition: who may commit.
        batch_tokens: tokens of one inner step: what may be trained and not yet written down.
    """

    islands: list[IslandLog] = field(default_factory=list)
    faults: list[Struck] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    returns: list[Returned] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    batch_tokens: int = 0
    partition: str = "majority"

    def credits(self) -> dict[int, Line]:
        """Outer step -> the entry in the run's history, of fragment 0, which stands for the whole model.

        The history is what leads to the entry with the most credited tokens; where no ledger has an entry of
        it, what was seen of the outer steps before it.
        """
        seen = [
            line
            for island in self.islands
            for line in island.ledger
            if not line.get("snapshot") and line["fragment"] == 0
        ]
        entries = {str(line["hash"]): line for line in seen}
        last = max(seen, key=lambda line: (line["total_tokens"], line["outer_step"]), default=None)
        found: dict[int, Line] = {}
        while last is not None:
            found[int(last["outer_step"])] = last
            last = entries.get(str(last["previous"]))
        least = min(found, default=0)
        for line in seen:
            if line["outer_step"] < least:
                found.setdefault(int(line["outer_step"]), line)
        return dict(sorted(found.items()))

    def forked(self) -> list[int]:
        """Outer steps of fragment 0 of which several entries were committed."""
        heads: dict[int, set[str]] = defaultdict(set)
        for island in self.islands:
            for line in island.ledger:
                if not line.get("snapshot") and line["fragment"] == 0:
                    heads[int(line["outer_step"])].add(str(line["hash"]))
        return sorted(step for step, hashes in heads.items() if len(hashes) > 1)


def load_island(folder: Path, ends: list[Ended]) -> IslandLog:
    """Read a run folder.

    Args:
        ends: how each of its processes that had got as far as a start line ended, in order.
    """
    log = IslandLog(name=folder.name)
    for line in _read(folder / METRICS, log):
        if line.get("kind") == "start":
            number = len(log.lives)
            log.lives.append(Life(start=line, ended=ends[number] if number < len(ends) else "killed"))
        elif log.lives:
            log.lives[-1].lines.append(line)
    log.ledger = _read(folder / LEDGER, log)
    return log


def _read(path: Path, log: IslandLog) -> list[Line]:
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:  # half a line of a process that was killed
            log.torn += 1
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
