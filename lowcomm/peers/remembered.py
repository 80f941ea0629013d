"""The other islands of a run, kept in the run folder for the day on which this one starts again.

An island without initial peers founds a run, and where the run lives on elsewhere it would be a second one.
So those that it knew are dialled like initial peers, and an island that goes on without them names them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from pathlib import Path

from lowcomm.exchanges.swarm.addresses import shared_string
from lowcomm.in_order import InOrder
from lowcomm.storage.files import write_atomically
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

FILE = "others"
MOST_KEPT = 64
MOST_SHOWN = 3


class RememberedPeers:
    """Shared strings of the islands that this one has trained with, and that have not said goodbye.

    Args:
        folder: the run folder; None = nothing is kept.
        pool: writes.
    """

    def __init__(self, folder: Path | None, run_id: str, pool: Executor) -> None:
        self._writing = InOrder(pool)
        self._path = folder / FILE if folder else None
        self._run_id = run_id
        self._before = self._read()
        self._kept = dict(self._before)

    @property
    def before(self) -> Sequence[str]:
        """The shared strings of those that an earlier process of this island knew."""
        return tuple(self._before.values())

    def note(self, live: Mapping[PeerId, Sequence[str]], departed: Collection[PeerId]) -> None:
        """Keep who is here, and whoever has gone without a word; written when that changes.

        Args:
            live: their addresses.
            departed: who has left in order.
        """
        if self._path is None:
            return
        found = {peer: text for peer, told in live.items() if (text := shared_string(self._run_id, told))}
        stay = {peer: text for peer, text in self._kept.items() if peer not in departed and peer not in live}
        kept = dict([*stay.items(), *found.items()][-MOST_KEPT:])
        if kept == self._kept:
            return
        self._kept = kept
        self._writing.submit(partial(self._write, self._path, tuple(kept.values())))

    def written(self) -> Future[None]:
        """A future that is done when all that was noted so far is on the disk, or can't be."""
        return self._writing.done()

    def _write(self, path: Path, texts: Sequence[str]) -> None:
        try:
            write_atomically(path, "".join(f"{text}\n" for text in texts).encode())
        except OSError as error:
            logger.warning("%s can't be written: %s; the run goes on", path, error.strerror or error)

    def warn_alone(self) -> None:
        """Say what it means that this island goes on with none of those it knew."""
        if self._before:
            logger.warning(
                "this island starts alone, but when it stopped the run had others: %s. If one of them still "
                "trains, mend the way there, or stop this island and start it again with --join and a string "
                "that can be reached (JOIN=... for launch/island.sh), else there are two histories of one "
                "run until they meet",
                self.shown(),
            )

    def way_out(self) -> str:
        """What is left to do where no initial peer answers, and none of these; empty if none is known."""
        if not self._before:
            return ""
        return (
            f"; nor did one that this island knew: {self.shown()}. Start with --join and the string of an "
            "island that trains; if none does, without --join and with --found, to go on alone"
        )

    def shown(self) -> str:
        """The first of `before`, and how many more there are."""
        more = len(self._before) - MOST_SHOWN
        return ", ".join(self.before[:MOST_SHOWN]) + (
            f" (and {more} more, in {self._path})" if more > 0 else ""
        )

    def _read(self) -> dict[PeerId, str]:
        if self._path is None:
            return {}
        try:
            lines = self._path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError):
            return {}  # none yet; or damaged, and then it is no reason not to start
        return {PeerId(line.rpartition("/")[2]): line for line in lines[:MOST_KEPT]}
