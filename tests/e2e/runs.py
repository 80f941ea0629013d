"""Start lowcomm on small settings, as real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEADLINE_S = 250
SMALL = (
    "shared.schedule.inner_steps=10", "shared.model.dim=32", "shared.model.layers=1", "shared.model.heads=2",
    "shared.model.kv_heads=2", "shared.model.ffn_dim=64", "shared.model.context=32", "train.eval_windows=16",
    "train.log_every=5", "metrics.wandb=off",
)  # fmt: skip

WITHOUT_SETUP = {"SETUP": "off", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""Scripts of launch/ take this Python as it is."""


def lowcomm(*arguments, source, command=(sys.executable, "-m", "lowcomm")):
    settings = [part for override in (*SMALL, f"data.source={source}") for part in ("--set", override)]
    return subprocess.Popen(
        [*command, *map(str, arguments), *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **WITHOUT_SETUP},
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
