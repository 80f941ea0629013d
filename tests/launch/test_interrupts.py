"""Signals that come at an awkward moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lowcomm.interrupts import signals_after_fork

armed = False


def ctrl_c_in_the_fork() -> None:
    """A Ctrl-C whose handler runs in one of Python's own hooks around a fork."""
    global armed
    if armed:
        armed = False
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    os.register_at_fork(after_in_parent=ctrl_c_in_the_fork)


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    global armed
    armed = False


def fork() -> int:
    """Start a child with `preexec_fn`, with which the hooks run, while Ctrl-C is pressed."""
    global armed
    armed = True
    child = subprocess.Popen([sys.executable, "-c", ""], preexec_fn=lambda: None)
    return child.wait()


def test_a_ctrl_c_in_a_fork_is_not_lost() -> None:
    before = signal.getsignal(signal.SIGINT)
    ended = []
    with pytest.raises(KeyboardInterrupt), signals_after_fork():
        ended.append(fork())
    assert ended == [0]
    assert signal.getsignal(signal.SIGINT) is before


def test_what_is_ignored_stays_ignored() -> None:
    """As with nohup: the child must ignore it, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_after_fork():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
