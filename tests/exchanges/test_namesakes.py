"""Two live processes with one identity: the later one is refused, nobody else can be talked out of a run."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import msgpack
import pytest

from lowcomm import exchanges
from lowcomm.clock import SystemClock
from lowcomm.errors import JoinRefusedError, PeerUnreachableError
from lowcomm.exchanges import Message
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.exchanges.swarm.identity import Identity
from lowcomm.exchanges.swarm.namesakes import Namesakes, Proof
from lowcomm.exchanges.swarm.streams import OPENING_BODY_BYTES
from lowcomm.types import PeerId
from tests.exchanges.networks import PATIENCE_S, RUN, Recorder


def peer(key: Path, *initial: str) -> tuple[SwarmExchange, Recorder]:
    return exchanges.swarm(run_id=RUN, initial_peers=initial, identity_path=key), Recorder()


async def reach(dialer: SwarmExchange, other: SwarmExchange) -> None:
    """As an island does: dial until the link is there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await dialer.connect(other.peer_id, other.addresses)
            except PeerUnreachableError:
                await asyncio.sleep(0.05)


def test_a_copy_of_a_live_peer_is_refused_and_harms_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        a, heard_a = peer(tmp_path / "a")
        await a.start(heard_a)
        b, heard_b = peer(tmp_path / "b", a.join_string)
        await b.start(heard_b)
        shutil.copy(tmp_path / "b", tmp_path / "copy")
        copy, heard_copy = peer(tmp_path / "copy", a.join_string)
        try:
            with pytest.raises(
                JoinRefusedError, match="already used by another live process at /ip4/"
            ) as error:
                await copy.start(heard_copy)
            assert f"delete {tmp_path / 'copy'}, or name another" in str(error.value)
            assert "exchange.identity" in str(error.value)
            assert "\n" not in str(error.value)
            assert copy.daemon_pid is None
            await a.send(b.peer_id, Message("still", {}))
            await heard_b.until(lambda: bool(heard_b.messages))
            assert [kind for kind, _ in (*heard_a.links, *heard_b.links)] == ["up", "up"]
            assert heard_a.fatal is heard_b.fatal is None
        finally:
            await asyncio.gather(*(one.close() for one in (copy, b, a)))

    asyncio.run(scenario())


def test_a_copy_that_joins_through_its_original_is_refused(tmp_path: Path) -> None:
    """libp2p dials nobody of its own name."""

    async def scenario() -> None:
        original, heard = peer(tmp_path / "key")
        await original.start(heard)
        shutil.copy(tmp_path / "key", tmp_path / "copy")
        copy, _ = peer(tmp_path / "copy", original.join_string)
        try:
            with pytest.raises(
                JoinRefusedError, match=r"already used by another live process at /ip4/127\.0\.0"
            ):
                await copy.start(Recorder())
        finally:
            await asyncio.gather(copy.close(), original.close())
        again, _ = peer(tmp_path / "key", original_string(original))
        await again.start(Recorder())  # its own address is in everybody's list; nobody is there
        await again.close()

    def original_string(original: SwarmExchange) -> str:
        return f"{RUN}@{original.addresses[0]}"

    asyncio.run(scenario())


def test_a_restart_gets_in_before_its_last_life_is_known_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that lost its power says nothing. Should it live after all, the one that started first stays."""
    monkeypatch.setattr(sys.modules[Namesakes.__module__], "ANSWER_S", 1.0)

    async def scenario() -> None:
        a, heard_a = peer(tmp_path / "a")
        await a.start(heard_a)
        first, heard_first = peer(tmp_path / "b", a.join_string)
        await first.start(heard_first)
        shutil.copy(tmp_path / "b", tmp_path / "copy")
        assert first.daemon_pid is not None
        os.kill(first.daemon_pid, signal.SIGSTOP)
        second, heard_second = peer(tmp_path / "copy", a.join_string)
        try:
            await second.start(heard_second)
            await second.send(a.peer_id, Message("new", {}))
            await heard_a.until(lambda: bool(heard_a.messages))
            os.kill(first.daemon_pid, signal.SIGCONT)
            await heard_first.until(lambda: ("down", a.peer_id) in heard_first.links)
            await reach(first, a)
            await heard_second.until(lambda: heard_second.fatal is not None)
            assert "already used by another live process" in str(heard_second.fatal)
            assert heard_first.fatal is None
            await heard_second.until(lambda: ("down", a.peer_id) in heard_second.links)
            await first.send(a.peer_id, Message("old", {}))
            await heard_a.until(lambda: len(heard_a.messages) == 2)
        finally:
            os.kill(first.daemon_pid, signal.SIGCONT)
            await asyncio.gather(*(one.close() for one in (second, first, a)))

    asyncio.run(scenario())


HOST = PeerId("host")


class Told:
    """A process, and the errors that it was proven to have to go with."""

    def __init__(self, identity: Identity, started_s: float) -> None:
        class Clock(SystemClock):
            def wall_s(self) -> float:
                return started_s

        self.errors: list[JoinRefusedError] = []
        self.names = Namesakes(
            identity, RUN, Clock(), where=lambda: "here", key_file="", on_proven=self.errors.append
        )

    def proof(self, asked: str) -> Proof:
        answer = self.names.answer({"process": asked})
        assert answer is not None
        proof = Proof.parse(answer.body)
        assert proof is not None
        return proof


def packed(proof: Proof) -> bytes:
    data: bytes = msgpack.packb(proof.to_json())
    return data


IDENTITY = Identity.generate()
EARLIER, LATER = 1_000.0, 2_000.0


def test_only_the_later_process_goes_and_only_with_proof() -> None:
    mine, other = Told(IDENTITY, LATER), Told(IDENTITY, EARLIER)
    stranger, last_life = Told(Identity.generate(), EARLIER), Told(IDENTITY, EARLIER)
    true = other.proof(mine.names.process)
    forged = Proof(true.asked, "0" + true.by[1:-1] + "x", true.where, true.signature)
    for untrue in (
        b"",
        b"\xff" * 40,
        msgpack.packb([1]),
        msgpack.packb({**true.to_json(), "signature": 5}),
        msgpack.packb({**true.to_json(), "where": "x" * 1_000}),
        packed(forged),
        packed(stranger.proof(mine.names.process)),
        packed(other.proof(last_life.names.process)),  # of before this process; replayed
    ):
        with pytest.raises(PeerUnreachableError, match="without proof"):
            mine.names.on_used(HOST, untrue)
    mine.names.on_ousted(forged.to_json())
    assert not mine.errors
    with pytest.raises(JoinRefusedError, match="already used by another live process at here"):
        mine.names.on_used(HOST, packed(true))
    mine.names.on_ousted(true.to_json())
    assert len(mine.errors) == 2


def test_the_earlier_process_proves_itself_and_stays() -> None:
    mine, other = Told(IDENTITY, EARLIER), Told(IDENTITY, LATER)
    with pytest.raises(PeerUnreachableError, match="linked to a later process"):
        mine.names.on_used(HOST, packed(other.proof(mine.names.process)))
    mine.names.on_ousted(other.proof(mine.names.process).to_json())
    assert not mine.errors
    counter = Proof.parse(mine.names.opening(HOST)["counter"])
    assert counter is not None
    other.names.on_ousted(counter.to_json())
    assert len(other.errors) == 1


def test_what_is_not_asked_for_a_process_is_not_signed() -> None:
    told = Told(IDENTITY, EARLIER)
    for asked in (None, 5, "", "x" * 100, "\n", "é", told.names.process):
        assert told.names.answer({"process": asked}) is None  # type: ignore[dict-item]


def test_an_opening_has_room_for_pass_and_proof() -> None:
    told = Told(IDENTITY, EARLIER)
    long = Namesakes(
        IDENTITY, RUN, SystemClock(), where=lambda: "x" * 300, key_file="", on_proven=told.errors.append
    )
    with pytest.raises(PeerUnreachableError):
        told.names.on_used(HOST, packed(long._prove(told.names.process)))
    with pytest.raises(PeerUnreachableError):
        long.on_used(HOST, b"")
    opening = {"run": "r" * 128, "channel": -1, "token": "t" * 16, "answer": "a" * 16, "pass": "p" * 640}
    counter = Proof.make(IDENTITY, RUN, asked="a" * 30, by="b" * 30, where="w" * 200).to_json()
    body = {**opening, "process": "a" * 30, "counter": counter}
    assert len(msgpack.packb(body)) <= OPENING_BODY_BYTES
