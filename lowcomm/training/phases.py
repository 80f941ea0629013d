"""What an island does before it trains, said on the console and to the `lowcomm launch` above it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PHASE_FILE = "phase"
VARIABLE = "LOWCOMM_PHASE_FILE"
"""Names the file that `lowcomm launch` reads the phase of an island from."""
JOINING = "joining"
"""With this word begins the first phase in which an island is on the network."""


def read_phase(folder: Path) -> str:
    """The newest phase of the island in this run folder; empty as long as it has told none."""
    try:
        return (folder / PHASE_FILE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


class Phases:
    """Says each phase as it begins, on the island's first rank only.

    Args:
        console: as a line on the standard error.
        file: where the newest one stands; by default the one that the environment names, if any.

    Attributes:
        now: the phase that has begun last.
    """

    def __init__(self, *, console: bool, file: Path | None = None) -> None:
        lead = os.environ.get("RANK", "0") == "0"
        named = os.environ.get(VARIABLE, "") if lead else ""
        self._console = console and lead
        self._file = file or (Path(named) if named else None)
        self.now = "starting"

    def begin(self, words: str) -> None:
        """Say what begins, such as "reading the text"."""
        self.now = words
        if self._file is not None:
            try:
                self._file.write_text(words + "\n", encoding="utf-8")
            except OSError:
                self._file = None  # a run without a place for it is as good
        if self._console:
            print(f"lowcomm: {words}", file=sys.stderr, flush=True)
