"""The schema as flat tables: every setting and every section by its dotted path."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from lowcomm.config.schema import Config

Kind = Literal["bool", "int", "float", "text", "texts", "table"]
Value = bool | int | float | str | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of the schema.

    Attributes:
        path: dotted, e.g. `shared.schedule.inner_steps`.
        kind: what its value is.
        default: of that kind.
        doc: one line, with the unit where there is one.
        low, high: inclusive bounds of numbers; None where there is none.
        choices: the words that are allowed, of a number those in its place; empty where all are.
        run_wide: must be equal on all islands of a run; the rest is one island's own. The only place that
            says so.
    """

    path: str
    kind: Kind
    default: Value
    doc: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    run_wide: bool

    @property
    def section(self) -> str:
        """The path of the section that it stands in; empty at the top."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]


@functools.cache
def settings() -> dict[str, Setting]:
    """All settings by dotted path, those of a section before its subsections."""
    return {setting.path: setting for setting in _walk(Config, "")}


@functools.cache
def sections() -> dict[str, type]:
    """All sections' dataclasses by dotted path, in the order of the schema; the top's path is empty."""
    return dict(_sections(Config, ""))


def join(section: str, name: str) -> str:
    """The dotted path of `name` inside `section`."""
    return f"{section}.{name}" if section else name


def _sections(cls: type, path: str) -> Iterator[tuple[str, type]]:
    yield path, cls
    for name, annotation in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            yield from _sections(typing.cast(type, annotation), join(path, name))


def _walk(cls: type, path: str) -> Iterator[Setting]:
    hints = typing.get_type_hints(cls)
    nested = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            nested.append(field.name)
        else:
            yield _setting(field, hints[field.name], join(path, field.name))
    for name in nested:
        yield from _walk(hints[name], join(path, name))


def _setting(field: dataclasses.Field[Any], annotation: Any, path: str) -> Setting:
    kinds: dict[Any, Kind] = {
        bool: "bool",
        int: "int",
        float: "float",
        str: "text",
        tuple[str, ...]: "texts",
    }
    number: Kind | None = None
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # a number, or a word in its place
        plain, annotation = typing.get_args(annotation)
        number = kinds[plain]
    words = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    choices = words or field.metadata["choices"] or ()
    return Setting(
        path=path,
        kind=number or ("table" if field.metadata["table"] else "text" if choices else kinds[annotation]),
        default=typing.cast(Value, field.default),
        doc=field.metadata["doc"],
        low=field.metadata["low"],
        high=field.metadata["high"],
        choices=choices,
        run_wide=path.startswith("shared.") or field.metadata["run_wide"],
    )
