"""One island of `lowcomm bench deaths`: it commits rounds, and one of them stops in the middle of one.

Started by the bench with its settings as JSON; begins when its plan comes on the standard input, and
prints one JSON line per event. A timed wait stands for the inner step; everything from `OuterLoop` down
is as in training. The victim signals itself from its own exchange as soon as a part of its contribution
has left: no watcher from outside could be sure to hit a round that takes a fraction of a second.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowcomm import codecs
from lowcomm.algorithms.outer_optimizers import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.peer import tell
from lowcomm.clock import SystemClock
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.islands import wrap_island
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.decision import RoundPolicy
from lowcomm.types import Json, PeerId

SENT_SHARE = 0.25
"""The victim stops when it has sent so much of its pseudo-gradient; in all it has to send 2/3 of it, and then
as much of the mean."""


class StoppingExchange(SwarmExchange):
    """Ends or freezes this process, all of its threads, in the middle of a round.

    Attributes:
        fatal_step: the outer step of that round; 0 = none.
        fatal_bytes: of contributions to it that have left by then.
        signal: which.
    """

    fatal_step = fatal_bytes = signal = 0
    _sent_bytes = 0

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        """See `Exchange`."""
        await super().send_bulk(peer, message)
        if message.kind == "part" and message.body["outer_step"] == self.fatal_step:
            self._sent_bytes += len(message.payload)
            if self._sent_bytes >= self.fatal_bytes:
                tell(
                    event="stops",
                    at_s=SystemClock().monotonic_s(),
                    outer_step=self.fatal_step,
                    sent_bytes=self._sent_bytes,
                )
                os.kill(os.getpid(), self.signal)


def main() -> None:
    """Join, commit rounds up to the last one of the plan, say what they were."""
    settings = json.loads(sys.argv[1])
    folder = Path(settings["folder"], str(settings["number"]))
    folder.mkdir()
    torch.set_num_threads(1)
    model = nn.ParameterDict(
        {"payload": nn.Parameter(torch.zeros(settings["elements"], dtype=torch.float32, device="cpu"))}
    )
    exchange = StoppingExchange(
        "bench",
        initial_peers=settings["initial_peers"],
        listen=["/ip4/127.0.0.1/tcp/0"],
        relay=False,
    )
    outer = OuterLoop(
        wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.0)),
        exchange,
        schedule=Schedule(inner_steps=settings["inner_steps"]),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(lr=1.0, momentum=0.5),
        round_policy=RoundPolicy(min_participants=2, deadline_s=settings["deadline_s"], partition="majority"),
        expected_peers=settings["islands"],
        folder=folder,
    )
    try:
        outer.connect(on_address=lambda address: tell(event="address", address=address))
        outer.join()
        tell(event="joined", peer=outer.peer_id)
        plan = json.loads(sys.stdin.readline())
        if settings["number"] == plan["victim"]:
            exchange.fatal_bytes = int(SENT_SHARE * 4 * settings["elements"])
            exchange.signal, exchange.fatal_step = plan["signal"], plan["outer_step"]
        tell(event="trained", **_train(outer, model, settings, plan["last"]))
        sys.stdin.read()
    finally:
        outer.close()


def _train(outer: OuterLoop, model: nn.ParameterDict, settings: dict[str, Any], last: int) -> dict[str, Json]:
    """Train up to an outer step."""
    clock, never = SystemClock(), threading.Event()
    noise = torch.randn(
        settings["elements"],
        generator=torch.Generator().manual_seed(settings["number"]),
        dtype=torch.float32,
        device="cpu",
    )
    noise.mul_(1e-3)
    rounds: list[Json] = []
    steps = 0
    while outer.outer_step < last:
        with torch.no_grad():
            model["payload"].add_(noise)
        never.wait(settings["step_s"])
        steps += 1
        for report in outer.step(tokens=1):
            rounds.append(
                {
                    "at_s": clock.monotonic_s(),
                    "outer_step": report.outer_step,
                    "committed": report.committed,
                    "reason": report.reason,
                    "attempts": report.attempts,
                    "round_s": report.round_s,
                    "participants": list(report.participants),
                    "digest": report.digest,
                }
            )
    return {
        "steps": steps,
        "credited": outer.tokens_credited,
        "uncommitted": outer.tokens_uncommitted,
        "rounds": rounds,
        "digest": outer.digest,
    }


if __name__ == "__main__":
    main()
