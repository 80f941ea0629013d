"""The learning study: islands against data-parallel training and against an island alone.

A study is a TOML file with a base recipe, settings of all runs and a list of runs. Each run of a seed
is one line in the log, keyed by its settings, so a study that was stopped goes on where it was; several
processes may share the work (`jobs`). Islands are real: a process each, over the real swarm, as
`lowcomm launch` starts them.
"""

from __future__ import annotations

import itertools
import json
import platform
import signal
import statistics
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3

from lowcomm import __version__
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import LearningBench
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.load import load_config, to_dict, to_toml
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError, LowcommError
from lowcomm.launching.children import Children
from lowcomm.launching.islands import LaunchPlan
from lowcomm.launching.session import train_together
from lowcomm.metrics.factory import METRICS_FILE
from lowcomm.training.baseline import run_baseline
from lowcomm.types import Json

KINDS = ("islands", "data-parallel", "alone")
SPOKEN_S = 10.0
"""More than enough: a worker is listened to once it has spoken."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line of a study: what to train, with which settings, how many times.

    Attributes:
        name: how tables and plots call it.
        kind: `islands`; `data-parallel` with the same shards and tokens; or `alone`: one island with
            its own share of the tokens.
        overrides: like `--set`, those of the whole study first.
    """

    name: str
    kind: str
    islands: int
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]


def load_study(path: Path) -> tuple[Path, list[Run]]:
    """The base recipe and the runs of a study file.

    Raises:
        ConfigError: the file can't be read or a run is not as expected.
    """
    try:
        study = tomllib.loads(path.read_text(encoding="utf-8"))
        runs = [
            Run(
                name=str(run["name"]),
                kind=str(run["kind"]),
                islands=int(run["islands"]),
                overrides=tuple(str(item) for item in (*study.get("set", []), *run.get("set", []))),
                seeds=tuple(int(seed) for seed in run.get("seeds", study.get("seeds", [0]))),
            )
            for run in study["runs"]
        ]
        recipe = path.parent / str(study["recipe"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: expected a study with `recipe` and [[runs]]: {error!r}") from error
    for run in runs:
        if run.kind not in KINDS:
            raise ConfigError(f"{path}: runs.kind: expected one of {', '.join(KINDS)}, got {run.kind!r}")
    return recipe, runs


def run(bench: LearningBench, tell: Tell) -> Outcome:
    """For `lowcomm bench learning`."""
    lines = run_study(bench, tell)
    return Outcome(
        log={"runs": list(lines)},
        headings=("run", "seed", "eval loss"),
        rows=[(str(line["name"]), str(line["seed"]), f"{line['eval_loss']:.4f}") for line in lines],
    )


def run_study(bench: LearningBench, tell: Tell, clock: Clock | None = None) -> list[dict[str, Json]]:
    """Train whatever the log doesn't hold yet; it is appended to as soon as a run is done.

    Args:
        tell: of each run, those of before included.

    Returns:
        The lines of all runs of the study, in its order.

    Raises:
        ConfigError: the study or a setting is wrong, or the log was made from another base recipe.
        LowcommError: whatever stopped a run; the log holds the runs that were done before.
    """

    def tell_line(line: dict[str, Any]) -> None:
        tell(f"{line['name']}, seed {line['seed']}: eval loss {line['eval_loss']}")

    log = bench.log
    recipe, runs = load_study(bench.study)
    done = {str(line["key"]): line for line in read_log(log)}
    tasks = [_Task(run, seed, recipe) for run, seed in _by_seed(runs)]
    for task in tasks:
        made_with = done.get(task.key, {}).get("settings_digest", task.settings_digest)
        if made_with != task.settings_digest:
            raise ConfigError(
                f"{log}: {task.run.name!r}, seed {task.seed}, was run with other settings in {recipe.name}; "
                "expected a log of this recipe, give another --log"
            )
        if task.key in done:
            tell_line(done[task.key])
    left = [task for task in tasks if task.key not in done]
    for line in _train_all(left, bench.jobs, clock or SystemClock()):
        done[str(line["key"])] = line
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        tell_line(line)
    return [done[task.key] for task in tasks]


@dataclass(frozen=True)
class _Task:
    """One run of one seed."""

    run: Run
    seed: int
    recipe: Path

    def to_json(self) -> str:
        return json.dumps([asdict(self.run), self.seed, str(self.recipe)])

    @classmethod
    def from_json(cls, text: str) -> _Task:
        run, seed, recipe = json.loads(text)
        return cls(Run(**{**run, "overrides": tuple(run["overrides"])}), seed, Path(recipe))

    @cached_property
    def config(self) -> Config:
        return load_config(self.recipe, [*self.run.overrides, f"shared.seed={self.seed}"])

    @property
    def key(self) -> str:
        overrides = sorted([*self.run.overrides, f"shared.seed={self.seed}"])
        return json.dumps([self.run.kind, self.run.islands, overrides])

    @property
    def settings_digest(self) -> str:
        """Of everything in the configuration that the result depends on."""
        used = {name: to_dict(self.config)[name] for name in ("shared", "train", "data")}
        return blake3(json.dumps(used, sort_keys=True).encode("utf-8")).hexdigest()


def _train_all(tasks: Sequence[_Task], jobs: int, clock: Clock) -> Iterator[dict[str, Json]]:
    """The lines, as they are done."""
    if jobs == 1:
        for task in tasks:
            yield _line(task, clock)
        return
    waiting = iter(tasks)
    with Children(PROGRAM, "learning", deadline_s=SPOKEN_S, dies=signal.SIGTERM) as workers:
        for task in itertools.islice(waiting, jobs):
            workers.say(workers.start({}), task.to_json())
        for _ in tasks:
            number = workers.next()
            line = workers.wait_for(number, "line")
            if line["error"]:
                raise LowcommError(line["error"])
            yield line["line"]
            if (following := next(waiting, None)) is not None:
                workers.say(number, following.to_json())


def take_part(peer: Peer) -> None:
    """Train a run for each line. It takes its islands along when it is ended."""
    while asked := peer.hear():
        error, line = "", {}
        try:
            line = _line(_Task.from_json(asked), peer.clock)
        except LowcommError as failure:
            error = str(failure)
        peer.tell("line", error=error, line=line)


def _line(task: _Task, clock: Clock) -> dict[str, Json]:
    return {
        "key": task.key,
        "settings_digest": task.settings_digest,
        "name": task.run.name,
        "kind": task.run.kind,
        "islands": task.run.islands,
        "seed": task.seed,
        "settings": list(task.run.overrides),
        **_train(task.run, task.config, clock),
        "lowcomm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read_log(log: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no file."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _by_seed(runs: Sequence[Run]) -> Iterator[tuple[Run, int]]:
    """All runs of the first seed, then all of the next: a study cut short is complete for some seeds."""
    for seed in sorted({seed for run in runs for seed in run.seeds}):
        for run in runs:
            if seed in run.seeds:
                yield run, seed


def _train(run: Run, config: Config, clock: Clock) -> dict[str, Json]:
    began_s = clock.monotonic_s()
    facts: dict[str, Json]
    if run.kind == "islands":
        summaries, curve = train_islands(config, run.islands, clock)
        first = summaries[0]
        facts = {name: first[name] for name in ("eval_loss", "outer_steps", "rounds_failed", "parameters")}
        facts |= {
            "tokens": sum(summary["tokens"] for summary in summaries),
            "digests_equal": len({summary["digest"] for summary in summaries}) == 1,
            "bytes_sent": [summary["wan_bytes_sent"] for summary in summaries],
            "data_parallel_bytes": first["data_parallel_bytes"],
            "train": curve,
        }
    else:
        result = run_baseline(config, run.islands if run.kind == "data-parallel" else 1, None, threads=1)
        facts = {name: result[name] for name in ("eval_loss", "tokens", "parameters", "train")}
    return {**facts, "wall_s": round(clock.monotonic_s() - began_s, 1)}


def train_islands(config: Config, islands: int, clock: Clock) -> tuple[list[dict[str, Any]], list[Json]]:
    """Train `islands` islands on this machine: a process each, the real swarm.

    Returns:
        Their summaries, and the curve: [tokens of all islands, mean training loss] at each log line.

    Raises:
        LowcommError: an island failed, and it says what its log ends with; or a signal stopped one.
    """
    with tempfile.TemporaryDirectory(prefix="lowcomm-study-") as folder:
        recipe, out = Path(folder) / "recipe.toml", Path(folder) / "run"
        recipe.write_text(to_toml(config), encoding="utf-8")
        plan = LaunchPlan(
            recipe=recipe, config=config, overrides=("metrics.wandb=off",), out=out, islands=islands
        )
        train_together(plan, clock)
        folders = [plan.folder(island) for island in range(islands)]
        summaries = [json.loads((one / "summary.json").read_text("utf-8")) for one in folders]
        for one, summary in zip(folders, summaries, strict=True):
            if summary["interrupted"]:
                raise LowcommError(
                    f"{one.name} was stopped by a signal after {summary['inner_steps']} inner steps; "
                    "nothing was logged for this run, start the study again to repeat it"
                )
        curves = [_train_lines(one) for one in folders]
    curve: list[Json] = [
        [sum(line["tokens"] for line in lines), statistics.fmean(line["loss"] for line in lines)]
        for lines in zip(*curves, strict=True)
    ]
    return summaries, curve


def _train_lines(run_dir: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run_dir / METRICS_FILE).read_text("utf-8").splitlines())
    return [line for line in lines if line["kind"] == "train"]
