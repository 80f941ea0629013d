"""The `lowcomm` command: finds the subcommand, sets up logging, turns errors into one line.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lowcomm import __version__
from lowcomm.cli.common import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, print_error
from lowcomm.cli.streams import flush_output, give_up_output, open_standard_streams
from lowcomm.errors import AddressError, ConfigError, LowcommError
from lowcomm.interrupts import interrupted_by_any

COMMANDS = (
    "quickstart", "train", "launch", "seed", "status", "report", "export", "ledger", "recover", "invite",
    "provenance", "data", "eval", "plan", "simulate", "doctor", "bench", "chaos",
)  # fmt: skip
TRACEBACK = "LOWCOMM_TRACEBACK"
GROUPS = "lowcomm.islands.group"
"""The module that opens process groups; not imported by commands that have none."""


def run() -> NoReturn:
    """The command as a program of its own: run it, and end the process."""
    code = main()
    if GROUPS in sys.modules:
        leave(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """End a process in which Gloo may have run, without tearing down the interpreter.

    Gloo's threads outlive its groups, and may be about to let go of a tensor, for which they want the GIL. An
    interpreter that is ending gives it to nobody: before Python 3.14 it unwinds such a thread, through C++
    that can't be unwound, and so aborts the process (pytorch/pytorch#190489).
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: without the program's name; those of the process by default.
    """
    # Fragments are large and short-lived: huge pages save most of the page faults of a round. torch reads
    # this at its first allocation; processes that this one starts inherit it.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    open_standard_streams()
    try:
        with interrupted_by_any():
            args = make_parser().parse_args(arguments)
            _set_up_logging(args.verbose)
            code: int = args.run(args)
        flush_output()
    except LowcommError as error:
        if os.environ.get(TRACEBACK):
            raise
        print_error(str(error))
        return EXIT_USAGE if isinstance(error, (ConfigError, AddressError)) else EXIT_FAILED
    except KeyboardInterrupt:
        print_error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        give_up_output()
        return EXIT_FAILED
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser with all commands that this installation has."""
    parser = argparse.ArgumentParser(
        prog="lowcomm",
        description="Train one model on islands of GPUs that are far apart.",
        epilog="example: lowcomm quickstart\n`lowcomm COMMAND --help` has an example of each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lowcomm {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="more messages; twice for all")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module_name = f"lowcomm.cli.{name}"
        if importlib.util.find_spec(module_name) is not None:
            module = importlib.import_module(module_name)
            module.add_parser(commands)
            commands.choices[name].set_defaults(run=module.run)
    return parser


def _set_up_logging(verbose: int) -> None:
    """Our own loggers to the standard error; those of the libraries stay as they are."""
    logger = logging.getLogger("lowcomm")
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("lowcomm: %(levelname)s: %(message)s"))
    logger.handlers = [handler]  # not added to: main() may be called again in one process
