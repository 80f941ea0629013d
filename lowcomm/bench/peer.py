"""One peer of `lowcomm bench round`: a process that takes part in rounds of a bare tensor.

Run as a subprocess by the bench, with its settings as JSON; takes part in one round for each line of
the standard input, or in `rounds` of them without waiting, and prints one JSON line per event.
Everything from `OuterLoop` down is as in training.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import nn

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import SystemClock
from lowcomm.islands import wrap_island
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.decision import RoundPolicy
from lowcomm.types import Json


def main() -> None:
    """Join, take part in the rounds, print what each took."""
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    clock = SystemClock()
    model = nn.ParameterDict(
        {"payload": nn.Parameter(torch.zeros(settings["elements"], dtype=torch.float32, device="cpu"))}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    exchange = exchanges.swarm(
        run_id="bench", initial_peers=settings["initial_peers"], listen=[settings["listen"]], relay=False
    )
    outer = OuterLoop(
        wrap_island(model, optimizer),
        exchange,
        schedule=Schedule(inner_steps=1),
        codec=codecs.by_name(settings["codec"]),
        outer_optimizer=nesterov(lr=1.0, momentum=0.0),
        round_policy=RoundPolicy(min_participants=settings["peers"], deadline_s=settings["deadline_s"]),
        expected_peers=settings["peers"],
    )
    generator = torch.Generator().manual_seed(settings["number"])
    noise = torch.randn(settings["elements"], generator=generator, dtype=torch.float32, device="cpu")
    try:
        outer.connect(on_address=lambda address: tell(event="address", address=address))
        outer.join()
        for _ in range(settings["rounds"]) if "rounds" in settings else sys.stdin:
            with torch.no_grad():
                model["payload"].add_(noise)
            began_s = clock.monotonic_s()
            (report,) = outer.step(tokens=1)
            wait_s = clock.monotonic_s() - began_s
            tell(
                event="round",
                wait_s=wait_s,
                committed=report.committed,
                reason=report.reason,
                participants=len(report.participants),
                attempts=report.attempts,
                form_s=report.form_s,
                transfer_s=report.transfer_s,
                bytes_sent=report.bytes_sent,
                digest=report.digest,
            )
    finally:
        outer.close()


def tell(**event: Json) -> None:
    """One line for the bench."""
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
