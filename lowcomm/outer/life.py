"""When each call of an outer loop may be made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from lowcomm.errors import UsageError

Phase = Literal["new", "starting", "connected", "joined", "evaluating", "closed"]

_INSTEAD: dict[Phase, str] = {
    "new": "got none; write `with OuterLoop(...) as outer:`, or call outer.start() first",
    "starting": "that has failed; close() it, and make a new OuterLoop with a new exchange",
    "connected": "got connect() alone; call join() next",
    "joined": "it is running already; one OuterLoop joins once",
    "evaluating": "the model holds the anchor; leave `with outer.anchor_weights():` first",
    "closed": "it was closed; make a new OuterLoop with a new exchange",
}
_EXPECTED: dict[Phase, str] = {
    "new": "a loop that was not started before",
    "connected": "connect() before it",
    "joined": "start() before it",
}


class Life:
    """Where a loop stands: new, starting, connected, joined (now and then evaluating), closed."""

    def __init__(self) -> None:
        self.phase: Phase = "new"

    def require(self, call: str, phase: Phase) -> None:
        """Refuse a call at the wrong time, before it does anything.

        Raises:
            UsageError: it says what has to come first.
        """
        if self.phase != phase:
            own = phase == "joined" and self.phase == "evaluating"
            expected = "the island's own parameters in the model" if own else _EXPECTED[phase]
            raise UsageError(f"outer.{call}: expected {expected}, {_INSTEAD[self.phase]}")

    @contextmanager
    def moves(self, call: str, before: Phase, after: Phase) -> Iterator[None]:
        """From one phase to another; if it fails in between the loop can only be closed."""
        self.require(call, before)
        self.phase = "starting"
        yield
        self.phase = after

    @contextmanager
    def evaluates(self) -> Iterator[None]:
        """Inside it the model holds other parameters than the island's own: no step may be taken."""
        self.require("anchor_weights", "joined")
        self.phase = "evaluating"
        try:
            yield
        finally:
            if self.phase == "evaluating":
                self.phase = "joined"
