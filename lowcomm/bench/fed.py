"""An island that trains on a corpus behind a slow link, and for how long its inner steps wait for data.

It is `lowcomm train` in a process of its own. How fast it trains from the disk says what link it needs;
then it trains from a server with that link, with nothing in the cache, and its metrics.jsonl tells the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lowcomm.bench.servers import LimitedServer
from lowcomm.data.corpus.manifest import Manifest
from lowcomm.errors import DataError
from lowcomm.metrics import METRICS_FILE
from lowcomm.metrics.jsonl import read_lines
from lowcomm.metrics.summary import data_wait_share
from lowcomm.types import Json

CONTEXT, BATCH = 128, 8
STEP_TOKENS = CONTEXT * BATCH
SPEED_STEPS, LOGGED_EVERY = 200, 10
RECIPE = f"""
[shared]
run_id = "fed"
[shared.model]
dim = 64
layers = 2
heads = 2
kv_heads = 2
ffn_dim = 128
context = {CONTEXT}
[shared.inner]
name = "adamw"
lr = 1e-3
[shared.schedule]
inner_steps = 50
[shared.data]
shards = 1
[train]
batch_size = {BATCH}
threads = 1
log_every = {LOGGED_EVERY}
checkpoint_every = 0
[metrics]
wandb = "off"
console = "off"
"""


def train_from_disk(root: Path, corpus: Path, manifest: Manifest) -> dict[str, Json]:
    """Some steps where nothing is waited for, as figures of a reader; `peak_tokens_per_s` of a few of them.

    Args:
        root: a folder for what is made.
    """
    lines = _train(root, str(corpus), manifest, SPEED_STEPS)
    return {**_figures(lines), "peak_tokens_per_s": max(line["tokens_per_s"] for line in lines)}


def train_over_http(
    root: Path, corpus: Path, manifest: Manifest, *, tokens_per_s: float, used: float
) -> dict[str, Json]:
    """An epoch over a link of which training takes a part at most, as figures of a reader.

    Args:
        root: a folder for what is made.
        tokens_per_s: of training at its fastest, where nothing is waited for.
        used: that part.
    """
    token_mbit = manifest.vocabulary.token_bytes * 8 / 1e6
    mbit_s = tokens_per_s * token_mbit / used
    steps = manifest.tokens // STEP_TOKENS - 1 - len(manifest.training)
    with LimitedServer(corpus, mbit_s) as server:
        found = _figures(_train(root, server.url, manifest, steps))
    return {**found, "mbit_s": mbit_s, "used_share": float(str(found["tokens_per_s"])) * token_mbit / mbit_s}


def _figures(lines: list[dict[str, Any]]) -> dict[str, Json]:
    """All but the first batch without the first quarter of the steps."""
    first, last = lines[len(lines) // 4], lines[-1]
    spent = {key: last[key] - first[key] for key in ("compute_s", "data_s", "wait_s", "wall_s", "tokens")}
    return {
        "tokens_per_s": spent["tokens"] / spent["wall_s"],
        "first_batch_s": lines[0]["data_s"],
        "waited_share": data_wait_share(spent["compute_s"], spent["data_s"], spent["wait_s"]),
        "waited_s": spent["data_s"],
        "seconds": spent["wall_s"],
        "steps": last["inner_step"] - first["inner_step"],
    }


def _train(root: Path, source: str, manifest: Manifest, steps: int) -> list[dict[str, Any]]:
    """Its lines of inner steps."""
    recipe, run = root / "fed.toml", root / f"fed-{steps}"
    recipe.write_text(RECIPE, encoding="utf-8")
    settings = (f"train.steps={steps}", f"data.source={source}", f"shared.data.manifest={manifest.digest}")
    overrides = [word for setting in settings for word in ("--set", setting)]
    ended = subprocess.run(
        [sys.executable, "-m", "lowcomm", "train", str(recipe), "--out", str(run), *overrides],
        env={**os.environ, "XDG_CACHE_HOME": str(root / "cache")},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise DataError(f"lowcomm train broke: {ended.stderr.strip().splitlines()[-1:]}")
    return [line for line in read_lines(run / METRICS_FILE) if line["kind"] == "train"]
