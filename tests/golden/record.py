"""Adds what golden cases end with that are not on record yet: `python -m tests.golden.record`.

What is on record stays; to change it, take it out of the file first, which is only for a change that is
meant to change bits: whatever else changes them is a mistake. `--quickstart` compares short quickstarts with
those on record, `--quickstart --write` records them: these train a GPT, so their bits are those of one kind
of processor, one version of torch and one of Python, whose sources they read.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lowcomm.exchanges.swarm.identity import Identity
from tests.golden.cases import CASES, Found, run
from tests.islands.ranks import ROOT, run_ranks

GOLDEN = Path(__file__).with_name("digests.json")
QUICKSTART = Path(__file__).with_name("quickstart.json")
SHARDED = {"fsdp2 beside plain": "nesterov", "fsdp2 beside plain, adam": "adam"}
STEPS = 90


def sharded(folder: Path) -> dict[str, Found]:
    """What an FSDP2 island of two ranks and a plain one end with, by case."""
    found = run_ranks(2, folder, "fsdp2", module="tests.golden.rank")[0]["golden"]
    return {case: found[optimizer] for case, optimizer in SHARDED.items()}


def machine() -> dict[str, str]:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        "commit": head.stdout.strip(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
    }


def quickstart(islands: int, seed: int) -> str:
    """The digest that all islands of a short quickstart end with.

    The islands' names are fixed, as contributions are summed in their order.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, figures = Path(folder) / "run", Path(folder) / "figures.json"
        for index in range(islands):
            key = out / f"island-{index}" / "identity.key"
            key.parent.mkdir(parents=True)
            key.touch(mode=0o600)
            key.write_bytes(Identity(Ed25519PrivateKey.from_private_bytes(bytes([index]) * 32)).to_bytes())
        command = ["quickstart", "--islands", islands, "--steps", STEPS, "--seed", seed]
        subprocess.run(
            [sys.executable, "-m", "lowcomm", *map(str, command), "--out", out, "--json", figures],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        (digest,) = set(json.loads(figures.read_text())["digests"])
        return str(digest)


def quickstarts() -> dict[str, str]:
    runs = [(islands, seed) for islands in (2, 3) for seed in range(3)]
    return {f"{islands} islands, seed {seed}": quickstart(islands, seed) for islands, seed in runs}


def main(options: set[str]) -> int:
    if "--quickstart" not in options:
        recorded = json.loads(GOLDEN.read_text())
        cases = recorded["cases"]
        missing = [name for name in (*CASES, *SHARDED) if name not in cases]
        cases |= {name: {**run(CASES[name]), "since": machine()} for name in missing if name in CASES}
        if set(missing) & set(SHARDED):
            with tempfile.TemporaryDirectory() as folder:
                made = sharded(Path(folder))
            cases |= {name: {**made[name], "since": machine()} for name in missing if name in SHARDED}
        _write(GOLDEN, recorded)
        print(f"added: {', '.join(missing) or 'nothing'}")
        return 0
    found = quickstarts()
    if "--write" in options:
        _write(QUICKSTART, {"recorded": machine(), "cases": found})
        return 0
    recorded = json.loads(QUICKSTART.read_text())
    print(f"recorded: {recorded['recorded']}\nhere:     {machine()}")
    for name, digest in found.items():
        print(name, "equal" if digest == recorded["cases"][name] else "UNEQUAL", digest[:12])
    return int(found != recorded["cases"])


def _write(path: Path, recorded: dict[str, Any]) -> None:
    path.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(set(sys.argv[1:])))
