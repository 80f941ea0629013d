"""The pages of the documentation, cut into what the tests look at."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
LANGUAGES = {"bash", "diff", "python", "text", "toml"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Command:
    """One command of a `bash` block: the page, and its words without variables and redirections."""

    page: Path
    variables: dict[str, str]
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def id(self) -> str:
        """A short name for a test."""
        return f"{self.page.name}: {self.text[:60]}"


def page_id(page: Path) -> str:
    """A page's name in a test's name."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, content) of all fenced blocks."""
    return [(match[1], match[2]) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def commands() -> list[Command]:
    """All commands of all pages."""
    found = []
    for page in PAGES:
        for language, content in blocks(page):
            if language == "bash":
                lines = content.replace("\\\n", " ").splitlines()
                found += [_command(page, line) for line in lines if shlex.split(line, comments=True)]
    return found


def bash_lines(page: Path, heading: str) -> list[str]:
    """The commands of the first `bash` block under a heading, as they are written."""
    part = page.read_text(encoding="utf-8").partition(f"{heading}\n")[2]
    block = next(match[2] for match in _FENCE.finditer(part) if match[1] == "bash")
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def _command(page: Path, line: str) -> Command:
    words = shlex.split(line, comments=True)
    variables = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if ">" in words:
        words = words[: words.index(">")]
    return Command(page, variables, tuple(words))


def test_exists(name: str) -> bool:
    """Whether `tests/x.py::test_y` is there."""
    file, _, function = name.partition("::")
    path = ROOT / file
    return path.is_file() and re.search(rf"^def {re.escape(function)}\(", path.read_text(), re.M) is not None


test_exists.__test__ = False  # type: ignore[attr-defined]  # not a test itself, whatever pytest thinks
