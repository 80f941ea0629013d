"""Small runs of the trainer: islands as threads over the loopback exchange, on tiny text."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowcomm import exchanges
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.exchanges.base import Exchange
from lowcomm.metrics.summary import Summary
from lowcomm.training.trainer import Trainer

TIMEOUT_S = 100.0
RECIPE = """
[shared]
run_id = "small"
[shared.model]
dim = 16
layers = 1
heads = 2
kv_heads = 2
ffn_dim = 32
context = 16
[shared.schedule]
inner_steps = 5
[shared.data]
shards = 2
holdout_fraction = 0.2
[shared.round]
deadline_s = 30.0
[train]
steps = 20
batch_size = 4
threads = 1
log_every = 5
eval_windows = 32
checkpoint_every = 2
keep_checkpoints = 4
[exchange]
heartbeat_s = 0.1
lease_s = 60.0
gather_timeout_s = 60.0
[metrics]
wandb = "off"
console = "off"
"""


def write_text(folder: Path) -> Path:
    """A few documents of words that can be learned."""
    folder.mkdir()
    chosen = random.Random(0)
    for number in range(12):
        words = chosen.choices(("tide", "moon", "shore", "sand", "gull", "boat"), k=400)
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
    return folder


def make_config(folder: Path, *overrides: str) -> Config:
    """The small recipe with changes; its text lies beside the run folders."""
    text = folder / "text"
    if not text.exists():
        write_text(text)
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    return load_config(recipe, [f"data.source={json.dumps(str(text))}", *overrides])


def train_islands(
    config: Config,
    out: Path,
    islands: int = 2,
    own: Callable[[int, Config], Config] = lambda number, config: config,
) -> list[Summary | BaseException]:
    """Train in `out/island-i`; what each island returned or raised.

    Args:
        own: what an island makes of its settings.
    """

    def make(number: int, exchange: Exchange) -> Trainer:
        own_config = replace(
            config,
            out=str(out / f"island-{number}"),
            data=replace(config.data, shard=-1 if config.shared.data.manifest else number),
            exchange=replace(config.exchange, expected_peers=islands),
        )
        return Trainer(own(number, own_config), exchange=exchange)

    return run_trainers(make, islands, run_id=config.shared.run_id)


def run_trainers(
    make: Callable[[int, Exchange], Trainer], islands: int = 2, *, run_id: str = "small"
) -> list[Summary | BaseException]:
    """What the trainer of each island returned or raised, all at once over the loopback exchange."""
    network = exchanges.hub()
    results: list[Any] = [None] * islands

    def train(number: int) -> None:
        exchange = exchanges.loopback(network, run_id=run_id, peer_id=f"island-{number}", founder=number == 0)
        try:
            results[number] = make(number, exchange).fit()
        except BaseException as error:  # handed to the test, which looks at it
            results[number] = error

    threads = [threading.Thread(target=train, args=(number,), daemon=True) for number in range(islands)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "an island hangs"
    return results


def finished(results: list[Summary | BaseException]) -> list[Summary]:
    """The summaries; raises what an island has raised."""
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, Summary)]


def lines(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind in metrics.jsonl."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def losses(run_dir: Path, after: int = 0) -> dict[int, float]:
    """Training loss by inner step."""
    return {x["inner_step"]: x["loss"] for x in lines(run_dir, "train") if x["inner_step"] > after}


def cut_back(straight: Path, cut: Path) -> None:
    """What SIGKILL after step 10 of 20 leaves: the checkpoint of step 10, and nothing later that counts."""
    shutil.copytree(straight, cut)
    for number in range(2):
        shutil.rmtree(cut / f"island-{number}" / "checkpoints" / "step-000000020")
        (cut / f"island-{number}" / "metrics.jsonl").unlink()
