"""Signals that come at an awkward moment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lowcomm.interrupts import Asked, Interrupts, interrupted_by_any, leaving_signals, signals_after_fork
from tests.clocks import HandClock

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


@pytest.mark.parametrize(
    ("came", "at_once"),
    [
        ("INT", False),
        ("TERM TERM", False),
        ("TERM 0.1 TERM 20 TERM", False),
        ("TERM 0.3 INT", False),
        ("INT 0.01 INT", False),
        ("HUP HUP 3 TERM", False),
        ("INT 1.5 INT", True),
        ("TERM 5 INT", True),
        ("INT 0.1 INT 2 INT", True),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else None,
)
def test_only_a_second_ctrl_c_of_a_person_ends_at_once(came: str, at_once: bool) -> None:
    clock = HandClock(100.0)
    asked = Asked(clock)
    for word in came.split():
        if word.isalpha():
            asked.take(signal.Signals[f"SIG{word}"])
            assert asked.to_leave
        else:
            clock.now_s += float(word)
    assert asked.at_once is at_once


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_each_signal_asks_to_save_and_leave(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupts() as interrupts:
        interrupts.can_wait = True
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # handed on by a parent
        assert interrupts.asked
    assert signal.getsignal(number) is before


def test_what_cleans_up_is_not_broken_off_by_the_same_signal_again() -> None:
    with interrupted_by_any():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)  # nohup would have SIGHUP ignored
        signal.raise_signal(signal.SIGTERM)


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in leaving_signals()
        with Interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
