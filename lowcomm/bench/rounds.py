"""Round time: real processes over the real swarm, on whatever network they are started in."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lowcomm.errors import ExchangeError
from lowcomm.types import Json

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """What `rounds` rounds of `peers` peers took; seconds, over the rounds after the warm-up.

    Each round counts with its slowest peer: from being due to having committed.
    """

    peers: int
    payload_mb: float
    codec: str
    rounds: int
    median_s: float
    fastest_s: float
    slowest_s: float
    form_median_s: float
    transfer_median_s: float
    committed: int
    bit_identical: int
    bytes_sent_median: int

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return dict(vars(self))


def measure_rounds(
    *,
    peers: int,
    payload_mb: float,
    rounds: int,
    warmup: int,
    codec: str,
    listen: str,
    deadline_s: float = 120.0,
    launch: Callable[[int, list[str]], list[str]] = lambda number, command: command,
) -> RoundFigures:
    """Start the peers, let them take part in all rounds, end them.

    Args:
        payload_mb: megabytes (1e6) of fp32 numbers before encoding; 0 = a single number.
        launch: wraps the command of a peer, e.g. to start it in a network namespace.

    Raises:
        ExchangeError: a peer failed; it says what the peer printed.
    """
    settings: dict[str, Any] = {
        "peers": peers,
        "elements": max(1, int(payload_mb * 1e6) // FLOAT_BYTES),
        "rounds": rounds + warmup,
        "codec": codec,
        "listen": listen,
        "deadline_s": deadline_s,
    }
    children: list[subprocess.Popen[str]] = []
    initial_peers: list[str] = []
    try:
        for number in range(peers):
            own = {**settings, "number": number, "initial_peers": initial_peers}
            command = launch(number, [sys.executable, "-m", "lowcomm.bench.peer", json.dumps(own)])
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            children.append(child)
            if number == 0:
                initial_peers = [str(_event(child, "address")["address"])]
        histories = [_history(child, rounds + warmup)[warmup:] for child in children]
        for child in children:
            child.wait(timeout=60)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    by_round = list(zip(*histories, strict=True))
    slowest = [max(float(event["wait_s"]) for event in events) for events in by_round]
    return RoundFigures(
        peers=peers,
        payload_mb=payload_mb,
        codec=codec,
        rounds=rounds,
        median_s=statistics.median(slowest),
        fastest_s=min(slowest),
        slowest_s=max(slowest),
        form_median_s=statistics.median(max(float(e["form_s"]) for e in events) for events in by_round),
        transfer_median_s=statistics.median(max(float(e["transfer_s"]) for e in events) for events in by_round),
        committed=sum(all(e["committed"] for e in events) for events in by_round),
        bit_identical=sum(len({e["digest"] for e in events}) == 1 for events in by_round),
        bytes_sent_median=int(statistics.median(int(e["bytes_sent"]) for e in by_round[-1])),
    )


def _history(child: subprocess.Popen[str], rounds: int) -> list[dict[str, Any]]:
    return [_event(child, "round") for _ in range(rounds)]


def _event(child: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    assert child.stdout is not None
    for line in child.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == kind:
            return event
    raise ExchangeError(f"a peer of the bench ended early with exit code {child.wait()}; see its messages above")
