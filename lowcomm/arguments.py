"""Arguments of public calls: what people write is taken, anything else is one line that says what to write.

Each function gives the value as the rest of the package expects it, or raises. `name` is what the error
calls the argument. Numbers of numpy and torch are taken where they are plain numbers: what is sent to other
islands must be Python's own.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from lowcomm.errors import ArgumentError, ConfigError

RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def show(value: object) -> str:
    """A value in an error: short, on one line, with its type where the value alone could be anything's."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    text = " ".join(repr(value).split())
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return text if isinstance(value, str) else f"{text} ({type(value).__name__})"


def whole(
    name: str, value: object, *, least: int | None = None, most: int | None = None, advice: str = ""
) -> int:
    """A whole number within bounds: an int, or what equals one, of numpy, or of torch with one element.

    Raises:
        ArgumentError: it is no number, or is a bool.
        ConfigError: it is not whole, or out of bounds.
    """
    expected = f"{name}: expected a whole number{_bounds(least, most)}, got"
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ArgumentError(f"{expected} {show(value)}{_then(advice)}")
    if isinstance(number, float) and not number.is_integer():  # nor are NaN and infinity
        raise ConfigError(f"{expected} {show(value)}{_then(advice)}")
    found = int(number)
    if (least is not None and found < least) or (most is not None and found > most):
        raise ConfigError(f"{expected} {show(value)}{_then(advice)}")
    return found


def number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    advice: str = "",
) -> float:
    """A finite number within bounds; `above` and `below` are bounds that it must not reach.

    Raises:
        ArgumentError: it is no number, or is a bool.
        ConfigError: it is NaN, infinite or out of bounds.
    """
    bounds = _bounds(least, most)
    bounds += f" above {above:g}" if above is not None else ""
    bounds += f" and below {below:g}" if below is not None else ""
    expected = f"{name}: expected a number{bounds}, got"
    found = plain(value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ArgumentError(f"{expected} {show(value)}{_then(advice)}")
    if not (
        is_finite(found)
        and (least is None or found >= least)
        and (most is None or found <= most)
        and (above is None or found > above)
        and (below is None or found < below)
    ):
        raise ConfigError(f"{expected} {show(value)}{_then(advice)}")
    return float(found)


def flag(name: str, value: object) -> bool:
    """True or False.

    Raises:
        ArgumentError: it is neither.
    """
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}: expected True or False, got {show(value)}")
    return value


def text(name: str, value: object) -> str:
    """A string that is not empty.

    Raises:
        ArgumentError: it is no string.
        ConfigError: it is empty.
    """
    if not isinstance(value, str):
        raise ArgumentError(f"{name}: expected a string, got {show(value)}")
    if not value.strip():
        raise ConfigError(f"{name}: expected text that is not empty, got {value!r}")
    return value


def texts(name: str, value: object, example: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
    """Strings; one that stands alone is taken for a list of one. None of them may be empty, unless they may.

    Raises:
        ArgumentError: it is something else; it names `example`.
        ConfigError: one of them is empty.
    """
    if isinstance(value, str):
        value = (value,)
    expected = f"{name}: expected a list of strings, e.g. [{example!r}], got"
    if not isinstance(value, Iterable) or isinstance(value, bytes | bytearray | dict):
        raise ArgumentError(f"{expected} {show(value)}")
    found = tuple(value)
    for item in found:
        if not isinstance(item, str):
            raise ArgumentError(f"{expected} one with {show(item)}")
        if not (item.strip() or may_be_empty):
            raise ConfigError(f"{expected} one with {item!r}; leave it out")
    return found


def run_id(name: str, value: object) -> str:
    """The name of a run, as recipes allow it.

    Raises:
        ArgumentError: it is no string.
        ConfigError: it is too long, or has other characters.
    """
    expected = f"{name}: expected 1 to 64 characters of A-Z a-z 0-9 . _ -, e.g. 'my-run', got"
    if not isinstance(value, str):
        raise ArgumentError(f"{expected} {show(value)}")
    if not RUN_ID.fullmatch(value):
        raise ConfigError(f"{expected} {show(value)}{_length(value)}")
    return value


def path(name: str, value: object) -> Path | None:
    """A path, as a string or a `Path`; None stays None.

    Raises:
        ArgumentError: it is something else.
        ConfigError: it is empty.
    """
    if value is None:
        return None
    if not isinstance(value, str | PathLike):
        raise ArgumentError(f"{name}: expected a path, e.g. 'runs/x', or None, got {show(value)}")
    found = fspath(value)
    if not isinstance(found, str) or not found.strip() or "\0" in found:
        raise ConfigError(f"{name}: expected a path, e.g. 'runs/x', or None, got {show(value)}")
    return Path(found)


def plain(value: Any) -> object:
    """The Python number that a number of numpy, or a tensor of one element, stands for; else `value`."""
    if isinstance(value, bool | int | float):
        return value
    if callable(getattr(value, "item", None)) and _elements(value) == 1:
        try:
            return value.item()
        except (RuntimeError, NotImplementedError):  # a tensor on the meta device has no value
            return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def is_finite(value: float) -> bool:
    """Whether it is a finite number, as a float too."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False


def split_join(strings: Sequence[str], argument: str = "--join") -> tuple[str | None, list[str]]:
    """The run id and the addresses of shared strings `RUN_ID@multiaddr`.

    Args:
        argument: what they were given as, for errors.

    Returns:
        (run id, or None where no string names one; the multiaddrs).

    Raises:
        ConfigError: a string is no address, or they name different runs.
    """
    run_ids: list[str] = []
    addresses: list[str] = []
    for text in strings:
        run_id, at, address = text.strip().rpartition("@")
        if not address.startswith("/") or (at and not run_id):
            raise ConfigError(
                f"{argument} {text or '(empty)'}: expected RUN_ID@/ip4/.../p2p/..., the shared string that"
                " `lowcomm seed` prints and that stands in the file `address` of a run folder"
            )
        if at:
            run_ids.append(run_id)
        addresses.append(address)
    if len(set(run_ids)) > 1:
        raise ConfigError(
            f"{argument}: expected addresses of one run, got those of {', '.join(sorted(set(run_ids)))}"
        )
    return (run_ids[0] if run_ids else None), addresses


def _elements(value: Any) -> int:
    size = getattr(value, "size", 1)  # numpy's is a number, torch's a method
    return int(value.numel()) if callable(size) else int(size)


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}" if most < 1e6 else f" from {least:g} to {most:,}"
    if least is not None:
        return f" of at least {least:g}"
    return f" of at most {most:g}" if most is not None else ""


def _then(advice: str) -> str:
    return f"; {advice}" if advice else ""


def _length(value: str) -> str:
    return f" of {len(value)} characters" if len(value) > 64 else ""
