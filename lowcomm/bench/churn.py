"""Islands that come and go all the time: who takes part in each round.

One run of real processes over the real swarm on this machine. A seed says which island leaves, and whether
in order or by SIGKILL; for each that is gone a new one joins, with a new identity and a snapshot of the
state. All parts change hands, the founder's too. Islands are forked from a process that has loaded torch
already, so that a join costs a process and a p2pd, not seconds of imports.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from lowcomm import codecs
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.churn_figures import Churn, Life, all_stay, churn_figures, unit_figures
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.payload import Payload, bench_swarm
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import ChurnBench
from lowcomm.clock import Clock, SystemClock
from lowcomm.errors import ExchangeError
from lowcomm.launching.children import Children
from lowcomm.ledger.audit import Audit, Auditor
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.spans import Spans, beginning, joined, size, without
from lowcomm.types import Json

PRELOAD = ["lowcomm.bench.churn", "lowcomm.exchanges.swarm.hivemind_node", "torch._dynamo"]
"""The last one is what torch loads when the first optimizer is made; it takes as long as all the rest."""
START_S = 120.0
LEAVE_S = 20.0
LOOK_S = 0.05
SETTLE_ROUNDS = 4
"""Rounds after the last event."""


def run(bench: ChurnBench, tell: Tell) -> Outcome:
    """For `lowcomm bench churn`."""
    churn = measure_churn(bench, tell)
    wrong = ["expected one history and equal states on all islands, got others"]
    return Outcome(
        log={"churn": churn.to_dict()},
        headings=Churn.HEADINGS,
        rows=churn.rows(),
        errors=[] if churn.equal else wrong,
    )


def measure_churn(bench: ChurnBench, tell: Tell) -> Churn:
    """Run it.

    Raises:
        ExchangeError: the first islands did not come up, an island failed, or nothing commits any more.
    """
    with (
        tempfile.TemporaryDirectory(prefix="lowcomm-churn-") as folder,
        Children(PROGRAM, "churn", deadline_s=START_S, preload=PRELOAD) as peers,
    ):
        scene = _Scene(bench, Path(folder), peers)
        scene.play(tell)
        units = unit_figures(bench.unit_samples, scene.last_ledger(), scene.begun)
        return churn_figures(bench, scene.lives, scene.exits, units)


class _Scene:
    def __init__(self, bench: ChurnBench, folder: Path, peers: Children) -> None:
        self._bench, self._folder, self._peers = bench, folder, peers
        self._clock: Clock = SystemClock()
        self._random = random.Random(f"lowcomm churn {bench.seed}")
        self._pause = threading.Event()
        self._ended: set[int] = set()
        self.lives: list[Life] = []
        self.exits = self.begun = 0

    def _now_s(self) -> float:
        return self._clock.monotonic_s()

    def play(self, tell: Tell) -> None:
        bench = self._bench
        for number in range(bench.islands):
            self._start(expected=bench.islands)
            if number == 0:
                self._wait(lambda: bool(self._addresses()), "the founder has no address")
        self._wait(lambda: len(self._inside()) == bench.islands, "not all first islands joined")
        self._wait(lambda: self._height() >= 2, "nothing commits")
        done, due_s = 0, self._now_s()
        while done < bench.events:
            while self._now_s() < due_s:
                self._pause.wait(LOOK_S)
                self._look()
            if len(self._staying()) < bench.islands:
                self._start(expected=1)
            else:
                self._wait(self._can_spare, "a joiner is not in, or nothing commits")
                killed = self._random.random() < bench.kill_share
                self._end(self._random.choice(self._inside()), killed=killed)
                self.exits += not killed
            done, due_s = done + 1, self._now_s() + bench.every_s
            if done % 20 == 0:
                tell(f"{done} of {bench.events} joins and leaves, outer step {self._height()}")
        self._wait(lambda: len(self._inside()) == len(self._staying()), "a joiner is not in")
        last = self._height() + SETTLE_ROUNDS
        self._wait(lambda: self._height() >= last, "nothing commits after the last event")
        credited = Auditor(Audit(), self._ledger(self._inside()[0])).found.samples
        self.begun = credited.credited[-1][1] if credited else 0
        while self._now_s() < due_s + bench.settle_s:
            self._pause.wait(LOOK_S)
            self._look()
        for life in self._inside():
            self._end(life, killed=False)
        for life in self.lives:
            self._peers.wait_for_end(life.number, LEAVE_S)
        self._look()

    def last_ledger(self) -> Audit:
        """What the ledger of the island tells that was in it last."""
        newest = max(self.lives, key=lambda life: life.outer_step)
        return Auditor(Audit(), self._ledger(newest)).found

    def _ledger(self, life: Life) -> Path:
        return self._folder / str(life.number) / "ledger.jsonl"

    def _start(self, expected: int) -> None:
        bench, folder = self._bench, self._folder / str(len(self.lives))
        folder.mkdir()
        number = self._peers.start(
            {
                "folder": str(folder),
                "initial_peers": self._addresses(),
                "expected_peers": expected,
                "elements": bench.elements,
                "codec": bench.codec,
                "inner_steps": bench.inner_steps,
                "step_s": bench.step_s,
                "deadline_s": bench.deadline_s,
                "partition": bench.partition,
                "unit_samples": bench.unit_samples,
                "step_samples": bench.step_samples,
            }
        )
        self.lives.append(Life(number=number, started_s=self._now_s()))

    def _end(self, life: Life, *, killed: bool) -> None:
        life.killed, life.gone_s = killed, self._now_s()
        if killed:
            self._peers.kill(life.number)
        else:
            self._peers.say(life.number, "leave")

    def _addresses(self) -> list[Json]:
        """Of the islands that stay, as far as they have one."""
        return [event["address"] for life in self._staying() for event in life.of("address")]

    def _staying(self) -> list[Life]:
        """Islands that were started, and neither asked to leave nor killed."""
        return [life for life in self.lives if life.gone_s == float("inf")]

    def _inside(self) -> list[Life]:
        return [life for life in self.lives if life.inside]

    def _can_spare(self) -> bool:
        return len(self._inside()) >= self._bench.islands - 1 and all_stay(self.lives)

    def _height(self) -> int:
        return max(life.outer_step for life in self._staying())

    def _wait(self, reached: Callable[[], bool], failure: str) -> None:
        give_up_s = self._now_s() + START_S
        self._look()
        while not reached():
            self._pause.wait(LOOK_S)
            self._look()
            if self._now_s() > give_up_s:
                raise ExchangeError(f"bench churn: {failure} after {START_S:g} s")

    def _look(self) -> None:
        """Take in what the islands have said, and whether one has failed."""
        for life in self.lives:
            if life.number in self._ended:
                continue
            code = self._peers.code(life.number)  # before its news, which are all then
            life.events += self._peers.news(life.number)
            if code is not None and (life.gone_s == float("inf") or (code and not life.killed)):
                raise ExchangeError(
                    f"bench churn: island {life.number} ended with exit code {code}; "
                    f"{self._peers.last_message(life.number)}"
                )
            if code is not None:
                self._ended.add(life.number)


def take_part(peer: Peer) -> None:
    """Train, a timed wait in place of each inner step, until asked to leave."""
    settings = peer.settings
    payload = Payload(settings["elements"], seed=peer.number)
    outer = OuterLoop(
        payload.island(),
        bench_swarm(settings),
        schedule=Schedule(inner_steps=settings["inner_steps"]),
        codec=codecs.by_name(settings["codec"]),
        outer_optimizer=nesterov(lr=0.7, momentum=0.9),
        round_policy=RoundPolicy(
            min_participants=1, deadline_s=settings["deadline_s"], partition=settings["partition"]
        ),
        expected_peers=settings["expected_peers"],
        folder=Path(settings["folder"]),
        data_digest="churn",
        unit_samples=settings["unit_samples"],
    )
    ahead: Spans = ()
    count = settings["step_samples"]
    leave = peer.asked()
    with contextlib.closing(outer):
        outer.connect(on_address=lambda address: peer.tell("address", address=address))
        peer.tell("connected")
        report = outer.join()
        peer.tell("joined", peer=outer.peer_id, how=report.how)
        while not leave.is_set():
            if size(ahead) < count:
                ahead = joined((*ahead, *outer.lease(count)))
            samples = beginning(ahead, count)
            ahead = without(ahead, samples)
            payload.train()
            peer.wait(settings["step_s"])
            for done in outer.step(count, samples):
                peer.tell(
                    "round",
                    outer_step=done.outer_step,
                    committed=done.committed,
                    reason=done.reason,
                    attempts=done.attempts,
                    participants=list(done.participants),
                    round_s=done.round_s,
                    digest=done.digest,
                )
        peer.tell("left", digest=outer.digest)
