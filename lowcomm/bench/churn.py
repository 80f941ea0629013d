"""Islands that come and go all the time: who takes part in each round.

One run of real processes over the real swarm on this machine. A seed says which island leaves, and whether
in order or by SIGKILL; for each that is gone a new one joins, with a new identity and a snapshot of the
state. All parts change hands, the founder's too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lowcomm.bench.churn_figures import Churn, ChurnBench, Life, all_stay, churn_figures
from lowcomm.bench.churn_peer import ADDRESS, EVENTS, LOG, run_island
from lowcomm.clock import Clock, SystemClock
from lowcomm.errors import ExchangeError

PRELOADED = ["lowcomm.bench.churn_peer", "lowcomm.exchanges.swarm.hivemind_node", "torch._dynamo"]
"""The last one is what torch loads when the first optimizer is made; it takes as long as all the rest."""
START_S = 120.0
LEAVE_S = 20.0
LOOK_S = 0.05
SETTLE_ROUNDS = 4
"""Rounds after the last event."""


def measure_churn(bench: ChurnBench, *, on_event: Callable[[str], None]) -> Churn:
    """Run it.

    Args:
        on_event: told of progress.

    Raises:
        ExchangeError: the first islands did not come up, an island failed, or nothing commits any more.
    """
    with tempfile.TemporaryDirectory(prefix="lowcomm-churn-") as folder, _Scene(bench, Path(folder)) as scene:
        scene.play(on_event)
        return churn_figures(bench, scene.lives, scene.exits)


class _Scene:
    def __init__(self, bench: ChurnBench, folder: Path) -> None:
        self._bench, self._folder = bench, folder
        self._clock: Clock = SystemClock()
        self._random = random.Random(f"lowcomm churn {bench.seed}")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._processes: dict[int, ForkServerProcess] = {}
        self._pause = threading.Event()
        self._offsets: dict[int, int] = {}
        self.lives: list[Life] = []
        self.exits = 0

    def __enter__(self) -> _Scene:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()

    def _now_s(self) -> float:
        return self._clock.monotonic_s()

    def play(self, on_event: Callable[[str], None]) -> None:
        bench = self._bench
        for number in range(bench.islands):
            self._start(expected=bench.islands)
            if number == 0:
                self._wait(lambda: bool(self._addresses()), START_S, "the founder has no address")
        self._wait(lambda: len(self._inside()) == bench.islands, START_S, "not all first islands joined")
        self._wait(lambda: self._height() >= 2, START_S, "nothing commits")
        done, due_s = 0, self._now_s()
        while done < bench.events:
            while self._now_s() < due_s:
                self._pause.wait(LOOK_S)
                self._look()
            if len(self._staying()) < bench.islands:
                self._start(expected=1)
            else:
                self._wait(self._can_spare, START_S, "a joiner is not in, or nothing commits")
                killed = self._random.random() < bench.kill_share
                self._end(self._random.choice(self._inside()), killed=killed)
                self.exits += not killed
            done, due_s = done + 1, self._now_s() + bench.every_s
            if done % 20 == 0:
                on_event(f"{done} of {bench.events} joins and leaves, outer step {self._height()}")
        self._wait(lambda: len(self._inside()) == len(self._staying()), START_S, "a joiner is not in")
        last = self._height() + SETTLE_ROUNDS
        self._wait(lambda: self._height() >= last, START_S, "nothing commits after the last event")
        for life in self._inside():
            self._end(life, killed=False)
        for number, process in list(self._processes.items()):
            process.join(LEAVE_S)
            if process.exitcode is None:
                raise ExchangeError(f"bench churn: island {number} did not leave within {LEAVE_S:g} s")
        self._look()

    def _start(self, expected: int) -> None:
        bench, number = self._bench, len(self.lives)
        folder = self._folder / str(number)
        folder.mkdir()
        settings = {
            "folder": str(folder),
            "number": number,
            "initial_peers": self._addresses(),
            "expected_peers": expected,
            "elements": bench.elements,
            "codec": bench.codec,
            "inner_steps": bench.inner_steps,
            "step_s": bench.step_s,
            "deadline_s": bench.deadline_s,
        }
        process = self._context.Process(target=run_island, args=(settings,))
        process.start()
        self._processes[number] = process
        self.lives.append(Life(number=number, started_s=self._now_s()))

    def _end(self, life: Life, *, killed: bool) -> None:
        process = self._processes[life.number]
        assert process.pid is not None
        life.killed, life.gone_s = killed, self._now_s()
        os.kill(process.pid, signal.SIGKILL if killed else signal.SIGTERM)

    def _addresses(self) -> list[str]:
        """Of the islands that stay, as far as they have one."""
        files = [self._folder / str(life.number) / ADDRESS for life in self._staying()]
        return [file.read_text(encoding="utf-8") for file in files if file.exists()]

    def _staying(self) -> list[Life]:
        """Islands that were started, and neither asked to leave nor killed."""
        return [life for life in self.lives if life.gone_s == float("inf")]

    def _inside(self) -> list[Life]:
        return [life for life in self.lives if life.inside]

    def _can_spare(self) -> bool:
        return len(self._inside()) >= self._bench.islands - 1 and all_stay(self.lives)

    def _height(self) -> int:
        return max(life.outer_step for life in self._staying())

    def _wait(self, reached: Callable[[], bool], timeout_s: float, failure: str) -> None:
        give_up_s = self._now_s() + timeout_s
        self._look()
        while not reached():
            self._pause.wait(LOOK_S)
            self._look()
            if self._now_s() > give_up_s:
                raise ExchangeError(f"bench churn: {failure} after {timeout_s:g} s")

    def _look(self) -> None:
        """Take in what the islands have written, and whether one has failed."""
        for number, process in list(self._processes.items()):
            life, ended = self.lives[number], process.exitcode is not None
            self._read(life)
            if ended and (life.gone_s == float("inf") or (process.exitcode and not life.killed)):
                log = (self._folder / str(number) / LOG).read_text(encoding="utf-8", errors="replace")
                raise ExchangeError(
                    f"bench churn: island {number} ended with exit code {process.exitcode}; its log ends: "
                    f"{log[-2000:]}"
                )
            if ended:
                del self._processes[number]

    def _read(self, life: Life) -> None:
        """Take in the whole lines that an island has written since the last look."""
        path = self._folder / str(life.number) / EVENTS
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._offsets.get(life.number, 0))
                added = file.read()
            whole = added[: added.rfind(b"\n") + 1]
            self._offsets[life.number] = self._offsets.get(life.number, 0) + len(whole)
            life.events += map(json.loads, whole.splitlines())
