"""What a bench hands to its command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowcomm.types import Json

Tell = Callable[[str], None]
"""Is told of progress, a line at a time."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The figures, for scripts and for people.

    Attributes:
        log: what `--json` writes, beside the machine.
        headings, rows: the table.
        notes: lines below it.
        errors: what was not as promised; the command ends with exit code 1.
    """

    log: dict[str, Json]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    errors: Sequence[str] = ()
