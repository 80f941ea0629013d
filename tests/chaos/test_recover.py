"""Most of those who may decide are lost for good, and an operator's mandate lets the others go on.

On a virtual clock; see "When most are lost" in docs/design/0019-rounds.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.exchanges.base import Message
from lowcomm.ledger.mandate import Mandate
from lowcomm.recovery.mandates import STANDSTILL, Given, read_mandates, write_mandate
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.rounds.promises import FilePromises
from lowcomm.sim.invariants import broken
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import Outcome, SimSwarm, name
from lowcomm.sim.tapes import Tape, make_tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

OPERATOR = PeerId("operator")
Story = Callable[[SimSwarm], Awaitable[None]]


def play(
    islands: int,
    folder: Path,
    story: Story,
    *,
    operator: str = OPERATOR,
    quiet_s: float,
    tape: Tape | None = None,
) -> Outcome:
    settings = IslandSettings(
        policy=RoundPolicy(deadline_s=2.0, partition="majority", operator=operator),
        layout=(TensorSpec("weights", (64,)),),
        schedule=toy_schedule(num_fragments=1),
        step_s=1.0,
        lease_s=2.0,
        heartbeat_s=1.0,
    )
    tape = replace(tape or Tape(1, (), (), quiet_s=0.0), quiet_s=quiet_s)
    swarm = SimSwarm(islands, tape, settings, folder)

    async def both() -> Outcome:
        running = asyncio.ensure_future(swarm.run())
        await story(swarm)
        return await running

    return run_virtually(both(), 900.0)


async def lose(swarm: SimSwarm, folder: Path, numbers: tuple[int, ...]) -> None:
    """They die with their disks; the names may come again."""
    for number in numbers:
        await swarm.kill(number)
        del swarm._lives[number]
        own = folder / name(number)
        own.rename(folder / f"lost-{number}")
        own.mkdir()
        swarm._promises[number] = FilePromises(own)


def height(swarm: SimSwarm, number: int) -> int:
    return swarm.island(number).node.state.chains[0].outer_step


def mandate_of(swarm: SimSwarm, at: int, members: tuple[int, ...], *, number: int = 1) -> Mandate:
    """As the operator signs it, of where an island stands."""
    chain = swarm.island(at).node.state.chains[0]
    mandate = Mandate(
        run_id="sim",
        positions={0: (chain.outer_step, chain.head)},
        members=tuple(sorted(name(member) for member in members)),
        number=number,
        operator=OPERATOR,
    )
    return replace(mandate, signature=swarm.hub.signature(OPERATOR, mandate.content))


def heads_by_step(outcome: Outcome) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for life in outcome.lives:
        for entry in life.record.entries:
            found.setdefault(entry.outer_step, set()).add(entry.hash)
    return found


@pytest.mark.slow
def test_three_of_seven_go_on_and_the_lost_come_back(tmp_path: Path) -> None:
    stood: list[int] = []

    async def story(swarm: SimSwarm) -> None:
        await asyncio.sleep(16.0)
        await lose(swarm, tmp_path, (3, 4, 5, 6))
        await asyncio.sleep(14.0)
        stood.extend(height(swarm, number) for number in (0, 1, 2))
        reason = swarm.island(0).reports[-1].reason
        assert "most of those who may decide are away: island-3, island-4, island-5, island-6" in reason
        assert "`lowcomm recover`" in reason
        assert swarm.island(0).node.peers.state.trouble == reason
        assert (tmp_path / "island-0" / STANDSTILL).exists()
        write_mandate(tmp_path / "island-0", Given(mandate_of(swarm, 0, (0, 1, 2))))
        await asyncio.sleep(12.0)
        stood.append(height(swarm, 2))
        for number in (3, 4, 5, 6):
            swarm.revive(number, again=False)

    outcome = play(7, tmp_path, story, quiet_s=70.0)
    assert not broken(outcome)
    assert stood[0] == stood[1] == stood[2] < stood[3]
    assert all(len(heads) == 1 for heads in heads_by_step(outcome).values())
    first = next(e for e in outcome.lives[0].record.entries if e.outer_step == stood[0] + 1)
    assert [peer for peer, _ in first.participants] == [name(0), name(1), name(2)]
    chains = [island.node.state.chains[0] for island in outcome.final]
    assert len(chains) == 7
    assert {chain.last.participants for chain in chains if chain.last} == {chains[0].last.participants}
    assert len(chains[0].last.participants) == 7
    assert not any((tmp_path / name(number) / STANDSTILL).exists() for number in range(7))


def test_forged_replayed_and_second_mandates_are_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[Mandate] = []

    async def story(swarm: SimSwarm) -> None:
        folder = tmp_path / "island-0"
        await asyncio.sleep(8.0)
        early = mandate_of(swarm, 0, (0,))
        write_mandate(folder, Given(early))  # everybody is here: it waits, and its head passes
        await asyncio.sleep(8.0)
        assert height(swarm, 0) > early.positions[0][0]
        await lose(swarm, tmp_path, (2, 3))
        await asyncio.sleep(12.0)
        stood = height(swarm, 0)
        forged = replace(mandate_of(swarm, 0, (0,)), signature=swarm.hub.signature(name(2), b"forged"))
        write_mandate(folder, Given(forged))
        other_head = replace(forged, positions={0: (stood, early.positions[0][1])})
        signed = swarm.hub.signature(OPERATOR, other_head.content)
        write_mandate(folder, Given(replace(other_head, signature=signed)))
        await asyncio.sleep(8.0)
        assert height(swarm, 0) == stood
        first = mandate_of(swarm, 0, (0, 1))
        second = mandate_of(swarm, 0, (0,), number=1)
        swarm._hub.filter = lambda sender, receiver, message: message.kind != "vote"
        write_mandate(folder, Given(first))
        await asyncio.sleep(6.0)
        assert height(swarm, 0) == stood
        write_mandate(folder, Given(second))
        await asyncio.sleep(4.0)
        assert height(swarm, 0) == stood
        given.extend((forged, first, second))
        write_mandate(
            folder, Given(mandate_of(swarm, 0, (0,), number=2))
        )  # it says that it replaces the first
        await asyncio.sleep(4.0)
        assert height(swarm, 0) == stood  # of which most are here
        await lose(swarm, tmp_path, (1,))
        await asyncio.sleep(14.0)
        assert height(swarm, 0) > stood
        swarm._hub.filter = None

    outcome = play(4, tmp_path, story, quiet_s=70.0)
    forged, first, second = given
    said = [record.getMessage() for record in caplog.records if record.name == "lowcomm.recovery.mandates"]
    assert any(f"{forged} is not signed by the run's operator, operator" in line for line in said)
    assert any("follows another head than this island has" in line for line in said)
    wanted = f"refused: {second} is a second one for outer step {first.positions[0][0] + 1}, where {first}"
    assert any(line.startswith(wanted) for line in said)
    assert all(len(heads) == 1 for heads in heads_by_step(outcome).values())


def test_what_a_member_had_voted_for_is_finished(tmp_path: Path) -> None:
    """All five hold an update and have voted; no vote arrives, and three are lost."""
    left: list[str] = []

    async def story(swarm: SimSwarm) -> None:
        await asyncio.sleep(12.0)

        def passes(sender: PeerId, receiver: PeerId, message: Message) -> bool:
            return message.kind != "vote"

        swarm._hub.filter = passes
        step = height(swarm, 0)
        while not all(swarm.island(n).node.rounds[0].machine.decision.accepted for n in range(5)):
            await asyncio.sleep(0.1)
        await lose(swarm, tmp_path, (2, 3, 4))
        swarm._hub.filter = None
        accepted = swarm.island(0).node.rounds[0].machine.decision.accepted
        assert accepted is not None
        left.append(accepted[1].hash)
        await asyncio.sleep(12.0)
        assert height(swarm, 0) == step
        write_mandate(tmp_path / "island-1", Given(mandate_of(swarm, 1, (0, 1))))
        await asyncio.sleep(8.0)
        assert height(swarm, 0) > step

    outcome = play(5, tmp_path, story, quiet_s=50.0)
    finished = next(entry for entry in outcome.lives[0].record.entries if entry.hash == left[0])
    assert len(finished.participants) == 5
    assert finished.outer_step in {entry.outer_step for entry in outcome.lives[1].record.entries}
    assert all(len(heads) == 1 for heads in heads_by_step(outcome).values())


def test_without_an_operator_each_island_has_to_agree(tmp_path: Path) -> None:
    async def story(swarm: SimSwarm) -> None:
        await asyncio.sleep(12.0)
        await lose(swarm, tmp_path, (2, 3, 4))
        await asyncio.sleep(12.0)
        stood = height(swarm, 0)
        mandate = replace(mandate_of(swarm, 0, (0, 1)), operator=PeerId(""), signature=b"")
        write_mandate(tmp_path / "island-0", Given(mandate))
        await asyncio.sleep(12.0)
        assert height(swarm, 0) == stood  # one of two has agreed
        assert not read_mandates(tmp_path / "island-1")
        write_mandate(tmp_path / "island-1", Given(mandate))
        await asyncio.sleep(8.0)
        assert height(swarm, 0) == height(swarm, 1) > stood
        swarm.revive(2, again=False)  # takes a state that most vouch for

    outcome = play(5, tmp_path, story, operator="", quiet_s=70.0)
    assert len({chain[0] for chain in outcome.final_heads.values()}) == 1
    assert len(outcome.final) == 3
    assert all(len(heads) == 1 for heads in heads_by_step(outcome).values())


def test_who_goes_by_a_mandate_does_so_after_a_restart(tmp_path: Path) -> None:
    async def story(swarm: SimSwarm) -> None:
        await asyncio.sleep(12.0)
        await lose(swarm, tmp_path, (1, 2))
        await asyncio.sleep(12.0)
        mandate = mandate_of(swarm, 0, (0,))
        write_mandate(tmp_path / "island-0", Given(mandate))
        swarm._hub.filter = lambda sender, receiver, message: False
        await asyncio.sleep(3.0)
        (given,) = read_mandates(tmp_path / "island-0")
        assert given == Given(mandate, (0,))
        await swarm.kill(0)
        (tmp_path / "island-0" / STANDSTILL).write_text("what it stood at long ago")
        swarm._hub.filter = None
        swarm.revive(0, again=True)
        authority = swarm.island(0).node.context.authority
        await asyncio.sleep(1.0)
        assert authority.of(0, *mandate.positions[0]) == mandate
        assert not (tmp_path / "island-0" / STANDSTILL).exists()

    play(3, tmp_path, story, quiet_s=40.0)


def test_members_that_are_gone_for_long_leave_the_electorate_while_a_quorum_lives(tmp_path: Path) -> None:
    """Five lose two, and one more, and the run goes on: who is gone is none of those who decide next."""

    async def story(swarm: SimSwarm) -> None:
        for lost in ((3, 4), (2,)):
            await asyncio.sleep(12.0)
            await lose(swarm, tmp_path, lost)
        await asyncio.sleep(12.0)
        members = swarm.island(0).node.context.slot(0).electorate
        assert members == (name(0), name(1))
        swarm.revive(4, again=False)

    outcome = play(5, tmp_path, story, quiet_s=60.0)
    assert not broken(outcome)
    assert len(outcome.final_heads) == 3


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_one_history_whatever_came_before_the_loss(tmp_path: Path, seed: int) -> None:
    """Three of five die amid faults, and come back with their disks once the others have gone on."""
    rng = random.Random(seed)
    tape = make_tape(seed, 5, faulty_s=16.0, peer_faults=0)
    lost = tuple(sorted(rng.sample(range(5), 3)))
    left = [number for number in range(5) if number not in lost]
    gone_s = rng.uniform(4.0, 15.0)
    stood: list[int] = []

    async def story(swarm: SimSwarm) -> None:
        await asyncio.sleep(gone_s)
        for number in lost:
            await swarm.kill(number)
            del swarm._lives[number]
        await asyncio.sleep(26.0)
        ahead = max(left, key=lambda number: height(swarm, number))
        stood.append(height(swarm, ahead))
        write_mandate(tmp_path / name(ahead), Given(mandate_of(swarm, ahead, tuple(left))))
        await asyncio.sleep(16.0)
        assert min(height(swarm, number) for number in left) > stood[0]
        for number in lost:
            swarm.revive(number, again=False)

    outcome = play(5, tmp_path, story, quiet_s=90.0, tape=tape)
    assert not outcome.errors
    known: dict[int, set[str]] = {}
    for life in outcome.lives:
        if life in outcome.final:  # what only the lost had decided is lost with their lives
            for entry in life.record.entries:
                known.setdefault(entry.outer_step, set()).add(entry.hash)
    assert all(len(heads) == 1 for heads in known.values())
    assert len({heads[0] for heads in outcome.final_heads.values()}) == 1
