"""No object of the engine is changed from two threads."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict

import pytest

from lowcomm import OuterLoop, Schedule, codecs
from tests.outer.swarm import TIMEOUT_S, Swarm, in_parallel

MAILBOX = "Peers._posted"
"""What the training thread leaves for the network thread: one reference to a value that never changes."""
LOCKED = {"UpdateStore", "StoredUpdate"}
"""Changed by the worker, and by the network thread, under a lock."""
ENGINE = tuple(f"lowcomm.{package}." for package in ("ledger", "peers", "rounds", "recovery", "outer"))


def _watch_writes(patch: pytest.MonkeyPatch) -> dict[tuple[int, str], set[str]]:
    """Of every object of the engine that can change: which threads write each of its fields."""
    found: dict[tuple[int, str], set[str]] = defaultdict(set)
    kept: list[object] = []  # so that no other object gets the number of one that is gone

    def noting(self: object, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        caller = sys._getframe(1)
        if caller.f_code.co_name == "__init__" and caller.f_locals.get("self") is self:
            return  # nobody else has it yet
        kept.append(self)
        thread = threading.current_thread().name.partition("_")[0]  # workers do one thing after the other
        found[id(self), f"{type(self).__name__}.{name}"].add(thread)

    for module in [m for name, m in sys.modules.items() if name.startswith(ENGINE)]:
        for kind in vars(module).values():
            changes = isinstance(kind, type) and kind.__module__ == module.__name__
            if changes and kind.__setattr__ is object.__setattr__ and not issubclass(kind, BaseException):
                patch.setattr(kind, "__setattr__", noting)
    return found


def test_no_object_is_changed_from_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two islands train, and a third one comes and takes their state."""
    found = _watch_writes(monkeypatch)
    schedule = Schedule(inner_steps=3, num_fragments=2, delay=1, mode="matched")
    swarm = Swarm(schedule=schedule, codec=lambda: codecs.int8(error_feedback=True))
    under_way, come = threading.Event(), threading.Event()

    def each(inner_step: int, outer: OuterLoop) -> None:
        outer.show_loss(1.0 / inner_step)
        if outer.outer_step == 2:
            under_way.set()
            assert come.wait(TIMEOUT_S)

    def late() -> None:
        assert under_way.wait(TIMEOUT_S)
        try:
            swarm.train(2, 20, expected_peers=1, each=lambda inner_step, outer: come.set())
        finally:
            come.set()

    calls = [lambda: swarm.train(0, 30, each=each), lambda: swarm.train(1, 30, each=each), late]
    in_parallel(calls, swarm.results, [0, 1, 2])
    results = swarm.results
    assert all(result.error is None and len(result.committed) > 5 for result in results.values())
    assert {name.split(".")[0] for _, name in found} >= {"Progress", "Peers", "FragmentRound"}
    writers: dict[tuple[int, str], dict[str, set[str]]] = defaultdict(dict)
    for (number, name), threads in found.items():
        kind = name.partition(".")[0]
        if name != MAILBOX and kind not in LOCKED:
            for thread in threads:
                writers[number, kind].setdefault(thread, set()).add(name)
    assert not {kind: by for (_, kind), by in writers.items() if len(by) > 1}
