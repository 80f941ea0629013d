"""Run folders, read back: what each island of a run wrote, on one count of steps and one clock."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lowcomm.errors import StorageError
from lowcomm.metrics.jsonl import read_lines

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
BASELINE_FILE = "baseline.json"
COUNTERS = ("bytes_sent", "bytes_received", "compute_s", "wait_s", "transfer_s")

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class IslandRun:
    """What one island wrote, over all its sessions.

    Steps that a resumed session did again stand once, as they were done last. Counters
    (`COUNTERS`) and `time_s` go on over a restart; bytes that were sent for steps done twice
    count twice, as they did on the wire.

    Attributes:
        path: the run folder.
        start: the last session's start line.
        train, rounds, evals: the lines of these kinds, in order.
        summary: summary.json, if the run has ended.
        reason: how the last session ended ("" = it is running, or was killed).
        sessions: how often it was started.
        before: the counters at the start of the last session, which `summary` counts from.
        wall_s: seconds over all sessions.
    """

    path: Path
    start: Line
    train: tuple[Line, ...]
    rounds: tuple[Line, ...]
    evals: tuple[Line, ...]
    summary: Line | None
    reason: str
    sessions: int
    before: dict[str, float]
    wall_s: float

    @property
    def name(self) -> str:
        return self.path.name

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
        path: the folder that was asked for.
        islands: ordered by name, `time_s` shifted so that their rounds end together.
        baseline: figures of the data-parallel run it is compared with (`eval_loss`, `tokens`, and
            `train` as [tokens, loss] pairs), if there are any.
    """

    path: Path
    islands: tuple[IslandRun, ...]
    baseline: Line | None = field(default=None)

    @property
    def run_id(self) -> str:
        return self.islands[0].run_id

    @property
    def equal_steps(self) -> bool:
        """Whether all islands count the same inner steps; else each counts its own."""
        shared = self.islands[0].config.get("shared", {})
        return bool(shared.get("schedule", {}).get("mode", "fixed") == "fixed")


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """Load every run that is named.

    Raises:
        StorageError: a folder holds no run, or islands of several runs.
    """
    return [load_run(path) for path in paths]


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
    return Run(path=path, islands=tuple(_on_one_clock(islands)), baseline=baseline)


def load_island(path: Path) -> IslandRun:
    """Read one island's metrics.jsonl and summary.json.

    Raises:
        StorageError: it has no start line, or summary.json is no JSON object.
    """
    sessions = _sessions(path / METRICS_FILE)
    if not sessions:
        raise StorageError(f"{path / METRICS_FILE}: expected a line of kind start; the run hasn't begun")
    kept: dict[str, list[Line]] = {"train": [], "round": [], "eval": []}
    elapsed_s, base, high = 0.0, dict.fromkeys(COUNTERS, 0.0), dict.fromkeys(COUNTERS, 0.0)
    for session in sessions:
        for lines in kept.values():
            lines[:] = [
                line for line in lines if line.get("inner_step", 0) <= session[0].get("inner_step", 0)
            ]
        base = dict(high)
        for line in session:
            line["time_s"] = elapsed_s + float(line.get("time_s", 0.0))
            if line["kind"] == "train":
                for key in COUNTERS:
                    line[key] = base[key] + float(line.get(key, 0.0))
                    high[key] = max(high[key], line[key])
            if line["kind"] == "eval":
                line["bytes_sent"] = base["bytes_sent"] + float(line.get("bytes_sent", 0.0))
            if line["kind"] in kept:
                kept[line["kind"]].append(line)
        elapsed_s = max(line["time_s"] for line in session)
    last = sessions[-1][-1]
    summary = _read_json(path / SUMMARY_FILE) if (path / SUMMARY_FILE).exists() else None
    return IslandRun(
        path=path,
        start=sessions[-1][0],
        train=tuple(kept["train"]),
        rounds=tuple(kept["round"]),
        evals=tuple(kept["eval"]),
        summary=summary,
        reason=str(last.get("reason", "")) if last["kind"] == "end" else "",
        sessions=len(sessions),
        before=base,
        wall_s=elapsed_s,
    )


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
