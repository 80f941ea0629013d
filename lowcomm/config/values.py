"""One value or one table of a recipe, checked against the schema."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from lowcomm.config.fields import Setting, Value, join, sections, settings
from lowcomm.errors import ConfigError

LARGEST_INTEGER = 2**63 - 1
_MOST_SHOWN = 80
_SWITCH = {"True": "on", "true": "on", "False": "off", "false": "off"}


def fail(source: str, path: str, message: str) -> NoReturn:
    """Raise a ConfigError of one line: where it was written, the dotted path, and what is wrong."""
    raise ConfigError(": ".join(part for part in (source, path, message) if part))


def flatten(tree: Mapping[str, Any], source: str, section: str = "") -> dict[str, Value]:
    """All values of a table as dotted path -> checked value.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type, range or choice.
    """
    flat: dict[str, Value] = {}
    for name, value in tree.items():
        path = join(section, name if re.fullmatch(r"[\w-]+", name) else json.dumps(name))
        if path in settings():
            flat[path] = convert(value, settings()[path], source)
        elif path in sections():
            if not isinstance(value, Mapping):
                fail(source, path, f"expected a table of settings, got {show(value)}")
            flat.update(flatten(value, source, path))
        else:
            fail(source, path, unknown(path))
    return flat


def convert(value: object, setting: Setting, source: str) -> Value:
    """The value as the schema has it: integers become floats, lists become tuples.

    Raises:
        ConfigError: the wrong type, range or choice.
    """
    match setting.kind:
        case "bool" if isinstance(value, bool):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > LARGEST_INTEGER:
                fail(source, setting.path, f"expected an integer of 64 bits, got {show(value)}")
            if within(value, setting):
                return value
        case "int" | "float" if isinstance(value, str) and value in setting.choices:
            return value
        case "float" if isinstance(value, (int, float)) and not isinstance(value, bool):
            if within(value, setting) and abs(value) < math.inf:
                return float(value) + 0.0  # -0.0 becomes 0.0: equal settings have equal digests
        case "text" if {"on", "off"} <= set(setting.choices) and str(value) in _SWITCH:
            return _SWITCH[str(value)]
        case "text" if isinstance(value, str) and is_text(value):
            if not setting.choices or value in setting.choices:
                return value
            guess = closest(value, setting.choices)
            hint = f"; did you mean {show(guess)}?" if guess else ""
            fail(source, setting.path, f"expected {expected(setting)}, got {show(value)}{hint}")
        case "table" if isinstance(value, Mapping):
            return table_text(value, setting, source)
        case "table" if isinstance(value, str) and is_text(value):
            return table_text(read_table(value), setting, source) if is_table(value) else value
        case "texts" if isinstance(value, (list, tuple)):
            if all(isinstance(item, str) and is_text(item) for item in value):
                return tuple(value)
        case "texts" if isinstance(value, str):
            fail(
                source,
                setting.path,
                f"expected {expected(setting)}, got {show(value)}; write [{show(value)}]",
            )
    fail(source, setting.path, f"expected {expected(setting)}, got {show(value)}")


def expected(setting: Setting) -> str:
    """What a setting wants, in words: `an integer from 1 to 1000`."""
    if setting.choices and setting.kind == "text":
        return "one of " + ", ".join(show(choice) for choice in setting.choices)
    words = {
        "bool": "true or false",
        "int": "an integer",
        "float": "a number",
        "text": "text in quotes",
        "texts": "a list of texts",
        "table": "text in quotes, or a table of plain values",
    }[setting.kind]
    return " or ".join([f"{words} {bounds(setting)}".rstrip(), *map(show, setting.choices)])


def bounds(setting: Setting) -> str:
    """The range of a number in words; empty where there is none."""
    low, high = (_number(bound, setting) for bound in (setting.low, setting.high))
    if low and high:
        return f"from {low} to {high}"
    return f"of at least {low}" if low else f"of at most {high}" if high else ""


def within(value: float, setting: Setting) -> bool:
    """Whether a number is within the setting's bounds, which are inclusive; NaN never is."""
    low = -math.inf if setting.low is None else setting.low
    high = math.inf if setting.high is None else setting.high
    return low <= value <= high


def is_text(value: str) -> bool:
    """Whether UTF-8 can carry it; the bytes of a broken command line come as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_table(value: str) -> bool:
    """Whether the text of a setting stands for a table."""
    return value.startswith("{")


def read_table(value: str) -> dict[str, Any]:
    """The table that `table_text` has made text of.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = json.loads(value)
    except ValueError as error:
        raise ConfigError(f"expected a table as JSON, got {show(value)}: {error}") from error
    assert isinstance(found, dict)
    return found


def table_text(table: Mapping[str, Any], setting: Setting, source: str) -> str:
    """A table as canonical JSON: sorted keys, no blanks.

    Raises:
        ConfigError: it holds a date, or a number that is not finite.
    """
    try:
        return json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        fail(source, setting.path, f"expected {expected(setting)}: {error}")


def unknown(path: str) -> str:
    """`unknown key`, with the nearest key that exists, or else the keys that stand beside it."""
    known = [*settings(), *sections()]
    section, _, name = path.rpartition(".")
    beside = [other for other in known if other and other.rpartition(".")[0] == section]
    namesakes = [other for other in known if other.rpartition(".")[2] == name]
    guess = (
        closest(path, [other for other in beside if closest(name, [other.rpartition(".")[2]])])
        or (namesakes[0] if len(namesakes) == 1 else closest(path, namesakes, cutoff=0.0))
        or closest(path, [other for other in known if other != section], cutoff=0.85)
    )
    if guess:
        return f"unknown key; did you mean {guess}?"
    if section in sections():
        names = ", ".join(other.rpartition(".")[2] for other in beside)
        return f"unknown key; {f'[{section}]' if section else 'the top'} has {names}"
    return "unknown key; docs/configuration.md lists all"


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """The nearest of `words`; empty if none is near."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)), "")


def show(value: object) -> str:
    """A value in one short line, as TOML would have it."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**_MOST_SHOWN:
        return "an integer of more than 80 digits"  # Python refuses to print the longest ones
    if isinstance(value, (list, tuple)):
        text = "[" + ", ".join(show(item) for item in value[:_MOST_SHOWN]) + "]"
    elif isinstance(value, (str, bool)) or value is None:
        text = json.dumps(value, ensure_ascii=not (isinstance(value, str) and value.isprintable()))
    else:
        text = " ".join(str(value).split())
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def _number(bound: float | None, setting: Setting) -> str:
    if bound is None:
        return ""
    return str(int(bound)) if setting.kind == "int" or bound == int(bound) else str(bound)
