"""One peer of `lowcomm bench snapshot`: a donor that has committed rounds, or the island that joins.

Run as a subprocess by the bench, with its settings as JSON; prints one JSON line per event, and one with
its traffic for each line of the standard input. Everything from `OuterLoop` down is as in training.
With `dies_after_bytes` it ends itself by SIGKILL in mid-transfer, as a machine that loses power would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
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

LOOK_S = 0.002


def main() -> None:
    """Join, commit rounds (a donor), say what moved."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    clock = SystemClock()
    rounds, donors, dies_after = settings["rounds"], settings["donors"], settings["dies_after_bytes"]
    model = nn.ParameterDict(
        {"payload": nn.Parameter(torch.zeros(settings["elements"], dtype=torch.float32, device="cpu"))}
    )
    outer = OuterLoop(
        wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.0)),
        exchanges.swarm(
            run_id="bench",
            initial_peers=settings["initial_peers"],
            listen=["/ip4/127.0.0.1/tcp/0"],
            relay=False,
        ),
        schedule=Schedule(inner_steps=1),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(lr=1.0, momentum=0.5),
        round_policy=RoundPolicy(min_participants=donors, deadline_s=settings["deadline_s"]),
        expected_peers=donors if rounds else 1,
        gather_timeout_s=settings["deadline_s"],
        folder=Path(settings["folder"]),
        snapshot_mbit_s=settings["mbit_s"],
    )
    try:
        began_s = clock.monotonic_s()
        outer.connect(on_address=lambda address: tell(event="address", address=address))
        if dies_after and not rounds:
            _die_after(dies_after, lambda: outer.traffic.received_bytes)
        report = outer.join()
        tell(
            event="joined",
            how=report.how,
            snapshot_bytes=report.snapshot_bytes,
            received_bytes=outer.traffic.received_bytes,
            join_s=clock.monotonic_s() - began_s,
            digest=outer.digest,
        )
        noise = torch.randn(
            settings["elements"],
            generator=torch.Generator().manual_seed(settings["number"]),
            dtype=torch.float32,
            device="cpu",
        )
        for _ in range(rounds):
            with torch.no_grad():
                model["payload"].add_(noise)
            (round_report,) = outer.step(tokens=1)
            tell(event="round", committed=round_report.committed, reason=round_report.reason)
        if dies_after and rounds:
            _die_after(dies_after, lambda: outer.traffic.sent_bytes)
        for _ in sys.stdin:
            tell(event="traffic", sent_bytes=outer.traffic.sent_bytes, digest=outer.digest)
    finally:
        outer.close()


def _die_after(moved_bytes: int, count: Callable[[], int]) -> None:
    """End this process without a word once it has moved so many bytes more; p2pd ends with it."""
    start, never = count(), threading.Event()

    def watch() -> None:
        while count() - start < moved_bytes:
            never.wait(LOOK_S)
        tell(event="dies", moved_bytes=count() - start)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
