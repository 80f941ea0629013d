"""Writes the configuration reference: `python -m lowcomm.config.reference > docs/configuration.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from lowcomm import codecs, exchanges, tasks
from lowcomm.algorithms import aggregation, outer_optimizers
from lowcomm.config.fields import Setting, sections, settings
from lowcomm.config.values import bounds, show
from lowcomm.data import formats
from lowcomm.methods import Methods

METHODS: dict[str, Methods[Any]] = {
    "shared.task": tasks.METHODS,
    "shared.outer": outer_optimizers.METHODS,
    "shared.codec": codecs.METHODS,
    "shared.aggregation": aggregation.METHODS,
    "data": formats.METHODS,
    "exchange": exchanges.METHODS,
}
"""Of the sections in which a setting chooses one, or a file's suffix does."""
_INTRODUCTION = """\
# Configuration

<!-- Generated: python -m lowcomm.config.reference > docs/configuration.md -->

A recipe is a TOML file. What it leaves out has the default below, and `--set key=value` replaces a
value for one run, e.g. `--set shared.schedule.inner_steps=100` or
`--set 'exchange.initial_peers=["/ip4/..."]'`. The value is TOML; quotes around a single word may be
left out. `--dry-run` prints the resolved configuration, which is also written to `config.toml` in
the run folder.

Everything below `[shared]`, {run_wide}, must be equal on all islands of a
run: it is compared when a peer joins, and a peer that differs is refused with the names of the keys; a
profile may not set it. All the rest is local to one island. Bounds are inclusive. Names end in the unit
where there is one.
"""


def reference() -> str:
    """The reference of all settings as Markdown, a table for each section."""
    elsewhere = [s.path for s in settings().values() if s.run_wide and not s.path.startswith("shared.")]
    named = " and ".join(f"`{path}`" for path in elsewhere)
    return "\n".join([_INTRODUCTION.format(run_wide=f"and {named}"), *_sections()])


def _sections() -> Iterator[str]:
    for section, cls in sections().items():
        inside = [setting for setting in settings().values() if setting.section == section]
        yield f"## `[{section}]`" if section else "## Top of the file"
        yield ""
        yield " ".join((inspect.getdoc(cls) or "").split())
        yield ""
        if inside:
            yield "| key | value | default | meaning |"
            yield "|---|---|---|---|"
            yield from (_row(setting) for setting in inside)
            yield ""
        if section in METHODS:
            yield from _methods(section, METHODS[section])


def _methods(section: str, methods: Methods[Any]) -> Iterator[str]:
    """What can be chosen, as the files of the methods have it, with the settings that each has."""
    chosen = f"`{methods.key}`" if f"{section}.{methods.key}" in settings() else methods.key
    yield f"| {chosen} | what |"
    yield "|---|---|"
    for name in methods.names:
        spec = methods.spec(name)
        known = [each for each in spec.parameters if f"{section}.{each}" in settings()]
        listed = f" ({', '.join(f'`{each}`' for each in known)})" if known and methods.key == "name" else ""
        yield f"| `{name}` | {spec.about}{listed} |"
    yield ""


def _row(setting: Setting) -> str:
    kind = {
        "bool": "true, false",
        "int": "integer",
        "float": "number",
        "text": "text",
        "texts": "list of texts",
        "table": "text or table",
    }
    value = ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.kind != "text" or not value:
        number = f"{kind[setting.kind]} {bounds(setting)}".rstrip()
        value = f"{number}, or {value}" if value else number
    cells = (f"`{setting.name}`", value, f"`{show(setting.default)}`", setting.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(reference(), end="")
