"""The network thread does nothing that takes long: a peer of a large model must not miss its lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowcomm.ledger.state
from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, nesterov, wrap_island
from lowcomm.exchanges.base import Message
from lowcomm.types import PeerId
from tests.outer.light import watching
from tests.outer.swarm import Result, in_parallel

WIDTH = 128
"""A fragment has more elements than anything that belongs on the network thread."""
LIGHT_BYTES = 1 << 13


class Islands:
    """Islands with run folders, in threads of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.hub = folder, exchanges.hub()
        self.results: dict[int, Result] = {}

    def train(
        self,
        number: int,
        until: int,
        *,
        expected: int,
        saved: dict[str, Any] | None = None,
        each: Callable[[int], object] = lambda step: None,
        before_loading: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """One island up to an inner step, from a checkpoint if there is one; gives another one."""
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        folder = self._folder / str(number)
        folder.mkdir(exist_ok=True)
        outer = OuterLoop(
            wrap_island(model, optimizer),
            exchanges.loopback(self.hub, run_id="run", peer_id=f"island-{number}", founder=number == 0),
            schedule=Schedule(inner_steps=2, num_fragments=2, delay=0),
            codec=codecs.int8(error_feedback=True),
            outer_optimizer=nesterov(),
            round_policy=RoundPolicy(deadline_s=5.0),
            expected_peers=expected,
            gather_timeout_s=30.0,
            lease_s=30.0,
            folder=folder,
            keep_updates=2,
            chunk_bytes=1 << 14,
        )
        result = self.results[number] = Result()
        try:
            if outer.connect([saved["inner_step"]] if saved else []) is not None and saved:
                before_loading()
                outer.load_state_dict(saved)
            result.how = outer.join().how
            result.started.set()
            while outer.inner_step < until:
                model(torch.randn(8, WIDTH)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                result.reports += outer.step(tokens=8)
                each(outer.inner_step)
            result.reports += outer.finish()
            return outer.state_dict()
        finally:
            outer.close()

    def run(self, *calls: Callable[[], Any]) -> None:
        """Several islands at the same time."""
        numbers = list(range(len(calls)))
        in_parallel(list(calls), self.results, numbers)
        for result in self.results.values():
            if result.error is not None:
                raise result.error


def unlike(found: Sequence[str]) -> str:
    return "\n".join(sorted({what for what in found}))


def test_founding_joining_committing_and_resuming_leave_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    islands, saved = Islands(tmp_path), {}
    begun, late_is_in = threading.Event(), threading.Event()

    def wait_for_it(step: int) -> None:
        if step == 6:
            begun.set()
            assert late_is_in.wait(30.0)

    def early(number: int) -> None:
        saved[number] = islands.train(number, 12, expected=2, each=wait_for_it)

    def late() -> None:
        assert begun.wait(30.0)
        saved[2] = islands.train(2, 12, expected=1, each=lambda step: late_is_in.set())

    with watching(monkeypatch, most_bytes=LIGHT_BYTES) as found:
        islands.run(lambda: early(0), lambda: early(1), late)
        assert islands.results[2].how == "snapshot"
        islands.run(*[lambda n=n: islands.train(n, 20, expected=3, saved=saved[n]) for n in range(3)])
    assert all(len(result.reports) > 2 for result in islands.results.values())
    assert not found, unlike(found)


def test_an_island_is_heard_while_it_hashes_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes: here as long as some heartbeats."""
    islands = Islands(tmp_path)
    alone, over = threading.Event(), threading.Event()
    hashing, heard = threading.Event(), threading.Semaphore(0)

    def hear(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        if sender == "island-1" and message.kind == "ping" and hashing.is_set():
            heard.release()
        return True

    def hash_slowly(parts: Any) -> bytes:
        if not hashing.is_set() and alone.is_set():
            hashing.set()
            for _ in range(3):
                assert heard.acquire(timeout=20.0), "nobody hears of an island that hashes"
        return make_manifest(parts)

    def stay() -> None:
        islands.train(0, 6, expected=2, each=lambda step: step < 6 or over.wait(60.0))

    def go_and_come() -> None:
        saved = islands.train(1, 4, expected=2)
        try:
            islands.train(1, 6, expected=2, saved=saved, before_loading=alone.set)
        finally:
            over.set()

    make_manifest = lowcomm.ledger.state.make_manifest
    monkeypatch.setattr(lowcomm.ledger.state, "make_manifest", hash_slowly)
    islands.hub.filter = hear
    islands.run(stay, go_and_come)
    assert hashing.is_set()
