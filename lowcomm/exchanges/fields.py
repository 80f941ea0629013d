"""Read the body of a message field by field, believing nothing.

Every getter names the field, says what was expected and what came, and bounds lengths and ranges;
a message that doesn't fit raises `ProtocolError` and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lowcomm.errors import ProtocolError
from lowcomm.types import Digest, Json, PeerId

MAX_COUNT = 1 << 62
MAX_NAME = 128
DIGEST_LENGTH = 64


class Fields:
    """Checked access to a decoded message body."""

    def __init__(self, kind: str, body: object) -> None:
        if not isinstance(body, Mapping):
            raise ProtocolError(f"{kind}: expected a mapping, got {type(body).__name__}")
        self.kind = kind
        self._body: Mapping[str, Json] = body

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._body.get(name) is not None

    def integer(self, name: str, low: int = 0, high: int = MAX_COUNT) -> int:
        """A whole number in [low, high]."""
        return checked_int(f"{self.kind}.{name}", self._body.get(name), low, high)

    def number(self, name: str) -> float:
        """A finite number."""
        return checked_float(f"{self.kind}.{name}", self._body.get(name))

    def text(self, name: str, longest: int = MAX_NAME) -> str:
        """A string of at most `longest` characters."""
        return checked_text(f"{self.kind}.{name}", self._body.get(name), longest)

    def peer(self, name: str) -> PeerId:
        """A peer id."""
        return PeerId(self.text(name))

    def digest(self, name: str) -> Digest:
        """A 64-digit hash."""
        return checked_digest(f"{self.kind}.{name}", self._body.get(name))

    def items(self, name: str, most: int) -> list[Json]:
        """A list of at most `most` items."""
        value = self._body.get(name)
        if not isinstance(value, list) or len(value) > most:
            raise ProtocolError(f"{self.kind}.{name}: expected a list of at most {most} items")
        return value

    def integers(self, name: str, most: int, high: int = MAX_COUNT) -> tuple[int, ...]:
        """A list of whole numbers in [0, high]."""
        where = f"{self.kind}.{name}"
        return tuple(checked_int(where, value, 0, high) for value in self.items(name, most))

    def texts(self, name: str, most: int, longest: int = MAX_NAME) -> tuple[str, ...]:
        """A list of strings."""
        where = f"{self.kind}.{name}"
        return tuple(checked_text(where, value, longest) for value in self.items(name, most))

    def mapping(self, name: str) -> Mapping[str, Json]:
        """A nested mapping, unchecked inside."""
        value = self._body.get(name)
        if not isinstance(value, dict):
            raise ProtocolError(f"{self.kind}.{name}: expected a mapping, got {type(value).__name__}")
        return value

    def inner(self, name: str) -> Fields:
        """A nested mapping, to be read field by field."""
        return Fields(f"{self.kind}.{name}", self._body.get(name))


def checked_int(where: str, value: object, low: int, high: int) -> int:
    """`value` if it is a whole number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ProtocolError(f"{where}: expected a whole number in {low}..{high}, got {value!r:.80}")
    return value


def checked_float(where: str, value: object) -> float:
    """`value` if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ProtocolError(f"{where}: expected a finite number, got {value!r:.80}")
    return float(value)


def checked_text(where: str, value: object, longest: int) -> str:
    """`value` if it is a string of at most `longest` characters."""
    if not isinstance(value, str) or len(value) > longest:
        raise ProtocolError(f"{where}: expected text of at most {longest} characters, got {value!r:.80}")
    return value


def checked_digest(where: str, value: object) -> Digest:
    """`value` if it looks like a hash."""
    text = checked_text(where, value, DIGEST_LENGTH)
    if len(text) != DIGEST_LENGTH or not all(c in "0123456789abcdef" for c in text):
        raise ProtocolError(f"{where}: expected {DIGEST_LENGTH} hex digits, got {text!r}")
    return Digest(text)
