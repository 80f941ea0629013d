"""The other islands of a run are kept in the run folder, and named to one that would go on without them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest
import torch

from lowcomm import OuterLoop, Schedule, codecs, nesterov, wrap_island
from lowcomm.errors import PeerUnreachableError
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.peers.acquaintances import REDIAL_LONGEST_S
from lowcomm.peers.remembered import FILE, MOST_KEPT, RememberedPeers
from lowcomm.sim.disk import SimExecutor
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId
from tests.outer.swarm import make_model

A, B = PeerId("12D3KooW" + 44 * "a"), PeerId("12D3KooW" + 44 * "b")
POOL = SimExecutor()
STRINGS = {peer: f"run@/ip4/198.51.100.7/tcp/31337/p2p/{peer}" for peer in (A, B)}


def told(*peers):
    """The addresses that islands tell of themselves: of their own host first."""
    return {
        peer: (f"/ip4/127.0.0.1/tcp/31337/p2p/{peer}", f"/ip4/198.51.100.7/tcp/31337/p2p/{peer}")
        for peer in peers
    }


def kept(folder):
    return (folder / FILE).read_text().splitlines()


def test_who_was_here_is_named_after_a_restart(tmp_path, caplog):
    RememberedPeers(tmp_path, "run", POOL).note(told(A, B), set())
    assert kept(tmp_path) == [STRINGS[A], STRINGS[B]]
    with caplog.at_level(logging.WARNING):
        RememberedPeers(tmp_path, "run", POOL).warn_alone()
    assert all(string in caplog.text for string in STRINGS.values())
    assert "--join" in caplog.text


def test_who_vanishes_is_kept_and_who_says_goodbye_is_not(tmp_path):
    others = RememberedPeers(tmp_path, "run", POOL)
    others.note(told(A, B), set())
    others.note({}, {B})
    assert kept(tmp_path) == [STRINGS[A]]
    others.note({}, {A, B})
    assert kept(tmp_path) == []


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"], ids=["no-file", "empty", "damaged"])
def test_an_island_that_knew_nobody_says_nothing(tmp_path, caplog, content):
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    others = RememberedPeers(tmp_path, "run", POOL)
    with caplog.at_level(logging.WARNING):
        others.warn_alone()
    assert caplog.text == ""
    assert others.way_out() == ""


def test_without_a_folder_nothing_is_kept(caplog):
    others = RememberedPeers(None, "run", POOL)
    others.note(told(A), set())
    others.warn_alone()
    assert caplog.text == ""


def test_the_way_out_names_those_that_were_tried(tmp_path):
    RememberedPeers(tmp_path, "run", POOL).note(told(A, B), set())
    out = RememberedPeers(tmp_path, "run", POOL).way_out()
    assert all(string in out for string in STRINGS.values())
    assert "without --join and with --found" in out


def test_what_is_no_address_is_not_kept(tmp_path):
    junk = {
        A: ("", "nonsense", "/ip4/1.2.3.4/tcp/1/p2p/x\nrun@/ip4/6.6.6.6/tcp/1/p2p/y"),
        B: told(B)[B],
    }
    RememberedPeers(tmp_path, "run", POOL).note(junk, set())
    assert kept(tmp_path) == [STRINGS[B]]


def test_the_file_stays_small_and_the_message_short(tmp_path, caplog):
    many = [PeerId(f"12D3KooW{number}") for number in range(2 * MOST_KEPT)]
    RememberedPeers(tmp_path, "run", POOL).note(told(*many), set())
    assert len(kept(tmp_path)) == MOST_KEPT
    with caplog.at_level(logging.WARNING):
        RememberedPeers(tmp_path, "run", POOL).warn_alone()
    assert f"and {MOST_KEPT - 3} more, in {tmp_path / FILE}" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_and_survived(tmp_path, caplog):
    others = RememberedPeers(tmp_path / "gone", "run", POOL)
    with caplog.at_level(logging.WARNING):
        others.note(told(A), set())
    assert "can't be written" in caplog.text


def island(folder, *, founder, found=False):
    """An outer loop on a hub of its own, so that nobody is there."""
    model = make_model()
    return OuterLoop(
        wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1)),
        LoopbackExchange(LoopbackHub(), "run", PeerId("me"), founder=founder, join_timeout_s=0.0),
        schedule=Schedule(inner_steps=4),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(),
        folder=folder,
        found=found,
    )


@pytest.mark.parametrize("known", [True, False], ids=["with-others-before", "first-start"])
def test_a_founder_that_had_company_says_that_it_starts_alone(tmp_path, caplog, known):
    if known:
        RememberedPeers(tmp_path, "run", POOL).note(told(A), set())
    with caplog.at_level(logging.WARNING), island(tmp_path, founder=True, found=known):
        pass
    assert ("starts alone" in caplog.text) == known
    assert (STRINGS[A] in caplog.text) == known


def test_a_founder_with_nothing_left_to_train_warns_of_no_second_history(tmp_path, caplog):
    RememberedPeers(tmp_path, "run", POOL).note(told(A), set())
    outer = island(tmp_path, founder=True)
    with caplog.at_level(logging.WARNING), contextlib.closing(outer):
        outer.connect()
        outer.join(over=True)
    assert "starts alone" not in caplog.text


def test_an_island_that_reaches_nobody_names_the_others(tmp_path):
    RememberedPeers(tmp_path, "run", POOL).note(told(A), set())
    with pytest.raises(PeerUnreachableError, match=f"nor did one that this island knew: {STRINGS[A]}. "):
        island(tmp_path, founder=False).start()


async def looked_for(tmp_path, known, comes_after_s):
    """For how long an island that knows `known` looks for them, and what it says."""
    hub, loop = LoopbackHub(), asyncio.get_running_loop()
    me = SimIsland(
        0, LoopbackExchange(hub, "run", PeerId("me"), founder=True), IslandSettings(), MemoryPromises()
    )
    RememberedPeers(tmp_path, "run", POOL).note(told(*known), set())
    me.node.remembered = RememberedPeers(tmp_path, "run", POOL)
    await me.node.start()
    began_s = loop.time()
    looking = asyncio.ensure_future(me.node.joining.look_for_others())
    if comes_after_s:
        await asyncio.sleep(comes_after_s)
        exchange = LoopbackExchange(hub, "run", A, founder=False)
        other = SimIsland(1, exchange, IslandSettings(), MemoryPromises())
        await other.node.start()
    await looking
    looked_s = loop.time() - began_s
    if comes_after_s:
        await other.node.close()
    await me.node.close()
    return looked_s, me.node.grace_s


@pytest.mark.parametrize(
    ("known", "comes_after_s", "lasts"),
    [
        ((), 0.0, lambda looked_s, grace_s: looked_s == 0.0),
        ((A, B), 0.0, lambda looked_s, grace_s: looked_s == pytest.approx(grace_s)),
        ((A, B), 10.0, lambda looked_s, grace_s: 10.0 <= looked_s < 12.0),
    ],
    ids=["knows-nobody", "nobody-comes", "one-comes"],
)
def test_those_known_are_looked_for_as_long_as_one_may_come(tmp_path, caplog, known, comes_after_s, lasts):
    with caplog.at_level(logging.WARNING):  # what a command says without --verbose
        looked_s, grace_s = run_virtually(looked_for(tmp_path, known, comes_after_s), 600.0)
    assert REDIAL_LONGEST_S < grace_s < 2 * REDIAL_LONGEST_S
    assert lasts(looked_s, grace_s)
    assert (STRINGS[A] in caplog.text) == bool(known)
    assert (f"for {grace_s:g} s" in caplog.text) == bool(known)
