"""The peer of every bench that starts processes: `python -m lowcomm.bench.peer ROLE SETTINGS`.

ROLE is the module of a bench, whose `take_part` says what the peer does; SETTINGS are JSON. It prints one
JSON line per event, and ends when its standard input does. Everything from `OuterLoop` down is as in
training.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowcomm.clock import SystemClock
from lowcomm.types import Json

if TYPE_CHECKING:
    from lowcomm.outer.loop import OuterLoop
    from lowcomm.recovery.joining import JoinReport

PROGRAM = "lowcomm.bench.peer"
"""For `Children`."""


class Peer:
    """This process.

    Attributes:
        settings: what the bench has said.
        number: which peer this is, from 0 on.
        clock: the one that all processes of a machine share.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings, self.number = settings, int(settings["number"])
        self.clock = SystemClock()
        self._never = threading.Event()

    def tell(self, event: str, **fields: Json) -> None:
        """One line for the bench; `at_s` is when."""
        print(json.dumps({"event": event, "at_s": self.clock.monotonic_s(), **fields}), flush=True)

    def hear(self) -> str:
        """Wait for the next line of the bench; empty when it has gone."""
        return sys.stdin.readline().strip()

    def asked(self) -> threading.Event:
        """Set as soon as the bench says anything, or has gone."""
        event = threading.Event()

        def listen() -> None:
            self.hear()
            event.set()

        threading.Thread(target=listen, daemon=True).start()
        return event

    def wait(self, seconds: float) -> None:
        """A timed wait, in place of computing."""
        self._never.wait(max(0.0, seconds))

    def join(self, outer: OuterLoop) -> JoinReport:
        """Reach the others, and tell the address on the way."""
        outer.connect(on_address=lambda address: self.tell("address", address=address))
        return outer.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Take part in a bench."""
    role, settings = sys.argv[1:] if arguments is None else arguments
    importlib.import_module(f"lowcomm.bench.{role}").take_part(Peer(json.loads(settings)))


if __name__ == "__main__":
    main()
