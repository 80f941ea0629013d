"""Peers of a measurement, started or forked: they answer, they fail by name, and nothing of them is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowcomm.errors import ExchangeError
from lowcomm.launching.children import Children
from lowcomm.launching.process_table import alive, key_of
from tests.e2e.test_deaths import wait_for

ECHO = "tests.launching.echo"
DEADLINE_S = 60.0

pytestmark = pytest.mark.processes


@pytest.fixture(params=["started", "forked"])
def children(request: pytest.FixtureRequest) -> Iterator[Children]:
    preload = ["json"] if request.param == "forked" else []
    with Children(ECHO, "echo", deadline_s=DEADLINE_S, preload=preload) as found:
        yield found


def test_each_peer_gets_its_settings_and_answers_each_line(children: Children) -> None:
    for number in range(2):
        assert children.start({"size": 7}) == number
        ready = children.wait_for(number, "ready")
        assert (ready["role"], ready["settings"]) == ("echo", {"size": 7, "number": number})
    assert [event["line"] for event in children.round()] == ["go", "go"]
    assert children.ask(1, "round")["line"] == "round"
    assert sorted(children.next() for _ in range(5)) == [0, 0, 1, 1, 1]
    assert children.code(0) is None
    assert children.news(0) == []


def test_a_peer_that_fails_is_named_with_its_last_message(children: Children) -> None:
    children.wait_for(children.start({}), "ready")
    children.say(0, "fail")
    with pytest.raises(ExchangeError, match=r"echo: peer 0 ended early with exit code 1; .*: no luck"):
        children.wait_for(0, "round")


def test_another_event_than_expected_is_shown(children: Children) -> None:
    children.start({})
    with pytest.raises(ExchangeError, match=r"echo: expected 'round' from peer 0, got .*ready"):
        children.wait_for(0, "round")


def test_what_a_killed_peer_has_said_is_kept_and_what_it_started_ends(children: Children) -> None:
    peer = children.wait_for(children.start({}), "ready")
    left = [key_of(peer["pid"]), key_of(children.ask(0, "child")["pid"])]
    assert None not in left
    children.say(0, "one more")
    assert children.wait_for(0, "round")["line"] == "one more"
    children.kill(0)
    children.wait_for_end(0)
    children.close(patient=True)
    wait_for(lambda: not any(key is not None and alive(key) for key in left), "all have ended")
