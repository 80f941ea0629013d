"""One child process, in a session of its own, so that whatever it starts is found and ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from lowcomm.interrupts import die_with_parent, signals_after_fork
from lowcomm.launching.process_table import session


def start_child(
    command: Sequence[str],
    *,
    stdin: int,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    environment: Mapping[str, str],
    dies: signal.Signals | None,
) -> subprocess.Popen[bytes]:
    """Start it; the terminal's Ctrl-C does not reach it.

    Args:
        stdin, stdout, stderr: as in `subprocess`.
        environment: all of its variables.
        dies: what it gets when this process dies without a word; None = nothing.
    """
    with signals_after_fork():
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            start_new_session=True,
            preexec_fn=None if dies is None else die_with_parent(dies),
        )


def end_session(leader: int) -> set[int]:
    """SIGKILL for a child and whatever it started; returns who that was."""
    members = session(leader)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for pid in members:  # also those that have made a group of their own
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return members
