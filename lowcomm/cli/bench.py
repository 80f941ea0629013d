"""`lowcomm bench ...`: measurements that anyone can repeat; the options are fields of their settings."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

from lowcomm.bench.options import NEEDED, Option, Settings, flag
from lowcomm.bench.settings import BENCHES
from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    print_error,
    print_table,
    write_json,
)


def add_parser(commands: Subparsers) -> None:
    """Declare the command and its parts."""
    parser = add_command(
        commands,
        "bench",
        about="measure codecs, rounds, overhead, speeds, engines, snapshots, churn, soaks, learning, corpora",
        example="lowcomm bench round --peers 2,4 --payload-mb 0,100 --stock",
    )
    parts = parser.add_subparsers(dest="bench", metavar="PART", required=True)
    for name, bench in BENCHES.items():
        part = add_command(parts, name, about=bench.ABOUT, example=bench.EXAMPLE)
        add_options(part, bench)
        add_json(part)


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, write the log; exit code 1 where something was not as promised."""
    check_writable(args.json)
    bench = BENCHES[args.bench]
    given = {name: getattr(args, name) for name in bench.options()}
    settings = bench(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    )
    settings.check()
    from lowcomm.bench.machine import machine_facts

    facts = machine_facts()
    outcome = importlib.import_module(bench.MODULE).run(settings, tell)
    if os.environ.get("RANK", "0") != "0":
        return EXIT_DONE  # under torchrun one of the ranks tells
    if args.json:
        write_json(args.json, {"machine": facts, **outcome.log})
    if args.json != "-":
        print_table(outcome.headings, outcome.rows)
        for note in outcome.notes:
            print(note)
    for error in outcome.errors:
        print_error(error)
    return EXIT_FAILED if outcome.errors else EXIT_DONE


def tell(message: str) -> None:
    """A line of progress."""
    print(message, file=sys.stderr, flush=True)


def add_options(parser: argparse.ArgumentParser, bench: type[Settings]) -> None:
    """An option for each field that is one; those that a bench shares with others come last."""
    groups: dict[str, Any] = {"": parser}
    kinds, options = typing.get_type_hints(bench), bench.options()
    for field in sorted(dataclasses.fields(bench), key=lambda one: one.name not in bench.__annotations__):
        if (option := options.get(field.name)) is not None:
            if option.group not in groups:
                groups[option.group] = parser.add_argument_group(option.group)
            name = field.name if option.positional else flag(field.name)
            groups[option.group].add_argument(name, **_argument(field.default, option, kinds[field.name]))


def _argument(default: Any, option: Option, kind: Any) -> dict[str, Any]:
    """What `add_argument` is told of a field."""
    needed = default is NEEDED
    shown = option.shown if option.shown is not None else "" if needed else _words(default)
    words: dict[str, Any] = {"help": f"{option.help} ({shown})" if shown else option.help}
    if kind is bool:
        return {**words, "action": "store_true"}
    if not option.positional:
        words |= {"required": True} if needed else {"default": default}
    several = typing.get_origin(kind) is tuple
    if several:
        (kind, _) = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return {**words, "choices": typing.get_args(kind), **({"nargs": "+"} if several else {})}
    (kind,) = {*typing.get_args(kind)} - {types.NoneType} or {kind}
    words |= {"choices": option.choices} if option.choices else {"metavar": option.metavar}
    if several and kind is not str:
        return {**words, "type": _numbers(kind)}
    return {**words, "type": kind, **({"nargs": "+"} if several else {})}


def _words(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, tuple):
        return ",".join(map(_words, default))
    if isinstance(default, (int, float)) and default is not False:
        return f"{default:g}"
    return default or ""


def _numbers(kind: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    def numbers(text: str) -> tuple[float, ...]:  # argparse names it in its errors
        return tuple(kind(part) for part in text.split(","))

    return numbers
