"""Run a command of the documentation as a process, and end it by its own pid."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.docs.pages import ROOT

DEADLINE_S = 250.0


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "SETUP": "off",  # scripts of launch/ take this Python as it is
}


def python(*arguments: object, log: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """A Python process in the checkout; its standard error goes to `log`."""
    return started([sys.executable, *map(str, arguments)], log=log)


@contextmanager
def started(
    words: Sequence[str], *, log: Path, folder: Path = ROOT, **variables: str
) -> Iterator[subprocess.Popen[str]]:
    """A command in a folder; its standard error goes to `log`."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**ENVIRONMENT, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def first_line(process: subprocess.Popen[str], log: Path) -> str:
    """The first line of its standard output."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, log.read_text()
    return line


def output(process: subprocess.Popen[str], log: Path, code: int = 0) -> str:
    """The rest of its standard output, after it ended with the expected code."""
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, log.read_text()
    return out
