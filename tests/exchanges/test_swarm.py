"""What only the swarm has: addresses, identities, a daemon, and strangers."""

import asyncio
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from lowcomm import exchanges
from lowcomm.clock import SystemClock
from lowcomm.errors import (
    AddressError,
    JoinRefusedError,
    LowcommError,
    PeerUnreachableError,
    PortInUseError,
    ProtocolError,
    StorageError,
)
from lowcomm.exchanges import Message
from lowcomm.exchanges.frames import encode_frame
from lowcomm.exchanges.swarm.addresses import most_reachable
from lowcomm.exchanges.swarm.daemon import Daemon, DaemonOptions
from lowcomm.exchanges.swarm.directory import Directory, pack_value, signed_bytes
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.exchanges.swarm.folder import PrivateFolder
from lowcomm.exchanges.swarm.hivemind_node import HivemindNode, p2pd_program
from lowcomm.exchanges.swarm.host import same_ports
from lowcomm.exchanges.swarm.identity import Identity, IdentityFile, public_key, verify
from lowcomm.exchanges.swarm.link import STREAM_NAME
from lowcomm.exchanges.swarm.streams import PREAMBLE, Verdict
from lowcomm.types import PeerId
from tests.exchanges.networks import PATIENCE_S, RUN, Peer, Recorder, network

ID = PeerId("12D3KooWEKo3zysvWaVHoUdcBYijJHeTG4QAD6Ku67i8Yg9qmQZv")


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        ("10.0.0.1:31337", AddressError, "/ip4/203.0.113.5/tcp"),
        ("/ip4/10.0.0.1/tcp/31337", AddressError, "expected /ip4"),
        (f"/ip4/10.0.0.999/tcp/31337/p2p/{ID}", AddressError, "10.0.0.999"),
        (f"/ip4/10.0.0.1/tcp/70000/p2p/{ID}", AddressError, "70000"),
        ("/ip4/10.0.0.1/tcp/31337/p2p/QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC", AddressError, "12D3"),
        (f"/ip4/10.0.0.1/tcp/31337/p2p/{ID[:-1]}0", AddressError, "12D3"),
        (f"/ip4/10.0.0.1/tcp/31337/nonsense/p2p/{ID}", AddressError, "multiaddr"),
        (f"other-run@/ip4/10.0.0.1/tcp/31337/p2p/{ID}", JoinRefusedError, "'other-run'.*'contract'"),
    ],
)
def test_wrong_addresses_are_named_before_anything_starts(
    address: str, error: type[LowcommError], says: str
) -> None:
    async def scenario() -> None:
        exchange = exchanges.swarm(run_id=RUN, initial_peers=[address])
        with pytest.raises(error, match=says):
            await exchange.start(Recorder())
        assert exchange.daemon_pid is None

    asyncio.run(scenario())


def test_a_taken_port_is_named() -> None:
    async def scenario(port: int) -> None:
        exchange = exchanges.swarm(run_id=RUN, listen=[f"/ip4/127.0.0.1/tcp/{port}"])
        with pytest.raises(PortInUseError, match=str(port)):
            await exchange.start(Recorder())
        exchange = exchanges.swarm(run_id=RUN, listen=["/ip4/203.0.113.5/tcp/0"])
        with pytest.raises(AddressError, match=r"203\.0\.113\.5"):
            await exchange.start(Recorder())

    with socket.create_server(("127.0.0.1", 0)) as taken:
        asyncio.run(scenario(taken.getsockname()[1]))


def test_an_unreachable_initial_peer_is_reported_and_leaves_no_daemon() -> None:
    async def scenario() -> None:
        exchange = exchanges.swarm(
            run_id=RUN, initial_peers=[f"/ip4/127.0.0.1/tcp/9/p2p/{ID}"], connect_timeout_s=1.0
        )
        with pytest.raises(PeerUnreachableError, match=r"127\.0\.0\.1/tcp/9"):
            await exchange.start(Recorder())
        assert exchange.daemon_pid is None

    asyncio.run(scenario())


def test_a_peer_that_starts_later_is_reached(tmp_path: Path) -> None:
    async def scenario() -> None:
        file = IdentityFile(tmp_path / "key")
        file.close()
        with socket.create_server(("127.0.0.1", 0)) as free:
            listen = f"/ip4/127.0.0.1/tcp/{free.getsockname()[1]}"
        early = exchanges.swarm(run_id=RUN, initial_peers=[f"{listen}/p2p/{file.identity.peer_id}"])
        late = exchanges.swarm(run_id=RUN, listen=[listen], identity_path=tmp_path / "key")
        starting = asyncio.ensure_future(early.start(Recorder()))
        async with asyncio.timeout(PATIENCE_S):
            while early.daemon_pid is None:
                await asyncio.sleep(0.01)
        await late.start(Recorder())
        await starting
        assert early.connected() == {late.peer_id}
        await asyncio.gather(early.close(), late.close())

    asyncio.run(scenario())


def test_an_initial_peer_is_dialled_again_as_long_as_the_run_lives(tmp_path: Path) -> None:
    """Nobody tells of it: here no peer keeps in mind whom it has met."""

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        listen, key, heard = [f"/ip4/127.0.0.1/tcp/{port}"], tmp_path / "key", Recorder()
        first = exchanges.swarm(run_id=RUN, listen=listen, identity_path=key)
        await first.start(Recorder())
        initial = f"/dns4/localhost/tcp/{port}/p2p/{first.peer_id}"
        other = exchanges.swarm(run_id=RUN, initial_peers=[initial])
        await other.start(heard)
        await first.close()
        await heard.until(lambda: not other.connected())
        again = exchanges.swarm(run_id=RUN, listen=listen, identity_path=key)
        await again.start(Recorder())
        await heard.until(lambda: other.connected() == {first.peer_id})
        await asyncio.gather(other.close(), again.close())

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "initial", [(), (f"/ip4/127.0.0.1/tcp/9/p2p/{ID}",)], ids=["none", "one-that-is-gone"]
)
def test_a_peer_met_before_is_as_good_as_an_initial_one(initial: tuple[str, ...]) -> None:
    """What is no address, or of another run, is passed over."""
    junk = (
        "",
        "nonsense",
        f"{RUN}@/ip4/127.0.0.1/tcp/9/nonsense/p2p/{ID}",
        f"other@/ip4/127.0.0.1/tcp/9/p2p/{ID}",
    )

    async def scenario() -> None:
        lives, returns, heard = (
            exchanges.swarm(run_id=RUN),
            exchanges.swarm(run_id=RUN, initial_peers=initial),
            Recorder(),
        )
        await lives.start(Recorder())
        await returns.start(heard, [*junk, lives.join_string])
        await heard.until(lambda: returns.connected() == {lives.peer_id})
        assert returns.founder == (not initial)
        await asyncio.gather(lives.close(), returns.close())

    asyncio.run(scenario())


def test_only_initial_peers_have_to_answer() -> None:
    gone = f"{RUN}@/ip4/127.0.0.1/tcp/9/p2p/{ID}"

    async def scenario() -> None:
        founder = exchanges.swarm(run_id=RUN)
        await founder.start(Recorder(), [gone])
        assert not founder.connected()
        await founder.close()
        joiner = exchanges.swarm(
            run_id=RUN, initial_peers=[f"/ip4/127.0.0.1/tcp/19/p2p/{ID}"], connect_timeout_s=1.0
        )
        with pytest.raises(PeerUnreachableError, match="none of the initial peers"):
            await joiner.start(Recorder(), [gone])
        assert joiner.daemon_pid is None

    asyncio.run(scenario())


def test_p2pd_dials_from_a_port_of_its_own() -> None:
    """Or two peers that dial each other at once fail both, and may not try again for 5 s."""

    async def scenario() -> None:
        async with network("swarm", 1) as (only,):
            assert isinstance(only.exchange, SwarmExchange)
            environment = Path(f"/proc/{only.exchange.daemon_pid}/environ").read_bytes()
            assert b"LIBP2P_TCP_REUSEPORT=false" in environment.split(b"\0")

    asyncio.run(scenario())


@pytest.mark.parametrize("asked", [None, "7"])
def test_p2pd_leaves_half_of_the_cores_to_training(
    monkeypatch: pytest.MonkeyPatch, asked: str | None
) -> None:
    async def scenario() -> None:
        async with network("swarm", 1) as (only,):
            assert isinstance(only.exchange, SwarmExchange)
            environment = Path(f"/proc/{only.exchange.daemon_pid}/environ").read_bytes()
            half = max(1, len(os.sched_getaffinity(0)) // 2)
            assert f"GOMAXPROCS={asked or half}".encode() in environment.split(b"\0")

    if asked is None:
        monkeypatch.delenv("GOMAXPROCS", raising=False)
    else:
        monkeypatch.setenv("GOMAXPROCS", asked)
    asyncio.run(scenario())


def test_a_peer_of_another_run_refuses() -> None:
    async def scenario() -> None:
        async with network("swarm", 1) as (a,):
            other = exchanges.swarm(run_id="another", initial_peers=a.exchange.addresses)
            with pytest.raises(JoinRefusedError, match="another"):
                await other.start(Recorder())
            assert a.heard.links == []

    asyncio.run(scenario())


def test_losing_p2pd_takes_all_links_down_and_nothing_hangs() -> None:
    async def scenario() -> None:
        async with network("swarm") as (a, b):
            assert isinstance(a.exchange, SwarmExchange)
            assert a.exchange.daemon_pid is not None
            os.kill(a.exchange.daemon_pid, signal.SIGKILL)
            await asyncio.gather(*(p.heard.until(lambda p=p: bool(p.heard.reasons)) for p in (a, b)))
            with pytest.raises(PeerUnreachableError):
                await a.exchange.send(b.id, Message("late", {}))
            assert a.heard.links == [("up", b.id), ("down", b.id)]

    asyncio.run(scenario())


def test_p2pd_that_was_killed_comes_back_on_the_same_port() -> None:
    async def scenario() -> None:
        async with network("swarm") as (a, b):
            assert isinstance(a.exchange, SwarmExchange)
            addresses, killed = list(a.exchange.addresses), a.exchange.daemon_pid
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            await asyncio.gather(*(p.heard.until(lambda p=p: bool(p.heard.reasons)) for p in (a, b)))
            async with asyncio.timeout(PATIENCE_S):
                while True:  # as an island does: dial again until the other side is back
                    try:
                        await b.exchange.connect(a.id, addresses)
                        break
                    except PeerUnreachableError:
                        await asyncio.sleep(0.05)
            await b.exchange.send(a.id, Message("back", {}))
            await a.heard.until(lambda: any(m.kind == "back" for _, m in a.heard.messages))
            assert a.exchange.daemon_pid not in (None, killed)
            assert list(a.exchange.addresses) == addresses
            await a.exchange.publish(b"record", 60.0)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("listen", "found", "same"),
    [
        ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/4001/p2p/X", "/ip4/127.0.0.1/tcp/4001"),
        ("/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/10.0.0.5/udp/41/quic-v1/p2p/X", "/ip4/0.0.0.0/udp/41/quic-v1"),
        ("/ip4/0.0.0.0/tcp/31337", "/ip4/10.0.0.5/tcp/31337/p2p/X", "/ip4/0.0.0.0/tcp/31337"),
        ("/ip6/::1/tcp/0", "/ip4/127.0.0.1/tcp/4001/p2p/X", "/ip6/::1/tcp/0"),
    ],
)
def test_the_ports_of_a_p2pd_are_kept(listen: str, found: str, same: str) -> None:
    assert same_ports([listen], [found]) == (same,)


def test_quic() -> None:
    async def scenario() -> None:
        listen = ["/ip4/127.0.0.1/udp/0/quic-v1"]
        a, b = exchanges.swarm(run_id=RUN, listen=listen), None
        heard = Recorder()
        try:
            await a.start(Recorder())
            b = exchanges.swarm(run_id=RUN, listen=listen, initial_peers=[a.join_string])
            await b.start(heard)
            assert "quic-v1" in a.join_string
            a.admit(b.peer_id)
            await b.send_bulk(a.peer_id, Message("bulk", {}, bytes(1 << 20)))
        finally:
            await asyncio.gather(*(exchange.close() for exchange in (a, b) if exchange is not None))

    asyncio.run(scenario())


# -- strangers -------------------------------------------------------------------------------------


class Stranger:
    """A libp2p peer that speaks our protocol byte by byte, as far as it likes."""

    def __init__(self, daemon: Daemon, node: HivemindNode, identity: Identity) -> None:
        self.daemon, self.node, self.identity = daemon, node, identity
        self.streams: list[asyncio.StreamWriter] = []

    @classmethod
    async def start(cls, folder: Path, victim: PeerId, addresses: Sequence[str]) -> "Stranger":
        identity = Identity.generate()
        (folder / "key").write_bytes(identity.to_bytes())
        daemon = await Daemon.start(p2pd_program(), folder / "key", folder, DaemonOptions(), lambda _: None)
        node = await HivemindNode.attach(daemon.control_socket, daemon.pid)
        stranger = cls(daemon, node, identity)
        await node.serve(STREAM_NAME, stranger._accept)
        await node.connect(victim, addresses, 10.0)
        return stranger

    async def _accept(
        self, _peer: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Welcome every stream that the victim opens to us."""
        self.streams.append(writer)
        writer.write(PREAMBLE)
        await reader.read(1024)
        writer.write(bytes([Verdict.OK]))

    async def dial(self, victim: Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.node.open_stream(victim.id, STREAM_NAME, 10.0)
        assert await reader.readexactly(len(PREAMBLE)) == PREAMBLE
        self.streams.append(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in self.streams:
            writer.transport.abort()
        await self.node.close()
        await self.daemon.stop()


def opening(**fields: object) -> bytes:
    body = {"run": RUN, "channel": -1, "token": "t", "answer": "", **fields}
    return encode_frame(Message("link.open", body))[0]  # type: ignore[arg-type]


HUGE = struct.pack("!2sBBII", b"LC", 1, 0, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (opening(run="another"), bytes([Verdict.OTHER_RUN])),
        (opening(channel=0), bytes([Verdict.STALE])),
        (opening(answer="guess"), bytes([Verdict.STALE])),
        (opening(token=5), bytes([Verdict.MALFORMED])),
        (encode_frame(Message("hello", {}))[0], b""),
        (HUGE, b""),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
    ],
    ids=["run", "bulk-first", "answer", "malformed", "kind", "huge", "http"],
)
def test_strangers_are_refused(data: bytes, answer: bytes, tmp_path: Path, stage: "Stage") -> None:
    async def scenario() -> None:
        victim, stranger = stage.victim, stage.stranger
        reader, writer = await stranger.dial(victim)
        writer.write(data)
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.read() == answer
        assert victim.heard.links == []

    stage.run(scenario())


class Stage:
    """One victim and one stranger for several tests, in a loop that outlives each."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._runner.run(self._set_up(folder))

    async def _set_up(self, folder: Path) -> None:
        self.victim = Peer(exchanges.swarm(run_id=RUN), Recorder())
        await self.victim.exchange.start(self.victim.heard)
        self.stranger = await Stranger.start(folder, self.victim.id, self.victim.exchange.addresses)

    def run(self, scenario: "asyncio._CoroutineLike[None]") -> None:
        self._runner.run(scenario)

    async def _tear_down(self) -> None:
        await self.stranger.close()
        await self.victim.exchange.close()

    def close(self) -> None:
        self._runner.run(self._tear_down())
        self._runner.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> "Stage":
    stage = Stage(tmp_path_factory.mktemp("p2p"))
    yield stage  # type: ignore[misc]
    stage.close()


@pytest.mark.parametrize(
    "data", [HUGE, b"x" * 100, encode_frame(Message("k", {}))[0][:-1] + b"\xc1"], ids=["huge", "junk", "body"]
)
def test_a_member_that_breaks_the_protocol_is_dropped(data: bytes, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with network("swarm", 1) as (victim,):
            stranger = await Stranger.start(tmp_path, victim.id, victim.exchange.addresses)
            _, writer = await stranger.dial(victim)
            writer.write(opening() + encode_frame(Message("fine", {"a": 1}))[0] + data)
            await victim.heard.until(lambda: bool(victim.heard.reasons))
            assert [m.kind for _, m in victim.heard.messages] == ["fine"]
            assert victim.heard.links == [("up", stranger.node.peer_id), ("down", stranger.node.peer_id)]
            assert "protocol" in victim.heard.reasons[0]
            await stranger.close()

    asyncio.run(scenario())


def test_forged_directory_records_are_refused(stage: Stage) -> None:
    async def scenario() -> None:
        victim, stranger = stage.victim, stage.stranger
        await victim.exchange.publish(b"true", 60.0)
        directory = Directory(stranger.node, RUN, stranger.identity, SystemClock())
        key, until_s = f"lowcomm/1/{RUN}", SystemClock().wall_s() + 600.0
        # the stranger's own node checks nothing, unlike the victim's
        await stranger.node.start_dht(key, lambda *_: True)
        await stranger.node.meet(victim.id)

        mine = stranger.identity.sign("directory", signed_bytes(RUN, b"forged", until_s))
        forged = {
            "in another's name": (victim.id, pack_value(b"forged", mine), until_s),
            "unsigned": (victim.id, pack_value(b"forged", bytes(64)), until_s),
            "no envelope": (victim.id, b"forged", until_s),
            "expiration not signed": (stranger.node.peer_id, pack_value(b"forged", mine), until_s + 1),
            "no peer": ("somebody", pack_value(b"forged", mine), until_s),
            "too large": (stranger.node.peer_id, pack_value(bytes(20_000), mine), until_s),
        }
        for subkey, value, expires_s in forged.values():
            await stranger.node.store(key, subkey, value, expires_s)
        assert dict(await victim.exchange.discover()) == {victim.id: b"true"}
        await directory.publish(b"mine", 60.0)
        found = await victim.exchange.discover()
        assert dict(found) == {victim.id: b"true", stranger.node.peer_id: b"mine"}
        with pytest.raises(ProtocolError, match="16384"):
            await directory.publish(bytes(20_000), 60.0)

    stage.run(scenario())


def test_folders_of_killed_processes_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:  # a shorter path than pytest's
        monkeypatch.setattr("tempfile.tempdir", parent)
        live = PrivateFolder(SystemClock())
        stale, fresh = Path(parent, "lowcomm-p2p-stale"), Path(parent, "lowcomm-p2p-fresh")
        stale.mkdir()
        fresh.mkdir()
        for folder in (live.path, stale):
            os.utime(folder, (0, 0))
        second = PrivateFolder(SystemClock())
        assert set(Path(parent).iterdir()) == {live.path, second.path, fresh}
        for one in (live, second):
            one.remove()
            one.remove()
        assert list(Path(parent).iterdir()) == [fresh]


@pytest.mark.parametrize("length", [30, 55, 56, 200])
def test_a_socket_fits_below_any_temporary_folder(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems make long ones; the path of a socket has 103 bytes on all systems."""
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        parent = Path(short, "x" * (length - len(short) - 1))
        parent.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(parent))
        folder = PrivateFolder(SystemClock())
        try:
            assert len(str(folder.path / "p2pclient-0123456789A.sock")) <= 103
            assert (folder.path.parent == parent) == (length <= 55)
        finally:
            folder.remove()


# -- identities ------------------------------------------------------------------------------------


def test_an_identity_file_is_private_stable_and_locked(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = IdentityFile(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError, match="another process"):
        IdentityFile(path)
    first.close()
    second = IdentityFile(path)
    assert second.identity.peer_id == first.identity.peer_id
    second.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


KEY = Identity.generate().to_bytes()


@pytest.mark.parametrize(
    "data",
    [b"", b"x" * 68, KEY[:-1] + bytes([KEY[-1] ^ 1])],
    ids=["empty", "no-key", "another-end"],
)
def test_a_corrupt_identity_file_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(StorageError, match="ed25519"):
        IdentityFile(path)


def test_an_identity_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(Identity.generate().to_bytes())
    path.chmod(0o644)
    with pytest.raises(StorageError, match="chmod 600"):
        IdentityFile(path)
    with pytest.raises(StorageError, match="writable"):
        IdentityFile(tmp_path / "missing" / "key")


def test_a_signature_holds_for_one_domain_only() -> None:
    identity = Identity.generate()
    signature = identity.sign("message", b"data")
    assert verify(identity.peer_id, "message", b"data", signature)
    assert not verify(identity.peer_id, "directory", b"data", signature)
    assert public_key(identity.peer_id).public_bytes_raw() == identity.to_bytes()[-32:]


def test_the_join_string_prefers_what_most_can_reach() -> None:
    own, lan, public = (f"/ip4/{ip}/tcp/1/p2p/{ID}" for ip in ("127.0.0.1", "192.168.1.2", "8.8.8.8"))
    assert most_reachable([own, lan, public]) == public
    assert most_reachable([own, lan]) == lan
    assert most_reachable([own]) == own
