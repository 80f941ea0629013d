"""One view of several islands on this machine: what their metrics.jsonl files say, as they grow."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lowcomm.clock import Clock
from lowcomm.launching.islands import FINISHED, STOPPED
from lowcomm.metrics import METRICS_FILE
from lowcomm.metrics.console import STEPS, human_bytes, position, time_split
from lowcomm.training.phases import read_phase

LINES_EVERY_S = 5.0


class IslandView:
    """What is known of one island from its metrics file, read from where it stood at the start.

    Attributes:
        name: of the island.
        state: starting, what it does before it trains, training, or how it ended.
        line: the newest train line.
        failed: rounds of this session that were not committed.
        diverged: whether its loss ended above where it began.
        eval_loss: the newest, if any.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.state = "starting"
        self.line: dict[str, Any] = {}
        self.failed = 0
        self.diverged = False
        self.eval_loss: float | None = None
        self._folder, self._path = folder, folder / METRICS_FILE
        self._begun = False
        self._offset = self._path.stat().st_size if self._path.exists() else 0
        self._rest = b""

    def refresh(self) -> bool:
        """Read what was added; whether there was anything."""
        if not self._begun:
            self.state = read_phase(self._folder) or self.state
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return False
        self._offset += len(added)
        *whole, self._rest = (self._rest + added).split(b"\n")
        for text in whole:
            try:
                record = json.loads(text)
            except ValueError:  # the torn last line of an earlier session
                continue
            if isinstance(record, dict):
                self._take(record)
        return bool(whole)

    def ended(self, code: int) -> None:
        """Say how its process ended."""
        self._begun = True
        if self.diverged:
            self.state = "DIVERGED"
        elif code == FINISHED:
            self.state = "finished"
        elif code == STOPPED:
            self.state = "stopped"
        else:
            self.state = f"failed ({code})"

    def _take(self, record: dict[str, Any]) -> None:
        kind = record.get("kind")
        if kind == "start":
            self.state, self.diverged, self._begun = "training", False, True
            self.name = str(record.get("name") or self.name)
        elif kind == "end":
            self.diverged = record.get("reason") == "diverged"
        elif kind == "train":
            self.line = record
        elif kind == "round":
            self.failed += not record.get("committed")
        elif kind == "eval":
            self.eval_loss = record.get("eval_loss")


class SwarmView(Protocol):
    """Shows the islands until it is closed."""

    def show(self, islands: Sequence[IslandView]) -> None: ...

    def close(self) -> None: ...


class LiveView:
    """A table that is drawn anew in place, with a bar for the progress of the slowest island."""

    def __init__(self, total: int, clock: Clock, console: Console, key: str = STEPS) -> None:
        self._key = key
        self._total, self._clock, self._began_s = total, clock, clock.monotonic_s()
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._live.start()

    def show(self, islands: Sequence[IslandView]) -> None:
        self._live.update(
            Group(self._progress(islands), island_table(islands, self._total, self._key)), refresh=True
        )

    def close(self) -> None:
        self._live.stop()

    def _progress(self, islands: Sequence[IslandView]) -> Table:
        done = min((int(island.line.get(self._key, 0)) for island in islands), default=0)
        unit = "inner steps" if self._key == STEPS else "tokens"
        seconds = self._clock.monotonic_s() - self._began_s
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=self._total, completed=done, width=40),
            Text(f"{done:,}/{self._total:,} {unit}  {seconds // 60:.0f}:{seconds % 60:02.0f}"),
        )
        return row


class LineView:
    """Lines for where there is no terminal: one for each change of state, and the figures now and then."""

    def __init__(self, total: int, clock: Clock, stream: TextIO, key: str = STEPS) -> None:
        self._key = key
        self._total, self._clock, self._stream = total, clock, stream
        self._began_s = clock.monotonic_s()
        self._next_s = 0.0
        self._states: dict[str, str] = {}
        self._steps: dict[str, int] = {}

    def show(self, islands: Sequence[IslandView]) -> None:
        now_s = self._clock.monotonic_s() - self._began_s
        for island in islands:
            if self._states.get(island.name) != island.state:
                self._states[island.name] = island.state
                self._print(now_s, f"{island.name}: {island.state}")
        steps = {island.name: int(island.line.get("inner_step", 0)) for island in islands}
        if now_s >= self._next_s and steps != self._steps:
            self._next_s, self._steps = now_s + LINES_EVERY_S, steps
            self._print(
                now_s, "; ".join(_words(island, self._total, self._key) for island in islands if island.line)
            )

    def close(self) -> None:
        return None

    def _print(self, now_s: float, words: str) -> None:
        if words:
            print(f"[{now_s:6.1f} s] {words}", file=self._stream, flush=True)


def swarm_view(total: int, key: str, clock: Clock) -> SwarmView:
    """A live table if the standard error is a terminal, else lines.

    Args:
        total, key: when the run is over, and the field of a train line that counts up to it.
    """
    if sys.stderr.isatty():
        return LiveView(total, clock, Console(stderr=True, highlight=False), key)
    return LineView(total, clock, sys.stderr, key)


def island_table(islands: Sequence[IslandView], total: int, key: str = STEPS) -> Table:
    """One row per island."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("island")
    table.add_column("state")
    for heading in (
        "step",
        "loss",
        "tok/s",
        "outer",
        "peers",
        "sent",
        "failed\nrounds",
        "compute/\nwait/\ntransfer",
    ):
        table.add_column(heading, justify="right")
    for island in islands:
        line = island.line
        if not line:
            table.add_row(island.name, island.state, *[""] * 8)
            continue
        table.add_row(
            island.name,
            island.state,
            f"{int(line['inner_step']):,}/{total:,}" if key == STEPS else f"{int(line['inner_step']):,}",
            f"{line['loss']:.3f}",
            f"{line['tokens_per_s']:,.0f}",
            str(line["outer_step"]),
            str(line["peers"]),
            human_bytes(line["bytes_sent"]),
            str(island.failed),
            time_split(line),
        )
    return table


def _words(island: IslandView, total: int, key: str) -> str:
    line = island.line
    return (
        f"{island.name} {position(line, total, key)} loss {line['loss']:.3f}"
        f" {line['tokens_per_s']:,.0f} tok/s outer {line['outer_step']} peers {line['peers']}"
        f" sent {human_bytes(line['bytes_sent'])}"
    )
