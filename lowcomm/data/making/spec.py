"""What a corpus is to be made of: a TOML file, checked by name and value."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lowcomm import arguments
from lowcomm.data.corpus.manifest import BYTES
from lowcomm.data.making.formats import CHOICES, HUB
from lowcomm.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """How text becomes tokens.

    Attributes:
        kind: `bytes`, or `tokenizer.json`; the one that `path` says, where it is left out.
        path: a tokenizer.json, or a Hugging Face folder with one.
        separator: the token that ends a document; found in the folder where it is left out.
    """

    kind: str = ""
    path: str = ""
    separator: str = ""

    def check(self) -> None:
        """Refuse what contradicts itself."""
        expected = "tokenizer.json" if self.path else BYTES
        if self.kind not in ("", expected):
            raise ConfigError(
                f'tokenizer.kind: expected "bytes", or "tokenizer.json" with tokenizer.path, got '
                f"{self.kind!r} {'with' if self.path else 'without'} a path"
            )
        if self.separator and not self.path:
            raise ConfigError("tokenizer.separator: expected tokenizer.path with it; bytes end with 0")


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Where documents come from.

    Attributes:
        url: `stdlib`, a folder, file, glob or fsspec URL; with `format = "hub"` a data set's name.
        name: how people call it; the last part of the URL where it is left out.
        format: of all of its files; by their suffixes where it is left out.
        text_key: key or column of the text.
        weight: how often it is drawn in an epoch.
        licence, origin: for the manifest, in SPDX's words and the user's.
        config, split: of a hub's data set.
    """

    url: str
    name: str = ""
    format: str = ""
    text_key: str = "text"
    weight: float = 1.0
    licence: str = ""
    origin: str = ""
    config: str = ""
    split: str = "train"

    def check(self) -> None:
        """Refuse what can't be."""
        if not self.url:
            raise ConfigError("url: expected a folder, file, glob or URL, got nothing")
        if self.format and self.format not in CHOICES:
            raise ConfigError(f"format: expected one of {', '.join(CHOICES)}, got {self.format!r}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"weight: expected a number above 0, got {self.weight:g}")
        if (self.config or self.split != "train") and self.format != HUB:
            raise ConfigError(f'config and split: expected format = "{HUB}" with them, got {self.format!r}')


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """A step of cleaning, and its settings."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A whole corpus.

    Attributes:
        holdout_fraction: of documents that nobody trains on.
        chunk_tokens: the most that a chunk has; it is in memory when it is written.
    """

    tokenizer: TokenizerSpec = TokenizerSpec()
    sources: tuple[SourceSpec, ...]
    steps: tuple[StepSpec, ...] = ()
    holdout_fraction: float = 0.005
    chunk_tokens: int = 1 << 24

    def check(self) -> None:
        """Refuse what can't be."""
        arguments.number("holdout_fraction", self.holdout_fraction, least=0, below=1)
        arguments.whole("chunk_tokens", self.chunk_tokens, least=16, most=1 << 26)
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"source: expected names that differ, got {twice[0]!r} twice; set name")


def read_spec(path: Path) -> Spec:
    """A specification from a TOML file.

    Raises:
        ConfigError: it can't be read, or something in it is unknown or wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: expected the specification of a corpus: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML: {' '.join(str(error).split())}") from error
    try:
        return spec_of(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def spec_of(values: Mapping[str, Any]) -> Spec:
    """A specification from nested values as TOML has them.

    Raises:
        ConfigError: something in it is unknown or wrong.
    """
    known = ("tokenizer", "source", "step", "holdout_fraction", "chunk_tokens")
    for key in values:
        if key not in known:
            raise ConfigError(f"{key}: unknown key{_meant(key, known)}")
    sources = [
        _made(SourceSpec, table, f"source {number}")
        for number, table in enumerate(_tables(values, "source"), start=1)
    ]
    if not sources:
        raise ConfigError('source: expected at least one, e.g. [[source]] with url = "texts/*.jsonl"')
    rest = {key: values[key] for key in ("holdout_fraction", "chunk_tokens") if key in values}
    spec = _made(
        Spec,
        {
            "tokenizer": _made(TokenizerSpec, values.get("tokenizer", {}), "tokenizer"),
            "sources": tuple(
                dataclasses.replace(source, name=source.name or PurePosixPath(source.url).stem or "root")
                for source in sources
            ),
            "steps": tuple(
                _step(table, f"step {number}")
                for number, table in enumerate(_tables(values, "step"), start=1)
            ),
            **rest,
        },
        "",
    )
    return spec


def _tables(values: Mapping[str, Any], key: str) -> list[Any]:
    found = values.get(key, [])
    if not isinstance(found, list):
        raise ConfigError(f"{key}: expected [[{key}]] with two brackets, got {arguments.show(found)}")
    return found


def _step(table: Any, where: str) -> StepSpec:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ConfigError(f"{where}: expected a table with a name, got {arguments.show(table)}")
    return StepSpec(name=table["name"], settings={k: v for k, v in table.items() if k != "name"})


def _made(cls: type[T], table: Any, where: str) -> T:
    """A dataclass of a table; unknown keys, missing ones and other types are named."""
    prefix = f"{where}: " if where else ""
    if not isinstance(table, dict):
        raise ConfigError(f"{prefix}expected a table, got {arguments.show(table)}")
    fields = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown key{_meant(key, fields)}")
        kind = fields[key].type
        if kind == "str" and not isinstance(value, str):
            raise ConfigError(f"{prefix}{key}: expected text in quotes, got {arguments.show(value)}")
        if kind == "float":
            value = arguments.number(f"{prefix}{key}", value)
        if kind == "int":
            value = arguments.whole(f"{prefix}{key}", value)
        values[key] = value
    for name, each in fields.items():
        if name not in values and each.default is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: expected it to be set, got nothing")
    made = cls(**values)
    try:
        made.check()  # type: ignore[attr-defined]
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    return made


def _meant(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(known)}"
