"""One island of `lowcomm bench churn`: it joins, takes part until it is asked to leave, or is killed.

Forked from a process that has loaded torch already, so that a join costs a process and a p2pd, not
seconds of imports. Everything from `OuterLoop` down is as in training; a timed wait stands for the inner
step. What it has done stands in `events.jsonl` of its folder, a line each, so that a kill loses none of it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import SystemClock
from lowcomm.interrupts import Interrupts
from lowcomm.islands import wrap_island
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.decision import RoundPolicy
from lowcomm.types import Json

EVENTS, ADDRESS, LOG = "events.jsonl", "address", "log.txt"


def run_island(settings: dict[str, Any]) -> None:
    """Take part until SIGTERM."""
    folder = Path(settings["folder"])
    log = (folder / LOG).open("w", encoding="utf-8")
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with Interrupts() as interrupts, (folder / EVENTS).open("a", encoding="utf-8") as events:
        try:
            _take_part(settings, folder, _Events(events), interrupts)
        except KeyboardInterrupt:
            pass  # asked to leave before it was in


def _die_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


class _Events:
    def __init__(self, file: TextIO) -> None:
        self._file, self._clock = file, SystemClock()

    def tell(self, kind: str, **fields: Json) -> None:
        self._file.write(json.dumps({"event": kind, "at_s": self._clock.monotonic_s(), **fields}) + "\n")
        self._file.flush()


def _take_part(settings: dict[str, Any], folder: Path, events: _Events, interrupts: Interrupts) -> None:
    model = nn.ParameterDict(
        {"payload": nn.Parameter(torch.zeros(settings["elements"], dtype=torch.float32, device="cpu"))}
    )
    noise = torch.randn(
        settings["elements"],
        generator=torch.Generator().manual_seed(settings["number"]),
        dtype=torch.float32,
        device="cpu",
    )
    noise.mul_(1e-3)
    outer = OuterLoop(
        wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.0)),
        exchanges.swarm(
            run_id="bench",
            initial_peers=settings["initial_peers"],
            listen=["/ip4/127.0.0.1/tcp/0"],
            relay=False,
        ),
        schedule=Schedule(inner_steps=settings["inner_steps"]),
        codec=codecs.by_name(settings["codec"]),
        outer_optimizer=nesterov(lr=0.7, momentum=0.9),
        round_policy=RoundPolicy(min_participants=1, deadline_s=settings["deadline_s"], partition="majority"),
        expected_peers=settings["expected_peers"],
        folder=folder,
    )
    never = threading.Event()
    try:
        outer.connect(on_address=lambda address: _write(folder / ADDRESS, address))
        events.tell("connected")
        report = outer.join()
        interrupts.can_wait = True
        events.tell("joined", peer=outer.peer_id, how=report.how)
        while not interrupts.asked:
            with torch.no_grad():
                model["payload"].add_(noise)
            never.wait(settings["step_s"])
            for done in outer.step(tokens=1):
                events.tell(
                    "round",
                    outer_step=done.outer_step,
                    committed=done.committed,
                    reason=done.reason,
                    attempts=done.attempts,
                    participants=list(done.participants),
                    round_s=done.round_s,
                    digest=done.digest,
                )
        events.tell("left", digest=outer.digest)
    finally:
        outer.close()


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
