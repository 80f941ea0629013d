"""The folder of p2pd's sockets: where it is made, and what happens when somebody deletes it."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from lowcomm.clock import SystemClock
from lowcomm.errors import ExchangeError, PeerUnreachableError, StorageError
from lowcomm.exchanges import Message
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.exchanges.swarm.folder import PrivateFolder
from lowcomm.storage.files import require_temporary_folder
from tests.exchanges.networks import PATIENCE_S, network


def socket_folder(exchange: SwarmExchange) -> Path:
    """From p2pd's command line."""
    words = Path(f"/proc/{exchange.daemon_pid}/cmdline").read_text().split("\0")
    (listen,) = (word for word in words if word.startswith("-listen=/unix"))
    return Path(listen.removeprefix("-listen=/unix")).parent


@pytest.mark.parametrize("what", ["folder", "sockets"])
def test_a_temporary_folder_that_is_cleaned_costs_a_restart_of_p2pd(what: str) -> None:
    async def scenario() -> None:
        async with network("swarm") as (a, b):
            assert isinstance(a.exchange, SwarmExchange)
            addresses, before = list(a.exchange.addresses), a.exchange.daemon_pid
            folder = socket_folder(a.exchange)
            if what == "folder":
                shutil.rmtree(folder)
            else:
                for item in folder.glob("*.sock"):
                    item.unlink()
            with pytest.raises(PeerUnreachableError, match="sockets of this peer's p2pd were deleted"):
                await a.exchange.publish(b"record", 60.0)
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
            assert a.exchange.daemon_pid not in (None, before)
            await a.exchange.publish(b"record", 60.0)

    asyncio.run(scenario())


def test_what_is_in_use_looks_used() -> None:
    """Programs that clean temporary folders go by age; systemd's leaves locked ones alone."""

    async def scenario() -> None:
        async with network("swarm") as (a, _):
            assert isinstance(a.exchange, SwarmExchange)
            folder = socket_folder(a.exchange)
            items = [folder, *folder.iterdir()]
            for item in items:
                os.utime(item, (0, 0))
            try:
                await a.exchange.publish(b"record", 60.0)
            except ExchangeError:
                pass  # nobody took it; the folder was looked after before
            assert all(item.stat().st_mtime > 0 for item in items)

    asyncio.run(scenario())


def unusable(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.socket.bind

    def refuse(self: socket.socket, address: str) -> None:
        if address.startswith(f"{folder}/"):
            raise PermissionError(1, "Operation not permitted")
        bind(self, address)

    if kind == "no-sockets":  # as on CIFS or /mnt/c of WSL
        monkeypatch.setattr(socket.socket, "bind", refuse)
    else:
        folder.rmdir()


@pytest.mark.parametrize("kind", ["no-sockets", "gone"])
def test_another_temporary_folder_is_taken_where_the_usual_one_is_of_no_use(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        bad, good = Path(short, "bad"), Path(short, "good")
        bad.mkdir()
        good.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(bad))
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(good))
        unusable(kind, bad, monkeypatch)
        folder = PrivateFolder(SystemClock())
        assert folder.path.parent == good
        folder.remove()
        assert list(good.iterdir()) == []
        assert not bad.exists() or list(bad.iterdir()) == []


def test_no_temporary_folder_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(sys.modules[PrivateFolder.__module__], "_OTHERS", ("/nowhere", "/proc"))
    with pytest.raises(StorageError, match=r"found none in TMPDIR, /tmp and /var/tmp; set TMPDIR"):
        require_temporary_folder()
    with pytest.raises(
        StorageError, match=r"none can be made in /nowhere \(.*\), /proc \(.*\); set TMPDIR"
    ) as e:
        PrivateFolder(SystemClock())
    assert "\n" not in str(e.value)
