"""`lowcomm train RECIPE.toml`: one island; under torchrun, one of its ranks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lowcomm.arguments import split_join
from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Subparsers,
    add_command,
    add_json,
    add_profile,
    add_set,
    check_writable,
    write_json,
)
from lowcomm.training.phases import Phases


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "train",
        about="train one island",
        example="lowcomm train recipes/150m.toml --join 'demo@/ip4/10.0.0.1/tcp/31337/p2p/12D3Koo...'\n"
        "         torchrun --standalone --nproc-per-node 8 -m lowcomm train recipes/150m.toml"
        " --profile 8xa100-fsdp2",
    )
    parser.add_argument("recipe", metavar="RECIPE.toml", type=Path, help="the run's settings")
    add_profile(parser)
    add_set(parser)
    parser.add_argument("--out", metavar="DIR", help="run folder; one that holds this run already is resumed")
    parser.add_argument(
        "--join",
        metavar="STRING",
        action="append",
        default=[],
        help="the shared string RUN_ID@multiaddr of any live peer; may be repeated",
    )
    parser.add_argument(
        "--found",
        action="store_true",
        help="go on alone at once; else an island that knew others when it stopped looks for them first",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings as TOML and leave"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train until the end, or until Ctrl-C, which saves and leaves."""
    check_writable(args.json)
    from lowcomm.config.load import load_config, to_toml

    overrides = all_overrides(args.overrides, args.out, args.join, found=args.found)
    config = load_config(args.recipe, overrides, profile=args.profile)
    if args.dry_run:
        sys.stdout.write(to_toml(config))
        return EXIT_DONE
    phases = Phases(console=config.metrics.console != "off")
    phases.begin("importing torch")
    from lowcomm.training.trainer import Trainer

    summary = Trainer(config, phases=phases).fit()
    if args.json and os.environ.get("RANK", "0") == "0":
        write_json(args.json, summary.to_dict())
    if summary.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if summary.diverged else EXIT_DONE


def all_overrides(
    overrides: Sequence[str], out: str | None, join: Sequence[str], *, found: bool = False
) -> list[str]:
    """`--set`, `--out`, `--join` and `--found` as one list of overrides; the later ones win.

    Raises:
        ConfigError: a `--join` is no shared string.
    """
    collected = list(overrides)
    if out is not None:
        collected.append(f"out={json.dumps(out)}")
    if join:
        run_id, addresses = split_join(join)
        if run_id is not None:
            collected.append(f"shared.run_id={json.dumps(run_id)}")
        collected.append(f"exchange.initial_peers={json.dumps(addresses)}")
    if found:
        collected.append("exchange.found=true")
    return collected
