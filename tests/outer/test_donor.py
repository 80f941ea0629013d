"""Which version of a state a donor serves to whom. On a virtual clock."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import torch

from lowcomm import codecs
from lowcomm.algorithms.fragments import make_fragments
from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.islands.vectors import HostVector
from lowcomm.ledger.chain import Certified, Standing
from lowcomm.ledger.entry import Entry
from lowcomm.ledger.state import FragmentState, OuterState
from lowcomm.ledger.update import Update
from lowcomm.recovery.donor import BUSY_S, FOLLOWING_SHARE, MAX_PINNED, Donor
from lowcomm.sim.disk import SimExecutor
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId, TensorSpec

ELEMENTS = 1_000
UPDATE_BYTES = ELEMENTS  # as int8 has them
NONE = Standing(0, 0)
ANN, BOB, CYD = PeerId("ann"), PeerId("bob"), PeerId("cyd")


class Scene:
    """A donor that commits whenever it is told to; whoever asks is linked, and `phases` says what it does."""

    def __init__(self) -> None:
        fragments = make_fragments((TensorSpec("weights", (ELEMENTS,)),), 1, "balanced")
        self.state = OuterState("run", fragments, [torch.zeros(ELEMENTS)], nesterov(), codecs.fp32())
        self.phases: dict[PeerId, str] = {}
        self.said: list[Message] = []
        peers: Any = SimpleNamespace(linked=self, post=lambda peer, message: self.said.append(message))
        self.donor = Donor(self.state, peers, None, SimExecutor())

    def get(self, peer: PeerId) -> Any:
        return SimpleNamespace(greeted=True, state=SimpleNamespace(phase=self.phases.get(peer, "training")))

    def commit(self, rounds: int) -> None:
        for _ in range(rounds):
            chain = self.state.chains[0]
            after = FragmentState.of(
                HostVector(torch.rand(ELEMENTS)), {"momentum": HostVector(torch.rand(ELEMENTS))}
            )
            update = Update([bytes(UPDATE_BYTES)])
            entry = Entry(
                run_id="run", fragment=0, outer_step=chain.outer_step + 1, participants=((ANN, 10),),
                total_tokens=chain.total_tokens + 10, stops=(ELEMENTS,), chunk_elements=ELEMENTS,
                update_hash=update.digest, update_bytes=UPDATE_BYTES, state_digest=after.digest,
                previous=chain.head,
            )  # fmt: skip
            self.state.commit(entry, update, after, None)
            self.donor.committed(Certified(entry, None), update)

    def serve(self, peer: PeerId, least: Standing = NONE, wanted: Any = None) -> int:
        """The outer step of the version that a peer is given."""
        body = {"fragment": 0, "wanted": wanted, **least._asdict()}
        self.donor.on_snapshot_request(peer, Fields("snapshot?", body))
        return int(str(self.said[-1].body["outer_step"]))

    def entries_after(self, outer_step: int, head: str) -> int | None:
        body = {"fragment": 0, "outer_step": outer_step, "head": head}
        self.donor.on_entries_request(ANN, Fields("entries?", body))
        entries = self.said[-1].body["entries"]
        return None if entries is None else len(entries)  # type: ignore[arg-type]


def in_loop(scenario: Any) -> None:
    async def run() -> None:
        await scenario(Scene())

    run_virtually(run(), 10_000.0)


async def pass_time(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_a_version_is_kept_for_a_joiner_and_given_to_the_next_one_while_it_is_new() -> None:
    async def scenario(scene: Scene) -> None:
        scene.commit(3)
        scene.phases[ANN] = scene.phases[BOB] = "joining"
        assert scene.serve(ANN) == 3
        head = scene.state.chains[0].head
        scene.commit(2)  # a quarter of the state's 8 bytes per parameter
        assert scene.serve(BOB) == 3
        scene.commit(15)
        assert scene.serve(CYD) == 20
        await pass_time(5_000.0)
        scene.commit(1)
        assert scene.entries_after(3, head) == 18  # more than the ring has

    in_loop(scenario)


def test_who_is_ahead_of_all_versions_is_given_a_newer_one() -> None:
    """On the other side of a fork: what it could not use is no use, however busy the donor is."""

    async def scenario(scene: Scene) -> None:
        scene.phases[ANN] = scene.phases[BOB] = "joining"
        for peer in (ANN, BOB):
            scene.commit(5)
            scene.serve(peer)
        assert MAX_PINNED == 2
        scene.commit(4)
        assert scene.serve(CYD) == 10  # both are being fetched
        assert scene.serve(CYD, Standing(130, 13)) == 14
        assert scene.serve(BOB) == 14, "the one that was used last stays"

    in_loop(scenario)


def test_a_version_that_nobody_fetches_makes_room() -> None:
    async def scenario(scene: Scene) -> None:
        for step, peer in ((5, ANN), (10, BOB), (15, CYD)):
            scene.commit(5)
            await pass_time(BUSY_S + 1.0)
            assert scene.serve(peer) == step

    in_loop(scenario)


def test_a_version_that_is_too_old_to_come_from_is_given_up() -> None:
    async def scenario(scene: Scene) -> None:
        scene.phases[ANN] = "joining"
        scene.commit(1)
        scene.serve(ANN)
        name = scene.state.states[0].digest
        scene.commit(int(FOLLOWING_SHARE * 8))
        assert scene.donor.find(name) is not None
        scene.commit(1)
        assert scene.donor.find(name) is None
        assert scene.serve(ANN, wanted=name) == scene.state.chains[0].outer_step

    in_loop(scenario)
