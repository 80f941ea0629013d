"""`lowcomm export RUN --out DIR`: the anchor as safetensors in Hugging Face layout."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowcomm.cli.common import EXIT_DONE, Subparsers, add_command, positive


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "export",
        about="export the trained model in Hugging Face's layout",
        example="lowcomm export runs/demo/island-0 --out exported",
    )
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="an island's run folder")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for model.safetensors")
    parser.add_argument(
        "--step", metavar="N", type=positive, help="inner step of the checkpoint (default: newest)"
    )
    parser.add_argument(
        "--merge", action="store_true", help="adapters (LoRA): write the whole model, with them added"
    )


def run(args: argparse.Namespace) -> int:
    """Export one checkpoint's anchor."""
    from lowcomm.training.export import export

    step = export(args.run_dir, args.out, step=args.step, merge=args.merge)
    print(f"lowcomm: the anchor at inner step {step:,} is in {args.out}", file=sys.stderr)
    return EXIT_DONE
