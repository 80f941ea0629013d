"""Samples are leased and credited: what islands do that come, go, die and can't hear each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.ledger.credits import Credits
from lowcomm.peers.leases import GIVEN_BACK_S
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, SimIsland
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import PeerFault, Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.spans import size, without
from lowcomm.types import PeerId

SETTINGS = IslandSettings(policy=RoundPolicy(deadline_s=2.0), save_every=10)


def play(
    faults: tuple[PeerFault, ...],
    quiet_s: float,
    *,
    links: Callable[[PeerId, PeerId, Message], bool] | None = None,
    settings: IslandSettings = SETTINGS,
) -> Outcome:
    swarm = SimSwarm(4, Tape(1, (), faults, quiet_s=quiet_s), settings)
    if links is not None:
        swarm._hub.filter = links
    outcome = run_virtually(swarm.run(), quiet_s + 100.0)
    assert not broken(outcome)
    return outcome


def credited(life: SimIsland) -> Credits:
    last = life.node.state.chains[0].last
    assert last is not None
    assert last.samples is not None
    return last.samples


def test_each_sample_is_credited_once_in_the_order_of_the_data() -> None:
    outcome = play((), 60.0)
    for life in outcome.final:
        named = credited(life)
        assert (named.twice, named.uncounted, named.data) == (0, 0, "toy samples")
        ahead = named.credited[-1][1] - size(named.credited)
        assert ahead <= 2 * 16 * 4 * SETTINGS.unit_samples  # the window of free units they choose from


def test_what_an_island_held_that_died_is_trained_on_by_others() -> None:
    died = PeerFault("crash", (2,), start_s=20.0, away_s=1.5 * GIVEN_BACK_S)
    outcome = play((died,), 30.0 + 1.5 * GIVEN_BACK_S, settings=replace(SETTINGS, save_every=0))
    held = outcome.lives[2].node.units.held
    named = credited(outcome.final[0])
    assert held
    assert not without(held, named.credited)
    assert named.twice == 0


def test_what_an_island_held_that_left_is_free_at_once() -> None:
    left = PeerFault("leave", (2,), start_s=20.0, away_s=GIVEN_BACK_S / 3)
    outcome = play((left,), 25.0 + GIVEN_BACK_S / 3)
    held = outcome.lives[2].node.units.held
    assert held
    assert not without(held, credited(outcome.final[0]).credited)


@pytest.mark.parametrize("kind", ["crash", "blip"])
def test_who_comes_back_soon_goes_on_with_what_it_held(kind: str) -> None:
    away = PeerFault(kind, (1,), start_s=20.0, away_s=3.0)  # type: ignore[arg-type]
    outcome = play((away,), 60.0)
    assert credited(outcome.final[0]).twice <= 10 * 11  # of a crash: what came after its checkpoint


def test_halves_choose_apart_at_first() -> None:
    def links(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        apart = 20.0 < asyncio.get_running_loop().time() < 26.0
        return not (apart and (sender in FAR) != (receiver in FAR))

    outcome = play((), 80.0, links=links)
    both = 6.0 / 0.4 * (10 + 11)  # what the smaller half trains on meanwhile
    assert credited(outcome.final[0]).twice < both / 4


def test_long_halves_train_on_the_same_and_the_ledger_names_it() -> None:
    def links(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        apart = 20.0 < asyncio.get_running_loop().time() < 60.0
        return not (apart and (sender in FAR) != (receiver in FAR))

    outcome = play((), 140.0, links=links)
    assert credited(outcome.final[0]).twice > 0


FAR = {name(2), name(3)}
