"""Round time: real processes over the real swarm, and stock hivemind averaging beside it.

All peers are let go at once; a round counts with its slowest peer, from asking for it to holding the
result. A number is sent in place of an empty payload, so that what remains is forming the round.
With `run_id` it is one island among others on other hosts instead (`lowcomm.bench.site`).
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lowcomm import codecs
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.payload import LOOPBACK, Payload, bench_swarm
from lowcomm.bench.peer import PROGRAM, Peer
from lowcomm.bench.settings import FLOAT_BYTES, RoundBench
from lowcomm.bench.site import measure_site_rounds
from lowcomm.errors import ExchangeError
from lowcomm.launching.children import Children
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.types import Json

MATCHMAKING_S = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Matchmaking times that are tried for stock hivemind, shortest first."""

TRIAL_ROUNDS = 4


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


def run(bench: RoundBench, tell: Tell) -> Outcome:
    """For `lowcomm bench round`; stock hivemind that fails is a result, too."""
    if bench.run_id is not None:
        return measure_site_rounds(bench)
    results: list[Rounds] = []
    failed: list[str] = []
    for payload_mb in bench.payload_mb:
        for peers in bench.peers:
            what = f"{peers} peers, {payload_mb:g} MB"
            results.append(measure_rounds(bench, peers, payload_mb))
            tell(f"lowcomm, {what}: median {results[-1].median_s:.3f} s")
            if not bench.stock:
                continue
            try:
                results.append(measure_hivemind(bench, peers, payload_mb, tell))
            except ExchangeError as error:
                failed.append(f"hivemind, {what}: {error}")
            else:
                tell(f"hivemind, {what}: median {results[-1].median_s:.3f} s")
    return Outcome(
        log={"rounds": [result.to_dict() for result in results], "failed": [*failed]},
        headings=Rounds.HEADINGS,
        rows=[result.row() for result in results],
        errors=failed,
    )


def measure_rounds(bench: RoundBench, peers: int, payload_mb: float) -> Rounds:
    """Rounds of `OuterLoop` over the swarm.

    Raises:
        ExchangeError: a peer failed or stayed silent past the deadline.
    """
    return _measure(bench, peers, payload_mb, "rounds", {"codec": bench.codec}, bench.rounds)


def measure_hivemind(bench: RoundBench, peers: int, payload_mb: float, tell: Tell) -> Rounds:
    """Rounds of stock hivemind, with the matchmaking time that suits it best.

    Longer times are tried until one forms whole groups in all rounds, and then for as long as rounds
    become shorter.

    Args:
        tell: of each trial.

    Raises:
        ExchangeError: no matchmaking time forms whole groups, or a peer failed with each or the best one.
    """

    def measure(matchmaking_s: float, rounds: int) -> Rounds:
        settings: dict[str, Json] = {"matchmaking_s": matchmaking_s}
        return _measure(bench, peers, payload_mb, "stock_hivemind", settings, rounds)

    best: Rounds | None = None
    failure: ExchangeError | None = None
    for seconds in MATCHMAKING_S:
        trial_of = f"trial of stock hivemind, matchmaking {seconds:g} s: "
        try:
            trial = measure(seconds, TRIAL_ROUNDS)
        except ExchangeError as error:
            tell(f"{trial_of}{error}")
            failure = error
            continue
        tell(f"{trial_of}{trial.complete} of {TRIAL_ROUNDS} rounds whole, median {trial.median_s:.3f} s")
        if trial.complete == TRIAL_ROUNDS and (best is None or trial.median_s < best.median_s):
            best = trial
        elif best is not None:
            break
    if best is None or best.matchmaking_s is None:
        raise failure or ExchangeError(
            f"stock hivemind formed no whole groups of {peers} with any matchmaking time up to "
            f"{MATCHMAKING_S[-1]:g} s"
        )
    return measure(best.matchmaking_s, bench.rounds)


def _measure(
    bench: RoundBench, count: int, payload_mb: float, role: str, settings: Mapping[str, Json], rounds: int
) -> Rounds:
    addresses: list[Json] = []
    # a peer gives up by itself at the deadline, and must then be heard of
    with Children(PROGRAM, role, prefix=bench.prefix.split(), deadline_s=2 * bench.deadline_s) as peers:
        for number in range(count):
            peers.start(
                {
                    **settings,
                    "peers": count,
                    "elements": max(1, int(payload_mb * 1e6) // FLOAT_BYTES),
                    "deadline_s": bench.deadline_s,
                    "listen": (bench.listen or LOOPBACK).replace("{number}", str(number)),
                    "initial_peers": addresses,
                }
            )
            address = peers.wait_for(number, "address")["address"]
            addresses = addresses or [address]
        history = [peers.round() for _ in range(bench.warmup + rounds)][bench.warmup :]
    complete = [events for events in history if all(e["participants"] == count for e in events)]
    return Rounds(
        who="hivemind" if role == "stock_hivemind" else "lowcomm",
        peers=count,
        payload_mb=payload_mb,
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


def take_part(peer: Peer) -> None:
    """A round for each line."""
    settings = peer.settings
    payload = Payload(settings["elements"], seed=peer.number)
    outer = OuterLoop(
        payload.island(),
        bench_swarm(settings),
        schedule=Schedule(inner_steps=1),
        codec=codecs.by_name(settings["codec"]),
        outer_optimizer=nesterov(lr=1.0, momentum=0.0),
        round_policy=RoundPolicy(min_participants=settings["peers"], deadline_s=settings["deadline_s"]),
        expected_peers=settings["peers"],
    )
    with contextlib.closing(outer):
        peer.join(outer)
        while peer.hear():
            payload.train()
            began_s = peer.clock.monotonic_s()
            (report,) = outer.step(tokens=1)
            peer.tell(
                "round",
                wait_s=peer.clock.monotonic_s() - began_s,
                committed=report.committed,
                reason=report.reason,
                participants=len(report.participants),
                attempts=report.attempts,
                form_s=report.form_s,
                transfer_s=report.transfer_s,
                bytes_sent=report.bytes_sent,
                digest=report.digest,
            )
