"""What every exchange promises (lowcomm/exchanges/base.py): its links, its directory, its signer."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from lowcomm import exchanges
from lowcomm.errors import PeerUnreachableError, ProtocolError
from lowcomm.exchanges import Message
from lowcomm.exchanges.base import (
    MAX_BODY_BYTES,
    MAX_PAYLOAD_BYTES,
    Directory,
    Exchange,
    Links,
    Signer,
    lacks,
)
from lowcomm.exchanges.frames import decode_body
from lowcomm.exchanges.process_group import ProcessGroupExchange
from lowcomm.launching.process_table import children_of, key_of
from lowcomm.types import PeerId
from tests.exchanges.networks import KINDS, PATIENCE_S, RUN, Peer, Recorder, join_string, network

CHILD = Path(__file__).with_name("child.py")
each_kind = pytest.mark.parametrize("kind", KINDS)


PARTS = (Links, Directory, Signer)


def members(part: type) -> set[str]:
    return {name for name in vars(part) if not name.startswith("_")}


def test_an_exchange_is_three_small_parts_and_nothing_else() -> None:
    assert all(len(members(part)) <= 9 for part in PARTS)
    assert sum(len(members(part)) for part in PARTS) == len(set().union(*map(members, PARTS)))
    assert not members(Exchange)


@each_kind
def test_every_kind_has_all_parts(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, _):
            assert lacks(a.exchange) == []

    asyncio.run(scenario())


# -- links -----------------------------------------------------------------------------------------


@each_kind
def test_control_messages_arrive_once_intact_and_in_order_both_ways(kind: str) -> None:
    bodies = [{"i": i, "text": "ü" * i, "list": [1.5, None, True, {"a": -1}]} for i in range(50)]

    async def scenario() -> None:
        async with network(kind) as (a, b):
            for body in bodies:
                await a.exchange.send(b.id, Message("there", body))
                await b.exchange.send(a.id, Message("back", body, b"payload"))
            await b.heard.until(lambda: len(b.heard.messages) == 50)
            await a.heard.until(lambda: len(a.heard.messages) == 50)
            assert [(p, m.kind, m.body) for p, m in b.heard.messages] == [(a.id, "there", x) for x in bodies]
            assert [(p, m.kind, m.body) for p, m in a.heard.messages] == [(b.id, "back", x) for x in bodies]
            assert {bytes(m.payload) for _, m in a.heard.messages} == {b"payload"}

    asyncio.run(scenario())


@each_kind
def test_large_payloads_arrive_intact_and_are_counted_alike_on_both_ends(kind: str) -> None:
    payloads = [os.urandom(size) for size in (MAX_PAYLOAD_BYTES, 1, 0, 65_536, 1_000_003)]
    long_body = {"text": "x" * 200_000}

    async def scenario() -> None:
        async with network(kind) as (a, b):
            sent = [Message("bulk", {**long_body, "i": i}, payload) for i, payload in enumerate(payloads)]
            await asyncio.gather(*(a.exchange.send_bulk(b.id, message) for message in sent))
            await b.heard.until(lambda: len(b.heard.bulk) == len(payloads))
            got = {m.body["i"]: m for _, m in b.heard.bulk}
            assert [bytes(got[i].payload) for i in range(len(payloads))] == payloads
            assert all(m.body["text"] == long_body["text"] for m in got.values())
            there, here = a.exchange.traffic, b.exchange.traffic
            assert there.sent_bytes == here.received_bytes >= sum(map(len, payloads)) + 5 * 200_000
            assert here.sent_bytes == there.received_bytes
            assert there.by_peer[b.id] == here.by_peer[a.id]
            assert here.from_peer[a.id] == here.received_bytes

    asyncio.run(scenario())


@each_kind
def test_oversize_and_unpackable_messages_are_refused_where_they_are_sent(kind: str) -> None:
    bad = [
        Message("large", {}, bytes(MAX_PAYLOAD_BYTES + 1)),
        Message("large", {"text": "x" * MAX_BODY_BYTES}),
        Message("odd", {"value": object()}),  # type: ignore[dict-item]
    ]

    async def scenario() -> None:
        async with network(kind) as (a, b):
            for message in bad:
                with pytest.raises(ProtocolError, match=message.kind):
                    await a.exchange.send(b.id, message)
                with pytest.raises(ProtocolError, match=message.kind):
                    await a.exchange.send_bulk(b.id, message)
            await a.exchange.send(b.id, Message("fine", {}))
            await b.heard.until(lambda: len(b.heard.messages) == 1)

    asyncio.run(scenario())


@each_kind
def test_a_receiver_that_stops_reading_bounds_the_sender_but_not_control(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, b):
            b.heard.gate.clear()
            message = Message("bulk", {}, bytes(MAX_PAYLOAD_BYTES))
            sends = [asyncio.ensure_future(a.exchange.send_bulk(b.id, message)) for _ in range(40)]
            await b.heard.until(lambda: b.heard.begun > 0)
            for i in range(20):  # round trips, while bulk stands still
                await a.exchange.send(b.id, Message("ping", {}))
                await b.heard.until(lambda i=i: len(b.heard.messages) == i + 1)
            assert not b.heard.bulk
            assert sum(send.done() for send in sends) < 40
            b.heard.gate.set()
            await asyncio.gather(*sends)
            await b.heard.until(lambda: len(b.heard.bulk) == 40)

    asyncio.run(scenario())


@each_kind
def test_a_cancelled_send_leaves_the_channel_usable(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, b):
            b.heard.gate.clear()
            payload = bytearray(b"\x01" * MAX_PAYLOAD_BYTES)
            message = Message("first", {}, payload)
            sends = [asyncio.ensure_future(a.exchange.send_bulk(b.id, message)) for _ in range(40)]
            await b.heard.until(lambda: b.heard.begun > 0)
            for send in sends:
                send.cancel()
            await asyncio.gather(*sends, return_exceptions=True)
            payload[:] = bytes(len(payload))  # it is ours again
            b.heard.gate.set()
            await asyncio.gather(*(a.exchange.send_bulk(b.id, Message("last", {})) for _ in range(8)))
            await b.heard.until(lambda: sum(m.kind == "last" for _, m in b.heard.bulk) == 8)
            firsts = [m for _, m in b.heard.bulk if m.kind == "first"]
            assert all(bytes(m.payload) == b"\x01" * MAX_PAYLOAD_BYTES for m in firsts)

    asyncio.run(scenario())


@each_kind
def test_up_and_down_are_told_exactly_once_and_a_link_can_be_made_anew(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind, 3) as (a, b, c):
            for peer in (a, b, c):
                others = {other.id for other in (a, b, c)} - {peer.id}
                await peer.heard.until(lambda peer=peer: len(peer.heard.links) >= 2)
                assert sorted(peer.heard.links) == sorted(("up", other) for other in others)
                assert peer.exchange.connected() == others
            await a.exchange.disconnect(b.id)
            await a.exchange.disconnect(b.id)
            await b.heard.until(lambda: ("down", a.id) in b.heard.links)
            assert a.heard.links.count(("down", b.id)) == b.heard.links.count(("down", a.id)) == 1
            assert a.exchange.connected() == {c.id}
            with pytest.raises(PeerUnreachableError, match=b.id):
                await a.exchange.send(b.id, Message("lost", {}))
            await asyncio.gather(
                a.exchange.connect(b.id, b.exchange.addresses), b.exchange.connect(a.id, a.exchange.addresses)
            )
            await a.exchange.send(b.id, Message("again", {}))
            await b.heard.until(lambda: bool(b.heard.messages))
            assert [link for link in b.heard.links if link[1] == a.id] == [
                ("up", a.id),
                ("down", a.id),
                ("up", a.id),
            ]

    asyncio.run(scenario())


@each_kind
def test_a_peer_that_closes_is_down_at_once_with_its_last_message_delivered(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, b):
            await b.exchange.send(a.id, Message("farewell", {}))
            await b.exchange.close()
            await a.heard.until(lambda: bool(a.heard.reasons))
            assert [m.kind for _, m in a.heard.messages] == ["farewell"]
            assert a.heard.links[-1] == ("down", b.id)
            assert a.heard.reasons == ["the peer left"]
            with pytest.raises(PeerUnreachableError):
                await a.exchange.send_bulk(b.id, Message("late", {}))

    asyncio.run(scenario())


def test_a_goodbye_is_heard_though_another_connection_ends_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of both is set: who hears the goodbye takes it up once its own bulk receive has failed."""
    bulk_ended = threading.Event()
    receive = ProcessGroupExchange._get

    def decode(body: bytes, payload: memoryview) -> Message:
        message = decode_body(body, payload)
        assert message.kind != "link.bye" or bulk_ended.wait(PATIENCE_S)
        return message

    async def scenario() -> None:
        async with network("process_group") as (a, b):

            def get(group: object, rank: int, size: int) -> memoryview:
                try:
                    return receive(group, rank, size)
                except RuntimeError:
                    if group is a.exchange._groups["bulk"]:
                        bulk_ended.set()
                    raise

            monkeypatch.setattr(ProcessGroupExchange, "_get", staticmethod(get))
            monkeypatch.setattr(sys.modules[ProcessGroupExchange.__module__], "decode_body", decode)
            await b.exchange.send_bulk(a.id, Message("bulk", {}))  # what receives next calls `get`
            await b.exchange.send(a.id, Message("farewell", {}))
            await b.exchange.close()
            await a.heard.until(lambda: bool(a.heard.reasons))
            assert [m.kind for _, m in a.heard.messages] == ["farewell"]
            assert a.heard.reasons == ["the peer left"]

    asyncio.run(scenario())


@each_kind
def test_a_killed_peer_is_down_at_once_and_nothing_of_it_stays(kind: str) -> None:
    async def scenario() -> None:
        peer = Peer(exchanges.loopback(exchanges.hub(), run_id=RUN, peer_id="a", founder=True), Recorder())
        if kind == "loopback":
            hub = exchanges.hub()
            peer.exchange = exchanges.loopback(hub, run_id=RUN, peer_id="a", founder=True)
            await peer.exchange.start(peer.heard)
            await exchanges.loopback(hub, run_id=RUN, peer_id="b", founder=False).start(Recorder())
            await peer.heard.until(lambda: len(peer.heard.links) == 1)
            hub.kill(PeerId("b"))
        else:
            if kind == "swarm":
                peer.exchange = exchanges.swarm(run_id=RUN)
                await peer.exchange.start(peer.heard)
                child = await spawn("swarm", join_string(peer))
            else:
                store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
                peer.exchange = ProcessGroupExchange(RUN, store=store, rank=0, world_size=2)
                child = await spawn("gloo", str(store.port))
                await peer.exchange.start(peer.heard)
            assert child.stdout is not None
            daemon_pid = int(await asyncio.wait_for(child.stdout.readline(), PATIENCE_S))
            await peer.heard.until(lambda: len(peer.heard.links) == 1)
            child.send_signal(signal.SIGKILL)
            await child.wait()
            if daemon_pid:
                await ended(daemon_pid)
        await peer.heard.until(lambda: len(peer.heard.links) == 2)
        assert [link for link, _ in peer.heard.links] == ["up", "down"]
        assert peer.exchange.connected() == frozenset()
        with pytest.raises(PeerUnreachableError):
            await peer.exchange.send(peer.heard.links[0][1], Message("late", {}))
        await peer.exchange.close()

    asyncio.run(scenario())


async def spawn(kind: str, where: str) -> asyncio.subprocess.Process:
    root = Path(exchanges.__file__).parents[2]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(CHILD),
        kind,
        where,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


async def ended(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    async with asyncio.timeout(PATIENCE_S):
        while key_of(pid) is not None:
            await asyncio.sleep(0.01)


# -- directory -------------------------------------------------------------------------------------


@each_kind
def test_one_peer_founds_and_the_others_are_told_how_to_reach_it(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, b):
            assert a.exchange.founder
            if kind == "swarm":
                assert not b.exchange.founder
                assert a.exchange.join_string.startswith(f"{RUN}@/")
                assert a.exchange.join_string.endswith(f"/p2p/{a.id}")

    asyncio.run(scenario())


@each_kind
def test_the_directory_returns_everybodys_latest_record(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind, 3) as (a, b, c):
            await asyncio.gather(*(p.exchange.publish(p.id.encode(), 60.0) for p in (a, b, c)))
            await b.exchange.publish(b"newer", 61.0)
            expected = {a.id: a.id.encode(), b.id: b"newer", c.id: c.id.encode()}
            for peer in (a, b, c):
                async with asyncio.timeout(PATIENCE_S):
                    while dict(await peer.exchange.discover()) != expected:
                        await asyncio.sleep(0.05)

    asyncio.run(scenario())


# -- signer ----------------------------------------------------------------------------------------


@each_kind
def test_signatures_are_bound_to_the_data_and_the_signer(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, b):
            signature = a.exchange.sign(b"roster")
            assert b.exchange.verify(a.id, b"roster", signature)
            assert a.exchange.verify(a.id, b"roster", signature)
            assert not b.exchange.verify(a.id, b"Roster", signature)
            assert not b.exchange.verify(b.id, b"roster", signature)
            assert not b.exchange.verify(a.id, b"roster", bytes(len(signature)))
            assert not b.exchange.verify(a.id, b"roster", b"")
            assert not b.exchange.verify(PeerId("nobody"), b"roster", signature)

    asyncio.run(scenario())


# -- links that end --------------------------------------------------------------------------------


@each_kind
def test_unknown_peers_are_unreachable(kind: str) -> None:
    async def scenario() -> None:
        async with network(kind) as (a, _):
            for call in (a.exchange.send, a.exchange.send_bulk):
                with pytest.raises(PeerUnreachableError, match="nobody"):
                    await call(PeerId("nobody"), Message("hello", {}))
            await a.exchange.disconnect(PeerId("nobody"))

    asyncio.run(scenario())


@each_kind
def test_a_failing_bulk_handler_takes_the_link_down_and_is_logged(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Recorder):
        async def on_bulk(self, peer: PeerId, message: Message) -> None:
            raise ValueError("a bug")

    async def scenario() -> None:
        async with network(kind) as (a, b):
            b.heard.__class__ = Failing
            await a.exchange.send_bulk(b.id, Message("bulk", {}))
            await b.heard.until(lambda: bool(b.heard.reasons))
            assert "a bug" in b.heard.reasons[0]

    asyncio.run(scenario())
    assert "a bug" in caplog.text


@each_kind
def test_close_is_idempotent_and_leaves_nothing(kind: str) -> None:
    async def scenario() -> None:
        children = set(children_of(os.getpid()))
        threads = set(threading.enumerate())
        async with network(kind) as (a, b):
            await a.exchange.publish(b"record", 60.0)
            await a.exchange.send_bulk(b.id, Message("bulk", {}, bytes(1000)))
            await asyncio.gather(a.exchange.close(), a.exchange.close())
            await a.exchange.close()
            with pytest.raises(PeerUnreachableError):
                await a.exchange.send(b.id, Message("late", {}))
        assert set(children_of(os.getpid())) == children
        assert {task for task in asyncio.all_tasks() if not task.done()} == {asyncio.current_task()}
        left = {
            t for t in set(threading.enumerate()) - threads if t.name.startswith(("lowcomm", "asyncio-wait"))
        }
        for thread in left:  # a thread that reported the end of a child may still be returning
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    asyncio.run(scenario())
