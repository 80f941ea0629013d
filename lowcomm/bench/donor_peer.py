"""One peer of `lowcomm bench donors`: a donor that trains on, or the island that joins.

Started by the bench with its settings as JSON. A donor commits rounds until a joiner would have to take a
snapshot, then makes timed inner steps until it is told to stop, and says when each of them ended.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path

import torch
from torch import nn

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.peer import tell
from lowcomm.clock import SystemClock
from lowcomm.islands import wrap_island
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.decision import RoundPolicy
from lowcomm.types import Json


def main() -> None:
    """Be a donor, or join."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    clock, donors = SystemClock(), settings["donors"]
    model = nn.ParameterDict(
        {"payload": nn.Parameter(torch.zeros(settings["elements"], dtype=torch.float32, device="cpu"))}
    )
    joins = settings["number"] >= donors
    if joins:
        tell(event="loaded")
        sys.stdin.readline()
    with tempfile.TemporaryDirectory(prefix="lowcomm-donors-") as folder:
        outer = OuterLoop(
            wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.0)),
            exchanges.swarm(
                run_id="bench",
                initial_peers=settings["initial_peers"],
                listen=["/ip4/127.0.0.1/tcp/0"],
                relay=False,
            ),
            schedule=Schedule(inner_steps=settings["inner_steps"]),
            codec=codecs.fp32(),
            outer_optimizer=nesterov(lr=1.0, momentum=0.5),
            round_policy=RoundPolicy(min_participants=donors, deadline_s=settings["deadline_s"]),
            expected_peers=1 if joins else donors,
            folder=Path(folder),
            snapshot_mbit_s=settings["mbit_s"],
        )
        try:
            began_s = clock.monotonic_s()
            outer.connect(on_address=None if joins else _tell_address)
            report = outer.join()
            if joins:
                ended_s, how = clock.monotonic_s(), report.how
                tell(event="joined", began_s=began_s, ended_s=ended_s, how=how, digest=outer.digest)
                sys.stdin.readline()
            else:
                _serve(outer, model, settings["rounds"] * settings["inner_steps"], settings["step_s"])
        finally:
            outer.close()


def _tell_address(address: str) -> None:
    tell(event="address", address=address)


def _serve(outer: OuterLoop, model: nn.ParameterDict, untimed_steps: int, step_s: float) -> None:
    clock, stop, never = SystemClock(), threading.Event(), threading.Event()
    for _ in range(untimed_steps):
        outer.step(tokens=1)
    tell(event="trains", outer_steps=outer.outer_step)

    def listen() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    ended: list[Json] = []
    while not stop.is_set():
        with torch.no_grad():
            model["payload"].add_(1e-6)
        never.wait(step_s)
        outer.step(tokens=1)
        ended.append(clock.monotonic_s())
    tell(event="stopped", ended_s=ended, outer_steps=outer.outer_step, digest=outer.digest)


if __name__ == "__main__":
    main()
