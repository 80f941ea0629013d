"""Record run folders for the tests of the report: real islands are trained, stopped, killed and resumed.

    python tests/report/record_runs.py

writes tests/report/recorded/. Each island is `lowcomm train` in a process of its own, over a real swarm. At
each line that it logs the process notes in truth-N.jsonl what its own exchange has counted on the sockets: so
what it has sent is known without anything that a run counts over its sessions.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDED = HERE / "recorded"
RECIPE = """
[shared]
run_id = "recorded"
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
[train]
steps = 60
batch_size = 4
threads = 1
log_every = 5
eval_windows = 32
eval_every = 4
checkpoint_every = 3
[exchange]
expected_peers = 2
heartbeat_s = 0.2
lease_s = 3.0
[metrics]
wandb = "off"
console = "plain"
"""
STARTED = {"seconds": 180.0}


def child(truth: str, arguments: list[str]) -> int:
    """`lowcomm ARGUMENTS`, which notes this process's own traffic at each line of metrics.jsonl."""
    from lowcomm.cli.main import main
    from lowcomm.metrics.jsonl import JsonLinesSink
    from lowcomm.training import trainer

    made: list[Any] = []
    make, log = trainer.build_exchange, JsonLinesSink.log

    def build(*given: Any) -> Any:
        made.append(make(*given))
        return made[-1]

    def noted(sink: JsonLinesSink, record: Any) -> None:
        log(sink, record)
        traffic = made[-1].traffic
        step = record.get("inner_step", 0)
        note = [os.getpid(), record["kind"], step, traffic.sent_bytes, traffic.received_bytes]
        with Path(truth).open("a") as file:
            file.write(json.dumps(note) + "\n")

    trainer.build_exchange, JsonLinesSink.log = build, noted  # type: ignore[assignment,method-assign]
    return main(arguments)


class Island:
    """One island's folder, and its process if it runs."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.out = folder / f"island-{number}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, join: str = "", *settings: str) -> None:
        words = ["train", str(self.folder / "recipe.toml"), "--out", str(self.out)]
        for one in (f"data.source={self.folder / 'text'}", f"data.shard={self.number}", *settings):
            words += ["--set", one]
        if join:
            words += ["--join", join]
        self.address.unlink(missing_ok=True)
        truth = str(self.folder / f"truth-{self.number}.jsonl")
        with (self.folder / f"log-{self.number}.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--child", truth, *words],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )

    @property
    def address(self) -> Path:
        return self.out / "address"

    def join_string(self) -> str:
        wait_for(lambda: self.address.exists() and bool(self.address.read_text().strip()))
        return self.address.read_text().strip()

    def lines(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def sessions(self) -> int:
        return sum(line["kind"] == "start" for line in self.lines())

    def trained_to(self, session: int) -> int:
        """The newest logged inner step of a session, counted from 1."""
        steps, number = [0], 0
        for line in self.lines():
            number += line["kind"] == "start"
            if number == session and line["kind"] == "train":
                steps.append(line["inner_step"])
        return steps[-1]

    def saved(self) -> int:
        found = [int(path.name.split("-")[1]) for path in (self.out / "checkpoints").glob("step-*")]
        return max(found, default=0)

    def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)

    def finish(self) -> None:
        assert self.process is not None
        assert self.process.wait(STARTED["seconds"]) == 0, (
            self.folder / f"log-{self.number}.txt"
        ).read_text()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STARTED["seconds"]
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.01)


def begin(islands: list[Island], *settings: str) -> None:
    for number, island in enumerate(islands):
        island.start(islands[0].join_string() if number else "", *settings)


def stopped_and_resumed(islands: list[Island]) -> None:
    """Ctrl-C twice, resumed each time, to the end."""
    for session, goal in ((1, 15), (2, 35)):
        begin(islands)
        wait_for(lambda: min(island.trained_to(session) for island in islands) >= goal)  # noqa: B023
        for island in islands:
            assert island.process is not None
            island.process.send_signal(signal.SIGINT)
        for island in islands:
            assert island.process is not None
            assert island.process.wait(60) == 130
    begin(islands)
    for island in islands:
        island.finish()


def killed_and_resumed(islands: list[Island]) -> None:
    """kill -9 of all islands twice, each time steps after the newest checkpoint, then to the end."""
    for session, goal in ((1, 20), (2, 35)):
        begin(islands)
        wait_for(lambda: min(island.trained_to(session) for island in islands) >= goal)  # noqa: B023
        for island in islands:
            island.end(signal.SIGKILL)
        assert all(0 < island.saved() <= island.trained_to(session) for island in islands)
    begin(islands)
    for island in islands:
        island.finish()


def killed_before_a_checkpoint(islands: list[Island]) -> None:
    """kill -9 before there is a checkpoint, then once more from the start to the end."""
    begin(islands, "train.checkpoint_every=0")
    wait_for(lambda: min(island.trained_to(1) for island in islands) >= 10)
    for island in islands:
        island.end(signal.SIGKILL)
    begin(islands)
    for island in islands:
        island.finish()


def left_alone(islands: list[Island]) -> None:
    """One island leaves in the middle of the run, so that the other's last rounds have one participant."""
    begin(islands)
    wait_for(lambda: min(island.trained_to(1) for island in islands) >= 30)
    islands[1].end(signal.SIGINT)
    islands[0].finish()


STORIES = (stopped_and_resumed, killed_and_resumed, killed_before_a_checkpoint, left_alone)
KEPT = ("shared", "train")


def trimmed(line: dict[str, Any]) -> dict[str, Any]:
    """The line with numbers rounded, and of the configuration what the report reads."""
    if line["kind"] == "start":
        config = line["config"]
        train = {key: config["train"][key] for key in ("steps", "tokens", "batch_size", "grad_accumulation")}
        shared = {"schedule": config["shared"]["schedule"], "model": config["shared"]["model"]}
        line = {**line, "config": {"shared": shared, "train": train}}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}


def record(story: Callable[[list[Island]], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="lowcomm-record-") as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(RECIPE)
        (folder / "text").mkdir()
        for number in range(12):
            (folder / "text" / f"{number}.txt").write_text(
                f"document {number}: " + "tide and moon and sand. " * 90
            )
        islands = [Island(folder, number) for number in range(2)]
        try:
            story(islands)
        finally:
            for island in islands:
                if island.process is not None and island.process.poll() is None:
                    island.process.kill()
                    island.process.wait()
        target = RECORDED / story.__name__
        shutil.rmtree(target, ignore_errors=True)
        for island in islands:
            out = target / island.out.name
            out.mkdir(parents=True)
            lines = [json.dumps(trimmed(line)) for line in island.lines()]
            (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            if (island.out / "summary.json").exists():
                shutil.copy(island.out / "summary.json", out)
            shutil.copy(folder / f"truth-{island.number}.jsonl", target)
        print(f"{story.__name__}: recorded", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        raise SystemExit(child(sys.argv[2], sys.argv[3:]))
    for story in STORIES:
        if len(sys.argv) == 1 or story.__name__ in sys.argv[1:]:
            record(story)
