"""Run folders, read back: what each island of a run wrote, on one count of steps and one clock."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lowcomm.errors import StorageError
from lowcomm.metrics import METRICS_FILE
from lowcomm.metrics.jsonl import read_lines
from lowcomm.metrics.summary import IN_SUMMARY, SUMMARY_FILE
from lowcomm.reasons import why_of

BASELINE_FILE = "baseline.json"
COUNTERS = ("bytes_sent", "bytes_received", "compute_s", "data_s", "wait_s", "transfer_s")

Line = dict[str, Any]

TEXT_UNIT = "nats per token"


@dataclass(frozen=True, kw_only=True)
class IslandRun:
    """What one island wrote, over all its sessions.

    Steps that a resumed session did again stand once, as they were done last. Counters (`COUNTERS`) and
    `time_s` are those of all sessions up to the line; what steps done twice have cost counts twice, as it
    was spent.

    Attributes:
        path: the run folder.
        name: of the island.
        start: the last session's start line.
        train, rounds, evals: the lines of these kinds, in order.
        summary: of the last session, if it has ended; its counters are those of all sessions, too.
        reason: how the last session ended ("" = it is running, or was killed).
        sessions: how often it was started.
        met: peers that it has been linked to at a start, or has had a round with.
        wall_s: seconds over all sessions.
    """

    path: Path
    name: str
    start: Line
    train: tuple[Line, ...]
    rounds: tuple[Line, ...]
    evals: tuple[Line, ...]
    summary: Line | None
    reason: str
    sessions: int
    met: frozenset[str]
    wall_s: float

    @property
    def run_id(self) -> str:
        return str(self.start.get("run_id", ""))

    @property
    def peer(self) -> str:
        return str(self.start.get("peer", ""))

    @property
    def config(self) -> Line:
        config = self.start.get("config")
        return config if isinstance(config, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Run:
    """All islands of a run that have a folder here.

    Attributes:
        paths: the folders that were asked for.
        islands: ordered by name, `time_s` shifted so that their rounds end together.
        baseline: figures of the data-parallel run it is compared with (`eval_loss`, `tokens`, and
            `train` as [tokens, loss] pairs), if there are any.
    """

    paths: tuple[Path, ...]
    islands: tuple[IslandRun, ...]
    baseline: Line | None = field(default=None)

    @property
    def path(self) -> Path:
        """The first of `paths`."""
        return self.paths[0]

    @property
    def run_id(self) -> str:
        return self.islands[0].run_id

    @cached_property
    def loss_unit(self) -> str:
        """As the task of the run tells it; versions that told none trained on text."""
        told = (line["unit"] for island in self.islands for line in island.evals if "unit" in line)
        return str(next(told, TEXT_UNIT))

    @cached_property
    def eval_metrics(self) -> dict[str, float]:
        """What the task tells beside the loss, in the newest evaluation of the first island that has one."""
        newest = next((island.evals[-1] for island in self.islands if island.evals), {})
        told = {
            name.removeprefix("eval_"): value for name, value in newest.items() if name.startswith("eval_")
        }
        return {name: float(value) for name, value in told.items() if name != "loss"}

    @cached_property
    def peers(self) -> frozenset[str]:
        """The islands that took part, with a folder here or not."""
        took_part = {
            str(peer) for island in self.islands for line in island.rounds for peer in _participants(line)
        }
        return frozenset(took_part | {island.peer for island in self.islands})

    @property
    def complete(self) -> bool:
        """Whether all of them have a folder here."""
        return self.peers == {island.peer for island in self.islands}

    @cached_property
    def names(self) -> dict[str, str]:
        """The names of the islands by their peer ids, as far as they are known."""
        told: dict[str, str] = {}
        for island in self.islands:
            for line in island.rounds:
                told.update(line.get("names") or {})
        return {**told, **{island.peer: island.name for island in self.islands if island.peer}}

    def why(self, line: Line) -> str:
        """Why a round came to nothing, or only at a further ballot, with the islands' names."""
        return why_of({**line, "names": {**self.names, **(line.get("names") or {})}})

    @property
    def equal_steps(self) -> bool:
        """Whether all islands count the same inner steps; else each counts its own."""
        shared = self.islands[0].config.get("shared", {})
        return bool(shared.get("schedule", {}).get("mode", "fixed") == "fixed")


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Load every run that is named, in this order; folders of islands that had rounds together are one run.

    Raises:
        StorageError: a folder holds no run, or islands of several runs.
    """
    found: list[Run] = []
    seen: set[Path] = set()
    for path in paths:
        run = load_run(path)
        fresh = tuple(island for island in run.islands if island.path.resolve() not in seen)
        seen |= {island.path.resolve() for island in fresh}
        if not fresh:
            continue
        run = replace(run, islands=fresh)
        for other in [other for other in found if _are_one(other, run)]:
            place = found.index(other)
            found.remove(other)
            run = Run(
                paths=(*other.paths, *run.paths),
                islands=_in_order((*other.islands, *run.islands)),
                baseline=other.baseline or run.baseline,
            )
            found.insert(place, run)
        if all(run is not other for other in found):
            found.append(run)
    return found


def load_run(path: Path) -> Run:
    """Load an island's folder, or a folder that holds island-0, island-1, ...

    Raises:
        StorageError: there is no run, or its islands belong to different runs.
    """
    if not path.exists():
        raise StorageError(f"{path}: expected a run folder, but there is nothing")
    if not path.is_dir():
        raise StorageError(f"{path}: expected a run folder, but it is a file")
    folders = [path] if (path / METRICS_FILE).exists() else _island_folders(path)
    if not folders:
        raise StorageError(
            f"{path}: expected a run folder with {METRICS_FILE}, or one that holds island-0, island-1, ...;"
            " name the folder given to --out"
        )
    islands = [load_island(folder) for folder in folders]
    run_ids = sorted({island.run_id for island in islands})
    if len(run_ids) > 1:
        raise StorageError(f"{path}: expected the islands of one run, got those of {', '.join(run_ids)}")
    baseline = _read_json(path / BASELINE_FILE) if (path / BASELINE_FILE).exists() else None
    return Run(paths=(path,), islands=_in_order(islands), baseline=baseline)


def load_island(path: Path) -> IslandRun:
    """Read one island's metrics.jsonl and summary.json.

    Raises:
        StorageError: it has no start line, or summary.json is no JSON object.
    """
    sessions = _sessions(path / METRICS_FILE)
    if not sessions:
        raise StorageError(f"{path / METRICS_FILE}: expected a line of kind start; the run hasn't begun")
    file = _read_json(path / SUMMARY_FILE) if (path / SUMMARY_FILE).exists() else None
    unknown = _unknown(sessions)
    met = {str(peer) for lines in sessions for line in lines for peer in _met(line)}
    kept: dict[str, list[Line]] = {"train": [], "round": [], "eval": []}
    elapsed_s = 0.0
    for session, more in zip(sessions, unknown, strict=True):
        first_step = _number(session[0], "inner_step")
        for lines in kept.values():
            lines[:] = [line for line in lines if _number(line, "inner_step") <= first_step]
        for line in session:
            line["time_s"] = elapsed_s + _number(line, "time_s")
            if line["kind"] in ("train", "eval"):
                counted = COUNTERS if line["kind"] == "train" else ("bytes_sent",)
                line.update({key: _number(line, key) + more[key] for key in counted})
            if line["kind"] in kept:
                kept[line["kind"]].append(line)
        elapsed_s = max(line["time_s"] for line in session)
    start, last = sessions[-1][0], sessions[-1][-1]
    return IslandRun(
        path=path,
        name=str(start.get("name") or path.resolve().name),
        start=start,
        train=tuple(kept["train"]),
        rounds=tuple(kept["round"]),
        evals=tuple({_number(line, "inner_step"): line for line in kept["eval"]}.values()),
        summary=_summary(file, sessions[-1], unknown[-1]),
        reason=str(last.get("reason", "")) if last["kind"] == "end" else "",
        sessions=len(sessions),
        met=frozenset(met),
        wall_s=elapsed_s,
    )


def _unknown(sessions: Sequence[Sequence[Line]]) -> list[dict[str, float]]:
    """For each session what earlier ones have spent beyond the counters that it began with.

    Nothing, as counters go on over restarts; but older versions went on from the checkpoint, or from zero
    where there was none, and what an earlier session had spent after it was forgotten.
    """
    highest = dict.fromkeys(COUNTERS, 0.0)
    found: list[dict[str, float]] = []
    for number, session in enumerate(sessions):
        began = _began_with(session, sessions[:number], highest)
        more = {key: max(0.0, highest[key] - began[key]) for key in COUNTERS}
        for line in session:
            counts = _counts(line)
            highest = {key: max(highest[key], counts.get(key, 0.0) + more[key]) for key in COUNTERS}
        found.append(more)
    return found


def _began_with(
    session: Sequence[Line], earlier: Sequence[Sequence[Line]], highest: Mapping[str, float]
) -> dict[str, float]:
    """The counters of a session at its start."""
    start = session[0]
    nothing = dict.fromkeys(COUNTERS, 0.0)
    if isinstance(start.get("counts"), dict):
        return {**nothing, **_counts(start)}
    if "resumed_from" not in start:
        first = next((_counts(line) for line in session if line["kind"] == "train"), {})
        goes_on = all(first.get(key, 0.0) >= highest[key] for key in COUNTERS)
        return dict(highest) if goes_on else nothing
    if start["resumed_from"] is None:
        return nothing
    saved_at = _number(start, "resumed_from")
    for lines in reversed(earlier):
        before = [line for line in lines if line["kind"] == "train" and _swarm_step(line, start) <= saved_at]
        if before:
            return {**nothing, **_counts(before[-1])}
    return nothing


def _swarm_step(line: Line, start: Line) -> float:
    """Where the swarm was at a train line, as checkpoints are numbered."""
    config = start.get("config")
    shared = config.get("shared", {}) if isinstance(config, dict) else {}
    schedule = shared.get("schedule", {})
    if schedule.get("mode", "fixed") == "fixed":
        return _number(line, "inner_step")
    return _number(line, "outer_step") * float(schedule.get("inner_steps", 1))


def _counts(line: Line) -> dict[str, float]:
    """The counters that a line tells, as its session counts them."""
    if line["kind"] == "train":
        return {key: _number(line, key) for key in COUNTERS}
    if line["kind"] == "start" and isinstance(line.get("counts"), dict):
        return {key: _number(line["counts"], key) for key in COUNTERS}
    if line["kind"] == "end" and isinstance(line.get("summary"), dict):
        return {key: _number(line["summary"], name) for key, name in IN_SUMMARY.items()}
    return {}


def _summary(file: Line | None, session: Sequence[Line], unknown: Mapping[str, float]) -> Line | None:
    """The summary of the last session; None if it has not come to its end: the file is an older one's."""
    last = session[-1]
    told = last.get("summary") if last["kind"] == "end" else None
    if told and isinstance(told, dict):
        summary = file or told
    elif any(line["kind"] == "train" for line in session):
        return None
    else:
        summary = file or {}
    return {
        **summary,
        **{
            name: _number(summary, name) + unknown[key] for key, name in IN_SUMMARY.items() if name in summary
        },
    } or None


def _met(line: Line) -> Iterable[Any]:
    if line["kind"] == "start":
        peers = line.get("peers")
        return peers if isinstance(peers, list) else ()
    return _participants(line) if line["kind"] == "round" else ()


def _participants(line: Line) -> Sequence[Any]:
    participants = line.get("participants")
    return participants if isinstance(participants, list) else ()


def _are_one(one: Run, other: Run) -> bool:
    """Whether two runs are one: their islands know each other, or have the same entries in their ledgers.

    The name and the settings don't say it: who repeats a run uses the same.
    """
    return any(_belong_together(a, b) for a in one.islands for b in other.islands)


def _belong_together(a: IslandRun, b: IslandRun) -> bool:
    if (a.run_id, a.start.get("shared_digest")) != (b.run_id, b.start.get("shared_digest")):
        return False
    if a.peer == b.peer:  # one is a copy of the other, and may have gone another way since
        return False
    return a.peer in b.met or b.peer in a.met or bool(_heads(a) & _heads(b))


def _heads(island: IslandRun) -> set[str]:
    return {str(line["head"]) for line in island.rounds if line.get("committed") and line.get("head")}


def _in_order(islands: Iterable[IslandRun]) -> tuple[IslandRun, ...]:
    """By name, with a name of its own for each, on one clock."""
    ordered = sorted(islands, key=lambda island: (len(island.name), island.name, str(island.path)))
    names = [island.name for island in ordered]
    folders = [island.path.resolve().name for island in ordered]
    by_folder = len(set(folders)) == len(folders)
    unique = [
        island
        if names.count(island.name) == 1
        else replace(island, name=f"{island.name} ({folder if by_folder else island.peer[-6:]})")
        for island, folder in zip(ordered, folders, strict=True)
    ]
    return tuple(_on_one_clock(unique))


def _sessions(path: Path) -> list[list[Line]]:
    sessions: list[list[Line]] = []
    for line in read_lines(path):
        if line["kind"] == "start":
            sessions.append([])
        if sessions:
            sessions[-1].append(line)
    return sessions


def _island_folders(path: Path) -> list[Path]:
    found = [folder for folder in path.glob("island-*") if (folder / METRICS_FILE).exists()]
    return sorted(found, key=lambda folder: (len(folder.name), folder.name))


def _on_one_clock(islands: list[IslandRun]) -> list[IslandRun]:
    """Shift each island's `time_s` by the median distance of the rounds that it shares with the first."""
    reference = {_key(line): line["time_s"] for line in islands[0].rounds if line.get("committed")}
    return [islands[0], *(_shifted(island, reference) for island in islands[1:])]


def _shifted(island: IslandRun, reference: dict[tuple[int, int], float]) -> IslandRun:
    shared = [
        reference[_key(line)] - line["time_s"]
        for line in island.rounds
        if line.get("committed") and _key(line) in reference
    ]
    if not shared:
        return island
    shift = statistics.median(shared)
    moved = [
        tuple({**line, "time_s": line["time_s"] + shift} for line in lines)
        for lines in (island.train, island.rounds, island.evals)
    ]
    return replace(island, train=moved[0], rounds=moved[1], evals=moved[2])


def _key(line: Line) -> tuple[int, int]:
    return int(line.get("fragment", 0)), int(line.get("outer_step", 0))


def _read_json(path: Path) -> Line:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: expected a JSON object, got: {error}") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _number(line: Mapping[str, Any], key: str) -> float:
    value = line.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0
