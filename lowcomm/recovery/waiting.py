"""What an island says while it waits for others: for how many, where they come to, and who has come."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping

from lowcomm.errors import ExchangeError
from lowcomm.recovery.member import Member
from lowcomm.types import PeerId

logger = logging.getLogger(__name__)

REPEATED_S = 30.0
"""As long as nobody comes it is said again so often, as a warning."""


def tell(text: str, level: int = logging.INFO) -> None:
    """Log it; on the standard error where a program has no logging set up, and would wait in silence."""
    if logger.hasHandlers():
        logger.log(level, "%s", text)
    else:
        print(text, file=sys.stderr, flush=True)


def once(tells: Callable[[str], None]) -> Callable[[str], None]:
    """Tells the first time only."""
    left = [tells]
    return lambda text: left.pop()(text) if left else None


def place_to_join(member: Member) -> str:
    """What others need to join, as a clause; empty where an address means nothing."""
    try:
        address = member.directory.join_string
    except ExchangeError:  # it listens nowhere
        return ""
    return f"; others join with {address}" if address else ""


class Waiting:
    """Tells of a wait for islands.

    Args:
        expected: islands, this one included.
    """

    def __init__(self, member: Member, expected: int) -> None:
        self._member, self._expected = member, expected
        self._here: dict[PeerId, str] = {}
        self._next_s = float("-inf")

    def look(self, now_s: float) -> None:
        """There are too few: say so if somebody has come or gone, or a while has passed; in loop time."""
        here, changed = self._changed()
        if not changed and now_s < self._next_s:
            return
        lasts = not changed and self._next_s > float("-inf")
        level = logging.WARNING if lasts else logging.INFO  # most programs log from WARNING on
        self._next_s = now_s + REPEATED_S
        missing = self._expected - here
        islands = "island" if missing == 1 else "islands"
        tell(
            f"waiting for {missing} more {islands} of run {self._member.signer.run_id!r} ({here} of "
            f"{self._expected} here{changed}){place_to_join(self._member)}",
            level,
        )

    def over(self) -> None:
        """There are enough; say so if there was a wait."""
        if self._next_s > float("-inf"):
            here, changed = self._changed()
            run_id = self._member.signer.run_id
            tell(f"{here} of {self._expected} islands of run {run_id!r} are here{changed}")

    def _changed(self) -> tuple[int, str]:
        """How many are here, and who has come and gone since the last look, in words."""
        here = {peer.id: peer.state.name for peer in self._member.peers.live()}
        came = "".join(f", {_called(peer, here)} came" for peer in here if peer not in self._here)
        gone = "".join(f", {_called(peer, self._here)} went" for peer in self._here if peer not in here)
        self._here = here
        return len(here) + 1, came + gone


def _called(peer: PeerId, names: Mapping[PeerId, str]) -> str:
    """A name with the end of the id, as two islands may be on one host."""
    end = f"...{peer[-6:]}"
    return f"{names[peer]} ({end})" if names[peer] else end
