"""Tables in Markdown, and what stands above them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Part:
    """One published table.

    Attributes:
        heading: its place on the page, from which its anchor follows.
        says: a sentence or two: what it shows, or what follows from it.
        repeat: what was measured, and the command that does it again.
        body: the table.
    """

    heading: str
    says: str
    repeat: str
    body: str

    def text(self, logs: Iterable[Path]) -> str:
        """As it stands on the page beside the logs that it is recomputed from."""
        links = ", ".join(f"[{log.name}]({log.name})" for log in logs)
        above = f"### {self.heading}\n\n{self.says} {self.repeat}; {links}"
        return f"{above}:\n\n{self.body}" if self.body else f"{above}."


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_ ")
    return kept.replace(" ", "-")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are taken as they are."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
