"""Digests in the greeting, lists only where they differ: any size joins, and what differs is named."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from lowcomm import exchanges
from lowcomm.errors import JoinRefusedError, ProtocolError
from lowcomm.exchanges.base import MAX_BODY_BYTES, Message
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.frames import encode_frame
from lowcomm.outer.node import Node
from lowcomm.peers.terms import (
    LAYOUT,
    MAX_ITEM_BYTES,
    MAX_PAGE_ITEMS,
    MAX_SETTINGS,
    SHARED,
    Differences,
    Terms,
)
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.island import IslandSettings, SimIsland, toy_schedule
from lowcomm.sim.promises import MemoryPromises
from lowcomm.sim.swarm import simulate
from lowcomm.sim.tapes import Tape
from lowcomm.types import Json, Layout, TensorSpec
from tests.attacks.test_greeting import STRANGER, hello, member
from tests.exchanges.networks import PATIENCE_S

MANY = 100_000


def layout(tensors: int, **changed: Any) -> Layout:
    shapes = {f"layers.{n}.weight": (1,) for n in range(tensors)}
    return tuple(TensorSpec(name, shape) for name, shape in {**shapes, **changed}.items())


def terms(shared: Mapping[str, Json] | None = None, tensors: Layout = ()) -> Terms:
    return Terms({"shared.seed": 1, **(shared or {})}, tensors)


def compare(here: Terms, there: Terms) -> tuple[Differences, Counter[str]]:
    """What the one finds of the other, and the pages that it asked for."""
    asked: Counter[str] = Counter()

    async def ask(name: str, page: int) -> Fields:
        asked[name] += 1
        return Fields("terms", there.page(Fields("terms?", {"list": name, "page": page})))

    return asyncio.run(here.compare(there.digests, ask)), asked


FROZEN = {"model.frozen": "2 tensors of float32 " + "a" * 64}
DIFFERENCES = [
    pytest.param(terms(), terms(), [], [], id="nothing"),
    pytest.param(
        terms({"shared.a": 2}),
        terms({"shared.a": 3}),
        ["shared.a: here 2, there 3"],
        [SHARED],
        id="setting",
    ),
    pytest.param(
        terms({"shared.a": 2}), terms(), ["shared.a: here 2, there None"], [SHARED], id="setting-missing"
    ),
    pytest.param(
        terms({f"shared.{n}": 0 for n in range(20)}),
        terms({f"shared.{n}": 1 for n in range(20)}),
        [f"shared.{n}: here 0, there 1" for n in sorted(map(str, range(20)))[:8]],
        [SHARED],
        id="many-settings",
    ),
    pytest.param(
        terms(tensors=layout(MANY)),
        terms(tensors=layout(MANY, **{f"layers.{MANY - 1}.weight": (2,)})),
        [f"model: here tensor ['layers.{MANY - 1}.weight', [1]], there ['layers.{MANY - 1}.weight', [2]]"],
        [LAYOUT],
        id="last-of-many-tensors",
    ),
    pytest.param(
        terms(tensors=layout(2)),
        terms(tensors=layout(3)),
        ["model: here tensor None, there ['layers.2.weight', [1]]"],
        [LAYOUT],
        id="one-tensor-more-there",
    ),
    pytest.param(
        terms(tensors=layout(3)),
        terms(tensors=layout(2)),
        ["model: here tensor ['layers.2.weight', [1]], there None"],
        [LAYOUT],
        id="one-tensor-more-here",
    ),
    pytest.param(
        terms({"shared.a": 2}, layout(2)),
        terms({"shared.a": 3}, layout(3)),
        ["shared.a: here 2, there 3"],
        [SHARED],
        id="a-setting-explains-the-model",
    ),
    pytest.param(
        terms(FROZEN, layout(2)),
        terms(tensors=layout(3)),
        ["model: here tensor None, there ['layers.2.weight', [1]]"],
        [LAYOUT, SHARED],
        id="the-model-explains-frozen-weights",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("here", "there", "reasons", "lists"), DIFFERENCES)
def test_what_differs_is_named_by_both_and_no_other_list_is_asked_for(
    here: Terms, there: Terms, reasons: list[str], lists: list[str]
) -> None:
    found, asked = compare(here, there)
    assert list(found.here) == reasons
    assert sorted(asked) == sorted(lists)
    other_way, _ = compare(there, here)
    assert (other_way.there, other_way.here) == (found.here, found.there)


def test_pages_are_bounded_whatever_the_names_are() -> None:
    long = layout(50, **{"n" * 500_000: (1,), "m" * 3_000_000: (2,), "shapes": (1,) * 400_000})
    given = Terms({f"shared.{n}": "x" * (MAX_ITEM_BYTES - 100) for n in range(300)}, long)
    for name in (SHARED, LAYOUT):
        number = 0
        while (body := given.page(Fields("terms?", {"list": name, "page": number})))["items"]:
            head, _ = encode_frame(Message("terms", body))
            assert len(head) < MAX_BODY_BYTES / 2
            number += 1
        assert number > 0
    found, _ = compare(
        given, Terms({f"shared.{n}": "x" * (MAX_ITEM_BYTES - 100) for n in range(300)}, layout(50))
    )
    assert [len(reason) for reason in found.here] == [1_000]


def lying(name: str, *pages: list[Json]) -> Any:
    async def ask(asked: str, page: int) -> Fields:
        items: list[Json] = pages[page] if page < len(pages) else []
        return Fields("terms", {"list": name, "page": page, "items": items})

    return ask


OTHER = "f" * 64


@pytest.mark.parametrize(
    ("digests", "ask", "said"),
    [
        ({SHARED: OTHER}, lying(LAYOUT, [["a", 1]]), "expected page 0 of shared"),
        ({SHARED: OTHER}, lying(SHARED, [7]), r"expected \[name, value\], got 7"),
        ({SHARED: OTHER}, lying(SHARED, [["x" * 2_000, 1]]), "expected text of at most 1000"),
        ({SHARED: OTHER}, lying(SHARED, [["a", 1]] * (MAX_PAGE_ITEMS + 1)), "expected a list of at most"),
        ({SHARED: OTHER}, lying(SHARED, *[[["a", 1]] * 6_000] * 9), f"at most {MAX_SETTINGS}"),
    ],
    ids=["another-list", "no-pair", "long-name", "long-page", "no-end"],
)  # fmt: skip
def test_made_up_lists_end_the_comparison(digests: dict[str, Any], ask: Any, said: str) -> None:
    own = terms(tensors=layout(1))
    with pytest.raises(ProtocolError, match=said):
        asyncio.run(own.compare({**own.digests, **digests}, ask))


@pytest.mark.parametrize(
    ("digests", "ask"),
    [
        ({SHARED: OTHER}, lying(SHARED, [["shared.seed", 1]])),
        ({LAYOUT: OTHER}, lying(LAYOUT, [["layers.0.weight", [1]]])),
    ],
    ids=["settings", "tensors"],
)
def test_who_differs_in_a_digest_only_differs_in_nothing(digests: dict[str, Any], ask: Any) -> None:
    own = terms(tensors=layout(1))
    assert asyncio.run(own.compare({**own.digests, **digests}, ask)) == Differences()


def test_nobody_is_told_more_than_there_is() -> None:
    async def scenario() -> None:
        peers = member()
        peers.on_peer_up(STRANGER)
        for _ in range(3):  # a page of settings, and two ends
            peers.on_terms_request(STRANGER, Fields("terms?", {"list": SHARED, "page": 0}))
        with pytest.raises(ProtocolError, match="told all"):
            peers.on_terms_request(STRANGER, Fields("terms?", {"list": LAYOUT, "page": 0}))
        await peers.stop()

    asyncio.run(scenario())


def test_who_does_not_say_in_what_it_differs_is_refused_as_well() -> None:
    async def scenario() -> None:
        refused: list[str] = []
        peers = member()
        peers._on_refused = lambda peer, reasons: refused.extend(reasons)
        peers.on_peer_up(STRANGER)  # on a hub where nobody answers to that name
        peers.on_hello(STRANGER, hello(shared=OTHER))
        peers.on_hello(STRANGER, hello(shared=OTHER))
        while not refused:
            await asyncio.sleep(0)
        (reason,) = refused
        assert reason.startswith("settings or model differ, and it doesn't say in what: ")
        assert not peers.live()
        await peers.stop()

    asyncio.run(scenario())


def test_a_model_of_very_many_tensors_trains_over_loopback() -> None:
    chosen = IslandSettings(
        policy=RoundPolicy(deadline_s=10.0),
        layout=layout(MANY),
        chunk_bytes=1 << 20,
        schedule=toy_schedule(num_fragments=1),
    )
    outcome = simulate(2, Tape(1, (), (), quiet_s=6.0), chosen)
    assert not outcome.errors
    assert all(len(island.record.entries[-2].participants) == 2 for island in outcome.final)


def test_a_model_of_very_many_tensors_joins_over_the_real_swarm() -> None:
    """And one that has another tensor at the end is told so."""
    made: list[SimIsland] = []

    async def start(tensors: int, initial_peers: tuple[str, ...] = ()) -> Node:
        exchange = exchanges.swarm(run_id="many", initial_peers=initial_peers)
        chosen = IslandSettings(layout=layout(tensors), schedule=toy_schedule(num_fragments=1), lease_s=20.0)
        made.append(SimIsland(len(made), exchange, chosen, MemoryPromises()))
        await made[-1].node.start()
        return made[-1].node

    async def scenario() -> None:
        founder = await start(MANY)
        joined = await start(MANY, (founder.directory.join_string,))
        unlike = await start(MANY + 1, (founder.directory.join_string,))
        async with asyncio.timeout(4 * PATIENCE_S):
            while not (founder.peers.live() and joined.peers.live() and unlike.refusals):
                await unlike.changed.wait(1.0)
        assert f"here tensor ['layers.{MANY}.weight', [1]], there None" in unlike.refusals[0]
        assert not unlike.peers.live()
        with pytest.raises(JoinRefusedError, match="there None"):
            unlike.raise_if_refused()

    async def ended() -> None:
        try:
            await scenario()
        finally:
            for island in made:
                await island.node.close()

    asyncio.run(ended())
