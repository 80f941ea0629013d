"""Round time: real processes over the real swarm, and stock hivemind averaging beside it.

All peers are let go at once; a round counts with its slowest peer, from asking for it to holding the
result. A number is sent in place of an empty payload, so that what remains is forming the round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lowcomm.bench.children import Children
from lowcomm.errors import ExchangeError
from lowcomm.types import Json

FLOAT_BYTES = 4
MATCHMAKING_S = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Matchmaking times that are tried for stock hivemind, shortest first."""

TRIAL_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure.

    Attributes:
        peers: processes, each a peer of its own.
        payload_mb: megabytes (1e6) of fp32 numbers before encoding; 0 = a single number.
        rounds: rounds that count.
        warmup: rounds before them.
        codec: name of the codec; stock hivemind always sends fp32.
        listen: multiaddr to listen on; {number} is replaced by the peer's.
        prefix: put before each peer's command, e.g. `ip netns exec lcw{number}`.
        deadline_s: longest wait of and for a peer.
    """

    peers: int
    payload_mb: float
    rounds: int
    warmup: int = 2
    codec: str = "fp32"
    listen: str = "/ip4/127.0.0.1/tcp/0"
    prefix: tuple[str, ...] = ()
    deadline_s: float = 120.0

    @property
    def elements(self) -> int:
        """Numbers in the payload."""
        return max(1, int(self.payload_mb * 1e6) // FLOAT_BYTES)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What the rounds took and gave, the warm-up left out.

    Attributes:
        who: `lowcomm` or `hivemind`.
        seconds: of each round's slowest peer.
        form_s, transfer_s: medians of the slowest peer; None where they are not known.
        complete: rounds in which all peers were in one group, and so held one mean.
        bit_identical: those of them after which all peers held the same bits.
        bytes_sent: median per peer and round, on the sockets; None where it is not known.
        matchmaking_s: hivemind's setting.
    """

    who: str
    peers: int
    payload_mb: float
    codec: str
    seconds: tuple[float, ...]
    form_s: float | None
    transfer_s: float | None
    complete: int
    bit_identical: int
    bytes_sent: int | None
    matchmaking_s: float | None
    reasons: tuple[str, ...]

    HEADINGS: ClassVar[tuple[str, ...]] = (
        "", "peers", "payload", "codec", "median s", "fastest", "slowest", "forming s", "one group",
        "bit-identical", "bytes sent",
    )  # fmt: skip

    @property
    def median_s(self) -> float:
        """Median round."""
        return statistics.median(self.seconds)

    def row(self) -> tuple[str, ...]:
        """Under `HEADINGS`."""
        count = len(self.seconds)
        return (
            self.who,
            str(self.peers),
            f"{self.payload_mb:g} MB",
            self.codec,
            f"{self.median_s:.3f}",
            f"{min(self.seconds):.3f}",
            f"{max(self.seconds):.3f}",
            "-" if self.form_s is None else f"{self.form_s:.3f}",
            f"{self.complete} of {count}",
            f"{self.bit_identical} of {count}",
            "-" if self.bytes_sent is None else f"{self.bytes_sent:,}",
        )

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {
            **{name: list(x) if isinstance(x, tuple) else x for name, x in vars(self).items()},
            "rounds": len(self.seconds),
            "median_s": self.median_s,
            "fastest_s": min(self.seconds),
            "slowest_s": max(self.seconds),
        }


def measure_rounds(bench: Bench | None = None, **settings: Any) -> Rounds:
    """Rounds of `OuterLoop` over the swarm, as `bench` says, or a `Bench` of `settings`.

    Raises:
        ExchangeError: a peer failed or stayed silent past the deadline.
    """
    bench = bench or Bench(**settings)
    return _measure(bench, "lowcomm.bench.peer", "lowcomm", {"codec": bench.codec}, bench.rounds)


def measure_hivemind(bench: Bench, *, on_trial: Callable[[float, str], None]) -> Rounds:
    """Rounds of stock hivemind, with the matchmaking time that suits it best.

    Longer times are tried until one forms whole groups in all rounds, and then for as long as rounds
    become shorter.

    Args:
        on_trial: told (matchmaking time in seconds, what came of it) of each trial.

    Raises:
        ExchangeError: no matchmaking time forms whole groups, or a peer failed with each or the best one.
    """
    best: Rounds | None = None
    failure: ExchangeError | None = None
    for seconds in MATCHMAKING_S:
        try:
            trial = _measure_hivemind(bench, seconds, TRIAL_ROUNDS)
        except ExchangeError as error:
            on_trial(seconds, str(error))
            failure = error
            continue
        on_trial(seconds, f"{trial.complete} of {TRIAL_ROUNDS} rounds whole, median {trial.median_s:.3f} s")
        if trial.complete == TRIAL_ROUNDS and (best is None or trial.median_s < best.median_s):
            best = trial
        elif best is not None:
            break
    if best is None or best.matchmaking_s is None:
        raise failure or ExchangeError(
            f"stock hivemind formed no whole groups of {bench.peers} with any matchmaking time up to "
            f"{MATCHMAKING_S[-1]:g} s"
        )
    return _measure_hivemind(bench, best.matchmaking_s, bench.rounds)


def _measure_hivemind(bench: Bench, matchmaking_s: float, rounds: int) -> Rounds:
    settings: dict[str, Json] = {"matchmaking_s": matchmaking_s}
    return _measure(bench, "lowcomm.bench.stock_hivemind", "hivemind", settings, rounds)


def _measure(bench: Bench, module: str, who: str, settings: dict[str, Json], rounds: int) -> Rounds:
    addresses: list[Json] = []
    # a peer gives up by itself at the deadline, and must then be heard of
    with Children(module, prefix=bench.prefix, deadline_s=2 * bench.deadline_s) as children:
        for number in range(bench.peers):
            children.start(
                {
                    **settings,
                    "peers": bench.peers,
                    "elements": bench.elements,
                    "deadline_s": bench.deadline_s,
                    "listen": bench.listen.replace("{number}", str(number)),
                    "initial_peers": addresses,
                }
            )
            address = children.wait_for(number, "address")["address"]
            addresses = addresses or [address]
        history = [children.round() for _ in range(bench.warmup + rounds)][bench.warmup :]
    complete = [events for events in history if all(e["participants"] == bench.peers for e in events)]
    return Rounds(
        who=who,
        peers=bench.peers,
        payload_mb=bench.payload_mb,
        codec=str(settings.get("codec", "fp32")),
        seconds=tuple(max(event["wait_s"] for event in events) for events in history),
        form_s=_median_of_slowest(history, "form_s"),
        transfer_s=_median_of_slowest(history, "transfer_s"),
        complete=len(complete),
        bit_identical=sum(len({event["digest"] for event in events}) == 1 for events in complete),
        bytes_sent=_median_bytes(history),
        matchmaking_s=_number(settings.get("matchmaking_s")),
        reasons=tuple(
            sorted({str(event["reason"]) for events in history for event in events if event["reason"]})
        ),
    )


def _median_of_slowest(history: Sequence[Sequence[dict[str, Any]]], key: str) -> float | None:
    if key not in history[0][0]:
        return None
    return statistics.median(max(float(event[key]) for event in events) for events in history)


def _median_bytes(history: Sequence[Sequence[dict[str, Any]]]) -> int | None:
    if "bytes_sent" not in history[0][0]:
        return None
    return int(statistics.median(event["bytes_sent"] for events in history for event in events))


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
