"""What people see of the islands of a swarm: names, losses, and who is linked to whom."""

import asyncio
import math

import pytest
import torch

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island
from lowcomm.cli.status import HEADINGS, _show, status_rows
from lowcomm.errors import ArgumentError, ConfigError, ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.names import LONGEST_NAME, host_name, is_name
from lowcomm.peers.acquaintances import MAX_KNOWN
from lowcomm.peers.observer import watch
from lowcomm.peers.peer import MAX_LINKS, State, parse_state
from lowcomm.types import PeerId, PeerStatus
from tests.attacks.test_greeting import hello, member
from tests.outer.swarm import make_model


def island(hub, peer_id, name=""):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return OuterLoop(
        wrap_island(model, optimizer),
        exchanges.loopback(hub, run_id="run", peer_id=peer_id, founder=peer_id == "a"),
        schedule=Schedule(inner_steps=4),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(),
        heartbeat_s=0.05,
        lease_s=60.0,
        name=name,
    )


class EnoughError(Exception):
    """What was waited for was seen."""


def seen(hub, is_enough):
    """What an observer sees, once it is enough."""
    found = []

    def show(peers):
        if is_enough({peer.peer: peer for peer in peers}):
            found.extend(peers)
            raise EnoughError

    async def look():
        observer = exchanges.loopback(hub, run_id="run", peer_id="observer", founder=False)
        await watch(observer, 30.0, 0.02, show)

    with pytest.raises(EnoughError):
        asyncio.run(asyncio.wait_for(look(), 60.0))
    return {peer.peer: peer for peer in found}


def test_an_observer_sees_names_losses_and_links():
    hub = exchanges.hub()
    with island(hub, "a", "north") as north, island(hub, "b", "south") as south:
        north.show_loss(2.5)
        south.show_loss(math.nan)  # nothing to show
        with pytest.raises(ArgumentError, match="show_loss: loss: expected a number, got"):
            south.show_loss("low")

        def is_whole(peers):
            return len(peers) == 2 and all(dict(peer.links).values() for peer in peers.values())

        peers = seen(hub, is_whole)
        assert {peer: status.name for peer, status in peers.items()} == {"a": "north", "b": "south"}
        assert (peers["a"].loss, peers["b"].loss) == (2.5, None)
        assert [list(dict(peers[peer].links)) for peer in ("a", "b")] == [["b"], ["a"]]
        assert all(0.0 < seconds < 30.0 for peer in peers.values() for _, seconds in peer.links)
        assert north.names == south.names == {"a": "north", "b": "south"}
        assert {status.name for status in north.peers() if status.role == "island"} == {"north", "south"}
    first, second = status_rows(sorted(peers.values(), key=lambda peer: peer.peer))
    assert (first[0], second[0]) == ("north", "south")
    assert (first[HEADINGS.index("loss")], second[HEADINGS.index("loss")]) == ("2.500", "-")
    assert first[HEADINGS.index("links")].startswith("south ")


def test_one_who_watches_sees_who_comes_and_goes():
    hub = exchanges.hub()
    counts = []
    with island(hub, "a", "north"):
        south = island(hub, "b", "south")
        south.start()

        def left(peers):
            counts.append(len(peers))
            if counts[-1] == 2:
                south.close()
            return 2 in counts and counts[-1] == 1

        assert list(seen(hub, left)) == ["a"]


def test_an_island_without_a_name_is_called_as_its_host():
    hub = exchanges.hub()
    with island(hub, "a") as alone:
        assert alone.name == host_name()
    assert is_name(host_name())


@pytest.mark.parametrize(
    ("host", "name"),
    [("node-7", "node-7"), ("Lab (north) ä", "Lab-north"), ("", "island"), ("n" * 100, "n" * LONGEST_NAME)],
)
def test_any_host_name_becomes_a_name(monkeypatch, host, name):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert host_name() == name


BAD_NAMES = ["with space", "\x1b[31mred", "<b>", "n" * (LONGEST_NAME + 1), "ü", "a\n"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match="name: expected 1 to 64 characters of A-Z a-z 0-9") as caught:
        island(exchanges.hub(), "a", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        *({"name": name} for name in BAD_NAMES),
        {"name": 5},
        {"loss": "low"},
        {"loss": math.nan},
        {"loss": True},
        {"links": {}},
        {"links": [["b"]]},
        {"links": [["b", -1.0]]},
        {"links": [["b", math.inf]]},
        {"links": [[7, 0.1]]},
        {"links": [["b" * 200, 0.1]]},
        {"links": [["b", 0.1]] * (MAX_LINKS + 1)},
    ],
    ids=lambda change: repr(change)[:40],
)
def test_what_a_peer_says_of_itself_is_checked(change):
    with pytest.raises(ProtocolError):
        parse_state(Fields("state", {**State().to_json(), **change}))


def test_a_state_without_name_loss_and_links_is_whole():
    body = {key: value for key, value in State().to_json().items() if key not in ("name", "loss", "links")}
    assert parse_state(Fields("state", body)) == State()


def test_names_that_strangers_make_up_fill_no_memory():
    async def scenario():
        peers = member()
        for number in range(MAX_KNOWN + 20):
            peer = PeerId(f"peer-{number}")
            peers.on_peer_up(peer)
            peers.on_hello(peer, hello(state=State(phase="training", name=f"n{number}").to_json()))
            peers.on_peer_down(peer)
        assert len(peers.names) == MAX_KNOWN
        assert peers.names[peer] == f"n{number}"
        assert peers.called(peer) == f"n{number} ({peer})"
        assert peers.called(PeerId("12D3KooWxxxxxstranger")) == "…stranger"
        await peers.stop()

    asyncio.run(scenario())


def test_status_says_why_the_last_round_came_to_nothing(capsys):
    hub = exchanges.hub()
    with island(hub, "a", "north") as north, island(hub, "b", "south"):
        node = north._lead
        node.peers.say(trouble="south withheld its part for 5.1 s;\x1b[2J formed again without it")
        peers = seen(hub, lambda peers: len(peers) == 2 and peers["a"].trouble)
    assert (peers["b"].trouble, peers["a"].trouble[:5]) == ("", "south")
    _show("run", list(peers.values()), None)
    told = "lowcomm: last round, as north saw it: south withheld its part for 5.1 s;"
    assert capsys.readouterr().err == f"{told} [2J formed again without it\n"


def test_many_links_fit_into_a_line():
    links = tuple((PeerId(f"peer-{number}"), 0.01 * number or None) for number in range(20))
    status = PeerStatus(
        peer=PeerId("a"), role="island", phase="training", inner_step=1, outer_steps=(1,), heads=(),
        tokens_per_s=1.0, shard=0, addresses=(), seen_s_ago=0.1, links=links,
    )  # fmt: skip
    ((*_, shown, _),) = status_rows([status])
    assert shown.endswith(" and 14 more")
    assert len(shown) < 120


def test_links_to_islands_of_one_name_are_told_apart():
    def status(peer, name, *others):
        return PeerStatus(
            peer=PeerId(peer), role="island", phase="training", inner_step=1, outer_steps=(1,), heads=(),
            tokens_per_s=1.0, shard=0, addresses=(), seen_s_ago=0.1, name=name,
            links=tuple((PeerId(other), 0.01) for other in others),
        )  # fmt: skip

    rows = status_rows([status("a", "north", "b", "c"), status("b", "vm", "a"), status("c", "vm", "a")])
    assert [row[HEADINGS.index("links")] for row in rows] == [
        "b 10 ms, c 10 ms",
        "north 10 ms",
        "north 10 ms",
    ]
