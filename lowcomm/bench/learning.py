"""The learning study: islands against data-parallel training and against an island alone.

A study is a TOML file with a base recipe and a list of runs. Each run of a seed is one line in the
log, keyed by its settings, so a study that was stopped goes on where it was. Islands train through
the production trainer, node and rounds; only the network between them is replaced (the loopback
exchange: threads of one process), which changes no bit of what is learned.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lowcomm import __version__
from lowcomm.baseline import run_baseline
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError
from lowcomm.exchanges import hub, loopback
from lowcomm.exchanges.loopback import LoopbackHub
from lowcomm.train import Summary, Trainer
from lowcomm.types import Json

KINDS = ("islands", "data-parallel", "alone")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One line of a study: what to train, with which settings, how many times.

    Attributes:
        name: how tables and plots call it.
        kind: `islands`; `data-parallel` with the same shards and tokens; or `alone`: one island with
            its own share of the tokens.
        overrides: like `--set`.
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
                overrides=tuple(str(item) for item in run.get("set", [])),
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


def run_study(
    path: Path, log: Path, *, on_line: Callable[[dict[str, Json]], None], clock: Clock | None = None
) -> list[dict[str, Json]]:
    """Train whatever the log doesn't hold yet; returns the lines of all runs of the study."""
    clock = clock or SystemClock()
    recipe, runs = load_study(path)
    done = {str(line["key"]): line for line in read_log(log)}
    lines = []
    for run, seed in _by_seed(runs):
        overrides = [*run.overrides, f"shared.seed={seed}"]
        key = json.dumps([run.kind, run.islands, sorted(overrides)])
        if key not in done:
            config = load_config(recipe, overrides)
            done[key] = {
                "key": key,
                "name": run.name,
                "kind": run.kind,
                "islands": run.islands,
                "seed": seed,
                "settings": list(run.overrides),
                **_train(run, config, clock),
                "lowcomm": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            }
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[key]) + "\n")
        lines.append(done[key])
        on_line(done[key])
    return lines


def read_log(log: Path) -> list[dict[str, Json]]:
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
        summaries = train_islands(config, run.islands)
        facts = {
            "eval_loss": summaries[0].eval_loss,
            "tokens": sum(summary.tokens for summary in summaries),
            "outer_steps": summaries[0].outer_steps,
            "rounds_failed": summaries[0].rounds_failed,
            "digests_equal": len({summary.digest for summary in summaries}) == 1,
            "bytes_sent": [summary.wan_bytes_sent for summary in summaries],
            "data_parallel_bytes": summaries[0].data_parallel_bytes,
            "parameters": summaries[0].parameters,
        }
    else:
        result = run_baseline(config, run.islands if run.kind == "data-parallel" else 1, None, threads=1)
        facts = {name: result[name] for name in ("eval_loss", "tokens", "parameters")}
    return {**facts, "wall_s": round(clock.monotonic_s() - began_s, 1)}


def train_islands(config: Config, islands: int) -> list[Summary]:
    """Train `islands` islands in threads of this process over the loopback exchange.

    Raises:
        LowcommError: whatever stopped the first island that failed.
    """
    network = hub()
    summaries: list[Summary | None] = [None] * islands
    errors: list[BaseException] = []
    with tempfile.TemporaryDirectory(prefix="lowcomm-study-") as folder:

        def train(island: int) -> None:
            try:
                summaries[island] = _trainer(config, island, islands, Path(folder), network).fit()
            except BaseException as error:  # the boundary of a thread: raised again by whoever waits
                errors.append(error)

        threads = [threading.Thread(target=train, args=(island,)) for island in range(islands)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
    return [summary for summary in summaries if summary is not None]


def _trainer(config: Config, island: int, islands: int, folder: Path, network: LoopbackHub) -> Trainer:
    own = dataclasses.replace(
        config,
        out=str(folder / f"island-{island}"),
        data=dataclasses.replace(config.data, shard=island),
        exchange=dataclasses.replace(config.exchange, expected_peers=islands),
        metrics=dataclasses.replace(config.metrics, wandb="off", console="off"),
    )
    exchange = loopback(network, run_id=config.shared.run_id, peer_id=f"island-{island}", founder=island == 0)
    return Trainer(own, exchange=exchange)
