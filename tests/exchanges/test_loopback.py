"""What only the loopback has: peers in threads, lost messages, and the package's lazy factories."""

import asyncio
import subprocess
import sys
import threading

import pytest

from lowcomm import exchanges
from lowcomm.errors import ExchangeError, PeerUnreachableError
from lowcomm.exchanges import Message
from lowcomm.exchanges.loopback import WINDOW, LoopbackExchange
from lowcomm.types import PeerId
from tests.exchanges.networks import PATIENCE_S, RUN, Recorder


def test_factories_stay_factories_and_the_package_stays_light() -> None:
    assert all(callable(getattr(exchanges, name)) for name in exchanges.__all__)
    hub = exchanges.hub()
    for name in ("a", "b"):
        assert exchanges.loopback(hub, run_id=RUN, peer_id=name, founder=True).peer_id == name
    heavy = ("torch", "hivemind", "asyncio")
    code = f"import sys, lowcomm.exchanges; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_peers_in_threads_of_their_own() -> None:
    hub = exchanges.hub()
    started, failures = threading.Barrier(3), []

    async def live(name: str) -> None:
        exchange, heard = exchanges.loopback(hub, run_id=RUN, peer_id=name, founder=name == "a"), Recorder()
        if name == "a":
            await exchange.start(heard)
        await asyncio.to_thread(started.wait, PATIENCE_S)
        if name != "a":
            await exchange.start(heard)
        others = {"a", "b", "c"} - {name}
        for other in sorted(others):
            async with asyncio.timeout(PATIENCE_S):
                while other not in exchange.connected():
                    try:
                        await exchange.connect(PeerId(other), ())
                    except PeerUnreachableError:
                        await asyncio.sleep(0.001)
        for i in range(3 * WINDOW):
            for other in others:
                await exchange.send(PeerId(other), Message("control", {"i": i}))
                await exchange.send_bulk(PeerId(other), Message("bulk", {"i": i}, b"x" * 1000))
        await heard.until(lambda: len(heard.messages) == len(heard.bulk) == 6 * WINDOW)
        for other in others:
            assert [m.body["i"] for p, m in heard.messages if p == other] == list(range(3 * WINDOW))
        assert sorted(heard.links) == sorted(("up", other) for other in others)
        await asyncio.to_thread(started.wait, PATIENCE_S)
        await exchange.close()

    def run(name: str) -> None:
        try:
            asyncio.run(live(name))
        except BaseException as error:
            failures.append(error)
            started.abort()

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_filter_loses_or_replaces_messages_and_a_cut_link_can_be_made_anew() -> None:
    async def scenario() -> None:
        hub, heard = exchanges.hub(), Recorder()
        a = exchanges.loopback(hub, run_id=RUN, peer_id="a", founder=True)
        b = exchanges.loopback(hub, run_id=RUN, peer_id="b", founder=False)
        await a.start(heard)
        await b.start(Recorder())
        hub.filter = lambda sender, receiver, message: (
            Message("replaced", {}) if message.kind == "replace" else message.kind != "lose"
        )
        for kind in ("lose", "keep", "replace"):
            await b.send(a.peer_id, Message(kind, {}))
        for _ in range(2 * WINDOW):  # lost bulk messages free their place
            await b.send_bulk(a.peer_id, Message("lose", {}))
        await heard.until(lambda: len(heard.messages) == 2)
        assert [m.kind for _, m in heard.messages] == ["keep", "replaced"]
        hub.cut(a.peer_id, b.peer_id)
        await heard.until(lambda: len(heard.links) == 2)
        assert heard.reasons == ["the link was cut"]
        await b.connect(a.peer_id, ())
        assert b.connected() == {a.peer_id}
        await asyncio.gather(a.close(), b.close())

    asyncio.run(scenario())


def test_names_are_unique_and_a_newcomer_needs_somebody_to_join() -> None:
    async def scenario() -> None:
        hub = exchanges.hub()
        lonely = LoopbackExchange(hub, RUN, PeerId("a"), founder=False, join_timeout_s=0.0)
        with pytest.raises(PeerUnreachableError, match="founder"):
            await lonely.start(Recorder())
        a = exchanges.loopback(hub, run_id=RUN, peer_id="a", founder=True)
        await a.start(Recorder())
        with pytest.raises(ExchangeError, match="of this name"):
            await exchanges.loopback(hub, run_id=RUN, peer_id="a", founder=True).start(Recorder())
        await a.close()

    asyncio.run(scenario())
