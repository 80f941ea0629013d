"""`lowcomm eval RUN|FOLDER --tasks ...`: benchmarks of lm-eval on what was trained."""

from __future__ import annotations

import argparse
from pathlib import Path

from lowcomm.cli.common import (
    EXIT_DONE,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    positive,
    print_table,
    write_json,
)


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "eval",
        about="evaluate a trained model on tasks of lm-eval (pip install 'lowcomm[eval]')",
        example="lowcomm eval runs/words/island-0 --tasks lambada_openai,piqa --limit 100",
    )
    parser.add_argument(
        "model", metavar="RUN|FOLDER", type=Path, help="an island's run folder, or a folder of transformers"
    )
    parser.add_argument(
        "--tasks", metavar="A,B", required=True, help="names of tasks, as `lm-eval ls tasks` prints them"
    )
    parser.add_argument("--include", metavar="DIR", type=Path, help="folder with task files of your own")
    parser.add_argument("--limit", metavar="N", type=positive, help="documents of each task (default: all)")
    parser.add_argument("--batch-size", metavar="N", type=positive, default=8, help="sequences at a time (8)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 ...")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print a row for each metric."""
    check_writable(args.json)
    from lowcomm.training.harness import evaluate_tasks

    tasks = [task.strip() for task in args.tasks.split(",") if task.strip()]
    found = evaluate_tasks(
        args.model,
        tasks,
        include=args.include,
        limit=args.limit,
        batch_size=args.batch_size,
        device=args.device,
    )
    if args.json:
        write_json(args.json, {task: dict(metrics) for task, metrics in found.items()})
    if args.json != "-":
        rows = [
            [task, name.removesuffix(",none"), f"{value:.4f}"]
            for task, metrics in found.items()
            for name, value in metrics.items()
        ]
        print_table(["task", "metric", "value"], rows)
    return EXIT_DONE
