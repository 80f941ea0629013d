"""Peers of a measurement, started or forked: they answer, they fail by name, and nothing of them is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lowcomm.errors import ExchangeError
from lowcomm.launching.peers import Peers
from lowcomm.launching.process_table import alive, key_of

ECHO = "tests.launching.echo"
DEADLINE_S = 60.0

pytestmark = pytest.mark.processes


@pytest.fixture(params=["started", "forked"])
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    preload = ["json"] if request.param == "forked" else []
    with Peers(ECHO, "echo", deadline_s=DEADLINE_S, preload=preload) as found:
        yield found


def test_each_peer_gets_its_settings_and_answers_each_line(peers: Peers) -> None:
    for number in range(2):
        assert peers.start({"size": 7}) == number
        ready = peers.wait_for(number, "ready")
        assert (ready["role"], ready["settings"]) == ("echo", {"size": 7, "number": number})
    assert [event["line"] for event in peers.round()] == ["go", "go"]
    assert peers.ask(1, "round")["line"] == "round"
    assert peers.code(0) is None
    assert peers.news(0) == []


def test_a_peer_that_fails_is_named_with_its_last_message(peers: Peers) -> None:
    peers.wait_for(peers.start({}), "ready")
    peers.say(0, "fail")
    with pytest.raises(ExchangeError, match=r"echo: peer 0 ended early with exit code 1; .*: no luck"):
        peers.wait_for(0, "round")


def test_another_event_than_expected_is_shown(peers: Peers) -> None:
    peers.start({})
    with pytest.raises(ExchangeError, match=r"echo: expected 'round' from peer 0, got .*ready"):
        peers.wait_for(0, "round")


def test_what_a_killed_peer_has_said_is_kept_and_what_it_started_ends(peers: Peers) -> None:
    peer = peers.wait_for(peers.start({}), "ready")
    left = [key_of(peer["pid"]), key_of(peers.ask(0, "child")["pid"])]
    assert None not in left
    peers.say(0, "one more")
    assert peers.wait_for(0, "round")["line"] == "one more"
    peers.kill(0)
    peers.wait_for_end(0)
    peers.close(patient=True)
    assert [key for key in left if key is not None and alive(key)] == []
