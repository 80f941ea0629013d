"""An island whose exchange says that it has to go: it stops, and commits nothing more."""

from __future__ import annotations

import pytest

from lowcomm import RoundPolicy
from lowcomm.errors import JoinRefusedError
from tests.outer.swarm import Swarm, name


@pytest.mark.parametrize("heard", [True, False], ids=["in-company", "in-a-round-alone"])
def test_an_island_that_has_to_go_stops_and_commits_nothing_more(heard: bool) -> None:
    swarm = Swarm(policy=RoundPolicy(deadline_s=2.0))
    exchanges, told = {}, []

    def listen(sender, receiver, message):
        exchange = exchanges.get(0)
        if sender == name(0) and message.kind == "ready" and message.body["outer_step"] == 3 and exchange:
            told.append(message)
            error = JoinRefusedError("another live process")
            exchange.post(exchange.receiver.on_fatal, error)
            if not heard:  # as the swarm's does: its links are gone from then on
                swarm.hub.cut(name(0), name(1))
            return False
        return True

    def each(step, outer):
        exchanges[0] = outer._node.links if outer.peer_id == name(0) else exchanges.get(0)

    swarm.hub.filter = listen
    results = swarm.run(16, each=each)
    assert told
    assert isinstance(results[0].error, JoinRefusedError)
    assert [report.outer_step for report in results[0].committed] == [1, 2]
    assert str(results[0].error) == "another live process"
