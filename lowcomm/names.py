"""Names of islands, for people: what a name may be, and the one that an island has if it is given none."""

from __future__ import annotations

import re
import socket

LONGEST_NAME = 64
NAME_RULE = f"1 to {LONGEST_NAME} characters of A-Z a-z 0-9 . _ -"
_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{LONGEST_NAME}}}")


def is_name(text: str) -> bool:
    """Whether an island may be called so: `NAME_RULE`, which is safe in a terminal, a page and a path."""
    return _NAME.fullmatch(text) is not None


def host_name() -> str:
    """This host's name as an island's, with - for what a name may not have."""
    text = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname()).strip("-")
    return text[:LONGEST_NAME] or "island"
