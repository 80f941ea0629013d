"""Snapshots in pieces from several donors: deaths, lies, silence, cuts, restarts. On a virtual clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowcomm.errors import ExchangeError, PeerUnreachableError
from lowcomm.exchanges.base import Message
from lowcomm.exchanges.fields import Fields
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.exchanges.shaped import Fate, ShapedExchange
from lowcomm.islands.vectors import HostVector, HostVectors
from lowcomm.ledger.blobs import Blobs
from lowcomm.ledger.fetching import Fetch
from lowcomm.ledger.pieces import PIECE_BYTES, count_pieces, make_manifest, name_of
from lowcomm.ledger.state import FragmentState
from lowcomm.ledger.upload_rate import UploadRate
from lowcomm.recovery.incoming import Incoming, unfinished
from lowcomm.sim.disk import SimExecutor
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

ELEMENTS = PIECE_BYTES + 51  # 13 pieces with two slots, two of them across a border, the last one short
SLOTS = {"first": HostVector(torch.randn(ELEMENTS)), "second": HostVector(torch.randn(ELEMENTS))}
STATE = FragmentState.of(HostVector(torch.randn(ELEMENTS)), SLOTS)
PIECES = count_pieces(STATE.size_bytes)
DEADLINE_S = 30.0
DONORS = [PeerId("ann"), PeerId("bob"), PeerId("cyd")]


class Steady:
    """Every message takes a moment; `edit` may change or lose what a donor sends."""

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        return Fate((0.01,))


class Peer:
    """An exchange with nothing but blobs on it."""

    def __init__(
        self, hub: LoopbackHub, name: PeerId, pace: UploadRate, *, founder: bool, mbit_s: float
    ) -> None:
        inner = LoopbackExchange(hub, "run", name, founder=founder)
        self.exchange = ShapedExchange(inner, Steady(), mbit_s=mbit_s)
        self.blobs = Blobs(self.exchange, lambda name: STATE if name == STATE.digest else None, POOL, pace)
        self.received: Counter[PeerId] = Counter()

    def on_message(self, peer: PeerId, message: Message) -> None:
        self.blobs.on_request(peer, Fields(message.kind, message.body))

    async def on_bulk(self, peer: PeerId, message: Message) -> None:
        self.received[peer] += len(message.payload)
        self.blobs.on_piece(peer, Fields(message.kind, message.body), bytes(message.payload))

    def on_peer_up(self, peer: PeerId) -> None:
        pass

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        self.blobs.on_peer_down(peer)

    def on_fatal(self, error: ExchangeError) -> None:
        pass


POOL = SimExecutor()


class Scene:
    """A taker, donors, and what goes wrong with them."""

    def __init__(self, *, mbit_s: float = 80.0, pace_mbit_s: float = 0.0) -> None:
        self.hub = LoopbackHub()
        self.taker = Peer(self.hub, PeerId("taker"), UploadRate(0), founder=True, mbit_s=0)
        self.donors = {
            name: Peer(self.hub, name, UploadRate(pace_mbit_s), founder=False, mbit_s=mbit_s)
            for name in DONORS
        }
        self.took_s = 0.0

    async def fetch(self, *targets: Incoming, cut_first_s: float | None = None) -> None:
        """All of them at the same time; the first one is cancelled after `cut_first_s`."""
        fetches = [
            Fetch(self.taker.blobs, STATE.digest, STATE.size_bytes, DONORS, target, DEADLINE_S, POOL)
            for target in targets
        ]
        await self.run(*fetches, cut_first_s=cut_first_s)

    async def run(self, *given: Fetch, cut_first_s: float | None = None) -> None:
        """See `fetch`."""
        loop = asyncio.get_running_loop()
        await self.taker.exchange.start(self.taker)
        for donor in self.donors.values():
            await donor.exchange.start(donor)
        began_s = loop.time()
        try:
            fetches = [asyncio.create_task(fetch.run()) for fetch in given]
            if cut_first_s is not None:
                await asyncio.sleep(cut_first_s)
                fetches.pop(0).cancel()
            await asyncio.gather(*fetches)
        finally:
            self.took_s = loop.time() - began_s
            for peer in (self.taker, *self.donors.values()):
                await peer.exchange.close()

    def after(self, pieces: int, strike: Callable[[], None]) -> None:
        """Call `strike` once the taker has been sent so many pieces."""
        sent = 0

        def count(sender: PeerId, receiver: PeerId, message: Message) -> bool:
            nonlocal sent
            sent += message.kind == "blob" and message.body["offset"] != -1
            if sent == pieces:
                sent += 1
                strike()
            return True

        self.hub.filter = count


def incoming(folder: Path | None = None) -> Incoming:
    return Incoming(0, STATE.digest, STATE, folder, HostVectors())


def assert_whole(target: Incoming) -> None:
    state = target.finish()
    target.discard()
    assert torch.equal(state.anchor.load(), STATE.anchor.load())
    assert list(state.slots) == list(SLOTS)
    assert all(torch.equal(state.slots[name].load(), slot.load()) for name, slot in SLOTS.items())
    assert state.digest == STATE.digest


def test_all_donors_share_the_work() -> None:
    scene, target = Scene(), incoming()
    run_virtually(scene.fetch(target), 100.0)
    assert_whole(target)
    assert set(scene.taker.received) == set(DONORS)
    assert sum(scene.taker.received.values()) < 1.01 * STATE.size_bytes
    alone_s = 8 * STATE.size_bytes / 80e6
    assert scene.took_s < 0.5 * alone_s


def test_two_that_want_the_same_blob_share_what_comes() -> None:
    """As a ballot and a catch-up do."""
    scene, targets = Scene(), (incoming(), incoming())
    run_virtually(scene.fetch(*targets), 100.0)
    for target in targets:
        assert_whole(target)
    assert sum(scene.taker.received.values()) < 1.01 * STATE.size_bytes


def test_one_of_two_that_want_the_same_blob_may_give_up() -> None:
    scene, targets = Scene(), (incoming(), incoming())
    run_virtually(scene.fetch(*targets, cut_first_s=0.25), 100.0)
    assert 0 < len(targets[0].have) < PIECES
    assert_whole(targets[1])


def test_a_donor_that_dies_in_mid_transfer_is_replaced() -> None:
    scene, target = Scene(), incoming()
    scene.after(4, lambda: scene.hub.kill(DONORS[0]))
    run_virtually(scene.fetch(target), 100.0)
    assert_whole(target)
    assert scene.took_s < DEADLINE_S / 4


def test_a_donor_that_falls_silent_costs_no_deadline() -> None:
    scene, target = Scene(), incoming()
    scene.hub.filter = lambda sender, receiver, message: sender != DONORS[1] or message.body["offset"] == -1
    run_virtually(scene.fetch(target), 100.0)
    assert_whole(target)
    assert scene.took_s < DEADLINE_S / 4


def test_a_liar_is_passed_over_and_nothing_of_it_is_kept() -> None:
    scene, target = Scene(), incoming()

    def lie(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        if sender != DONORS[2] or message.kind != "blob":
            return True
        return Message("blob", message.body, b"\x55" * len(message.payload))

    scene.hub.filter = lie
    run_virtually(scene.fetch(target), 100.0)
    assert_whole(target)


def test_only_liars_give_nothing() -> None:
    scene, target = Scene(), incoming()
    scene.hub.filter = lambda sender, receiver, message: Message(
        message.kind, message.body, bytes(len(message.payload))
    )
    with pytest.raises(PeerUnreachableError, match="hashes"):
        run_virtually(scene.fetch(target), 100.0)
    assert not target.have


@pytest.mark.parametrize("restarted", [False, True], ids=["cut", "cut-and-restarted"])
def test_what_came_before_a_cut_is_not_fetched_again(tmp_path: Path, restarted: bool) -> None:
    scene, target = Scene(), incoming(tmp_path)
    scene.after(9, lambda: [scene.hub.kill(donor) for donor in DONORS])
    with pytest.raises(PeerUnreachableError, match=f"of {PIECES} pieces missing"):
        run_virtually(scene.fetch(target), 100.0)
    came = len(target.have)
    assert 0 < came < PIECES
    if restarted:
        assert unfinished(0, tmp_path) == STATE.digest
        target = incoming(tmp_path)
        assert len(target.have) == came
    again = Scene()
    run_virtually(again.fetch(target), 100.0)
    assert sum(again.taker.received.values()) <= (PIECES - came) * PIECE_BYTES
    assert_whole(target)
    assert not list((tmp_path / "incoming").iterdir())


def test_what_was_damaged_on_disk_is_fetched_again(tmp_path: Path) -> None:
    target = incoming(tmp_path)
    target.begin(STATE.manifest)
    for index in range(PIECES):
        target.write(index, STATE.read(index * PIECE_BYTES, PIECE_BYTES))
    file = next((tmp_path / "incoming").glob("*.state"))
    with file.open("r+b") as damaged:
        damaged.seek(5 * PIECE_BYTES + 3)
        damaged.write(b"!")
    assert incoming(tmp_path).have == set(range(PIECES)) - {5}


@pytest.mark.parametrize("where", ["on-disk", "in-memory", "on-disk-restarted"])
def test_pieces_that_are_equal_in_another_state_are_not_fetched_again(tmp_path: Path, where: str) -> None:
    folder = None if where == "in-memory" else tmp_path
    before = incoming(folder)
    before.begin(STATE.manifest)
    for index in range(5):
        before.write(index, STATE.read(index * PIECE_BYTES, PIECE_BYTES))
        before.have.add(index)
    anchor = STATE.anchor.load().clone()
    anchor[PIECE_BYTES // 4 + 3] += 1.0  # in the second piece
    other = FragmentState.of(HostVector(anchor), SLOTS)
    target = Incoming(0, other.digest, STATE, folder, HostVectors(), None if "restarted" in where else before)
    assert not target.have
    target.begin(other.manifest)
    assert target.have == {0, 2, 3, 4}
    for index in set(range(PIECES)) - target.have:
        target.write(index, other.read(index * PIECE_BYTES, PIECE_BYTES))
    assert torch.equal(target.finish().anchor.load(), anchor)
    if folder is not None:
        assert unfinished(0, folder) == other.digest
        assert unfinished(1, folder) is None
        assert len(list((folder / "incoming").iterdir())) == 2


def test_donors_keep_to_their_upload_rate() -> None:
    scene, target = Scene(mbit_s=0, pace_mbit_s=8.0), incoming()
    run_virtually(scene.fetch(target), 100.0)
    fastest_s = 8 * STATE.size_bytes / (len(DONORS) * 8e6)
    assert 0.8 * fastest_s < scene.took_s < 1.5 * fastest_s


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_a_name_does_not_depend_on_how_the_bytes_are_cut(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    cuts = [data[start : start + 70_000] for start in range(0, size, 70_000)]
    assert name_of(make_manifest([data])) == name_of(make_manifest(cuts))


def test_a_donor_that_comes_later_takes_its_share() -> None:
    scene, target = Scene(), incoming()
    fetch = Fetch(scene.taker.blobs, STATE.digest, STATE.size_bytes, DONORS[:1], target, DEADLINE_S, POOL)
    scene.after(3, lambda: fetch.add(DONORS))
    run_virtually(scene.run(fetch), 100.0)
    assert_whole(target)
    assert set(scene.taker.received) == set(DONORS)


def test_a_liar_is_not_asked_again() -> None:
    scene, target = Scene(), incoming()
    fetch = Fetch(scene.taker.blobs, STATE.digest, STATE.size_bytes, DONORS, target, DEADLINE_S, POOL)
    lies = 0

    def lie(sender: PeerId, receiver: PeerId, message: Message) -> bool | Message:
        nonlocal lies
        if sender != DONORS[2] or message.kind != "blob" or message.body["offset"] == -1:
            return True
        lies += 1
        asyncio.get_running_loop().call_later(0.01, fetch.add, DONORS)
        return Message("blob", message.body, b"\x55" * len(message.payload))

    scene.hub.filter = lie
    run_virtually(scene.run(fetch), 100.0)
    assert_whole(target)
    assert 0 < lies <= PIECES // 3
