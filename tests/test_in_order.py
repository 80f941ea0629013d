"""Work in the background that keeps its order."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lowcomm.in_order import InOrder


def test_one_thing_after_the_other_in_the_order_given() -> None:
    seen, running = [], threading.Lock()

    def note(number: int) -> None:
        assert running.acquire(blocking=False), "two at a time"
        seen.append(number)
        running.release()

    with ThreadPoolExecutor(4) as pool:
        in_order = InOrder(pool)
        for number in range(500):
            in_order.submit(lambda number=number: note(number))
        in_order.done().result(timeout=20.0)
    assert seen == list(range(500))


def test_what_breaks_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.ERROR):
        in_order = InOrder(pool)
        in_order.submit(fail)
        in_order.done().result(timeout=20.0)
    assert "no such thing" in caplog.text
