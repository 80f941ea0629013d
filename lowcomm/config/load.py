"""Recipes: a TOML file, a profile and `--set a.b=value` become a checked `Config`, and back.

What is wrong is said in one line with where it was written, the dotted path, what was expected and
what came, e.g. `recipes/x.toml: shared.schedule.inner_stps: unknown key; did you mean
shared.schedule.inner_steps?`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowcomm import arguments
from lowcomm.config.checks import check
from lowcomm.config.fields import Setting, Value, sections, settings
from lowcomm.config.profiles import check_local, find_profile
from lowcomm.config.schema import Config
from lowcomm.config.shared import differing_keys, get, run_settings, shared_digest, shared_settings
from lowcomm.config.values import closest, convert, fail, flatten, unknown
from lowcomm.errors import ConfigError
from lowcomm.types import Json

__all__ = [
    "check",
    "differing_keys",
    "from_dict",
    "load_config",
    "run_settings",
    "shared_digest",
    "shared_settings",
    "to_dict",
    "to_toml",
]


def load_config(
    path: Path | str | None, overrides: Sequence[str] | str = (), *, profile: Path | str | None = None
) -> Config:
    """The configuration of a recipe, with some values replaced.

    Args:
        path: the recipe; None for the defaults alone.
        overrides: as given to `--set`, each `a.b=value`, or a single one; the value is TOML, or else bare
            text. Later ones win, and all win over the profile.
        profile: what this island has of its own, a name or a file; see `lowcomm.config.profiles`.

    Raises:
        ConfigError: a file can't be read, a setting is unknown or wrong, or the profile sets what all
            islands share.
    """
    path = arguments.path("load_config: path", path)
    example = "train.steps=500"
    overrides = arguments.texts("load_config: overrides", overrides, example, may_be_empty=True)
    profile = None if profile is None else str(arguments.path("load_config: profile", profile))
    source = "" if path is None else str(path)
    flat = {} if path is None else flatten(_read(path, "a recipe"), source)
    if profile is not None:
        file = find_profile(profile, path)
        local = flatten(_read(file, "a profile"), str(file))
        check_local(local, str(file))
        flat.update(local)
        source = f"{source} with {file}" if source else str(file)
    for override in overrides:
        flat.update(_override(override))
    own = flat.get("shared.task.kind", "gpt") != "gpt"
    if own and path is not None and not flat.get("train.task_folder"):
        flat["train.task_folder"] = str(path.resolve().parent)  # for whoever reads the run folder
    config = _assemble(flat)
    check(config, source)
    return config


def from_dict(values: Mapping[str, Any], source: str = "") -> Config:
    """The configuration of a nested dict as `to_dict` gives it; what is left out has its default.

    Args:
        values: nested by section.
        source: named in errors.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    config = _assemble(flatten(values, source))
    check(config, source)
    return config


def to_dict(config: Config) -> dict[str, Json]:
    """All settings, nested by section, of JSON's types only."""
    tree: dict[str, Any] = {}
    for path, setting in settings().items():
        table = tree
        for name in setting.section.split(".") if setting.section else ():
            table = table.setdefault(name, {})
        table[setting.name] = get(config, path)
    return tree


def to_toml(config: Config) -> str:
    """All settings as TOML, each below its documentation; `load_config` reads back an equal Config."""
    lines: list[str] = []
    section = ""
    for path, setting in settings().items():
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"]
        lines += [f"# {setting.doc}", f"{setting.name} = {_toml(get(config, path))}"]
    return "\n".join(lines) + "\n"


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        beside = path.parent.glob("*.toml") if path.parent.is_dir() else ()
        guess = closest(path.name, sorted(other.name for other in beside))
        hint = f"; did you mean {path.with_name(guess)}?" if guess else ""
        raise ConfigError(f"{path}: expected {what}, got no such file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{path}: expected {what}, got: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text, got other bytes at offset {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected TOML: {' '.join(str(error).split())}") from error


def _override(text: str) -> dict[str, Value]:
    key, equals, raw = text.partition("=")
    path, raw = key.strip(), raw.strip()
    if not equals or not path:
        raise ConfigError(f"--set {text}: expected KEY=VALUE, e.g. --set shared.schedule.inner_steps=50")
    if path in settings():
        return {path: convert(_parse(raw, settings()[path]), settings()[path], "--set")}
    if path in sections():
        value = _parse(raw, None)
        for name in reversed(path.split(".")):
            value = {name: value}
        assert isinstance(value, dict)
        return flatten(value, "--set")
    fail("--set", path, unknown(path))


def _parse(raw: str, setting: Setting | None) -> Any:
    try:
        parsed = tomllib.loads(f"value = {raw}")
    except (ValueError, RecursionError):
        return raw
    if len(parsed) > 1:
        return raw  # a line break in it made further keys
    value = parsed["value"]
    # a name such as 2024 or true is a number or a boolean to TOML
    is_name = setting is not None and setting.kind == "text" and not isinstance(value, str)
    return raw if is_name else value


def _assemble(flat: Mapping[str, Value]) -> Config:
    built: dict[str, Any] = {}
    for section, cls in reversed(sections().items()):  # subsections before what holds them
        values: dict[str, Any] = {
            setting.name: flat.get(path, setting.default)
            for path, setting in settings().items()
            if setting.section == section
        }
        for path, part in built.items():
            parent, _, name = path.rpartition(".")
            if parent == section:
                values[name] = part
        built[section] = cls(**values)
    config = built[""]
    assert isinstance(config, Config)
    return config


def _toml(value: Json) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but TOML wants DEL escaped, too, and no surrogate pairs
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
