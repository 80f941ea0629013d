"""A member of a run over the real hivemind daemon lies; of four honest islands one joins after it."""

import threading
from collections.abc import Callable

import pytest
import torch

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, nesterov
from lowcomm.exchanges.base import Exchange, Message
from lowcomm.exchanges.swarm.daemon import DaemonOptions
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.islands import wrap_island
from lowcomm.ledger.entry import hash_bytes
from tests.outer.swarm import Lie, Lying, Result, batch, in_parallel, make_model, train_step

pytestmark = pytest.mark.processes

LIAR, JOINER = 3, 4
HONEST = (0, 1, 2, JOINER)
ROUNDS = 8
COMES_AFTER = {LIAR: 1, JOINER: 3}
"""Rounds; the others have founded the run by then."""
TIMEOUT_S = 60.0
FALSE = hash_bytes(b"a lie")


class LyingSwarm(Lying, SwarmExchange):
    """Over the real network."""


def false_vote(message: Message) -> Message:
    """Says that it came to another state than the others."""
    if message.kind != "vote":
        return message
    return Message("vote", {**message.body, "state": FALSE}, message.payload)


def false_snapshot(message: Message) -> Message:
    """Offers another state than its entry names, and serves damaged pieces of the true one."""
    if message.kind == "snapshot" and "digest" in message.body:
        return Message("snapshot", {**message.body, "digest": FALSE}, message.payload)
    if message.kind == "blob" and len(message.payload):
        payload = bytearray(message.payload)
        payload[-1] ^= 0x55
        return Message("blob", message.body, bytes(payload))
    return message


def false_heartbeat(message: Message) -> Message:
    """Says that it has trained for years, on a history of its own."""
    if message.kind != "state" or not message.body.get("heads"):
        return message
    claims = {"outer_steps": [10**6], "total_tokens": [10**12], "heads": [FALSE], "inner_step": 10**9}
    return Message("state", {**message.body, **claims}, message.payload)


class Run:
    """Islands in threads, each with a daemon of its own."""

    def __init__(self, lie: Lie) -> None:
        self.lie = lie
        self.results = {number: Result() for number in (*HONEST, LIAR)}
        self.liar = ""
        self.address: list[str] = []
        self.done = threading.Barrier(len(HONEST))
        self.may_start = {number: threading.Event() for number in (1, 2, LIAR, JOINER)}
        self.over = threading.Event()
        self.reached: dict[int, int] = {}

    def exchange(self, number: int) -> Exchange:
        if number != LIAR:
            return SwarmExchange("lies", DaemonOptions(), initial_peers=self.address)
        exchange = LyingSwarm("lies", DaemonOptions(), initial_peers=self.address)
        exchange.lie = self.lie
        return exchange

    def found(self, address: str) -> None:
        self.address.append(address)
        self.may_start[1].set()
        self.may_start[2].set()

    def island(self, number: int) -> None:
        """Honest ones do their rounds; the liar goes on until they are through."""
        result = self.results[number]
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if number != 0:
            assert self.may_start[number].wait(TIMEOUT_S)
        outer = OuterLoop(
            wrap_island(model, optimizer),
            self.exchange(number),
            schedule=Schedule(inner_steps=4),
            codec=codecs.fp32(),
            outer_optimizer=nesterov(lr=0.7, momentum=0.6),
            round_policy=RoundPolicy(deadline_s=3.0, min_participants=1 if number == LIAR else 3),
            expected_peers=1 if number in COMES_AFTER else 3,
            snapshot_mbit_s=0,
        )
        try:
            outer.connect(on_address=self.found if number == 0 else None)
            result.how = outer.join().how
            result.started.set()
            if number == LIAR:
                self.liar = outer.peer_id
            while not self.over.is_set() if number == LIAR else outer.outer_step < ROUNDS:
                for other, rounds in COMES_AFTER.items() if number == 0 else ():
                    if outer.outer_step >= rounds:
                        self.may_start[other].set()
                        assert self.results[other].started.wait(TIMEOUT_S)
                inputs = batch(number, outer.inner_step)
                result.losses.append(train_step(model, optimizer, inputs))
                result.reports += outer.step(tokens=len(inputs))
            result.digest, self.reached[number] = outer.digest, outer.outer_step
            if number != LIAR:
                self.done.wait(TIMEOUT_S)  # nobody leaves another alone in its last round
        finally:
            outer.close()

    def train(self) -> None:
        liar = threading.Thread(
            target=in_parallel, args=([lambda: self.island(LIAR)], self.results, [LIAR]), daemon=True
        )
        liar.start()
        try:
            in_parallel([lambda i=i: self.island(i) for i in HONEST], self.results, list(HONEST))
        finally:
            self.over.set()
            liar.join(TIMEOUT_S)
        assert not liar.is_alive()


@pytest.mark.parametrize("lie", [false_vote, false_snapshot, false_heartbeat])
def test_honest_islands_agree_and_one_more_joins(lie: Callable[[Message], Message]) -> None:
    run = Run(lie)
    run.train()
    digests: dict[int, set[str]] = {}
    for island in HONEST:
        result = run.results[island]
        assert result.error is None, result.error
        for report in result.committed:  # a round may wait in vain for those who wait for a start
            digests.setdefault(report.outer_step, set()).add(report.digest)
    assert all(len(found) == 1 for found in digests.values()), digests
    assert {run.reached[island] for island in HONEST} == {ROUNDS}
    assert len({run.results[island].digest for island in HONEST}) == 1
    if lie is false_vote:  # the others vote alike, and name it
        reports = [report for island in HONEST for report in run.results[island].reports]
        assert {text.split(":")[0] for report in reports for text in report.rejected} == {run.liar}
