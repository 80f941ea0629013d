"""What the links stand on: p2pd, the DHT node on it, the run's directory; started again if p2pd dies.

A p2pd that was killed, or ran out of memory, comes back with the same identity on the same ports,
so that the addresses which others know stay right. Meanwhile this peer has no links, and trains on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from lowcomm.clock import SystemClock
from lowcomm.errors import ExchangeError, PeerUnreachableError
from lowcomm.exchanges.swarm.addresses import endpoint_of
from lowcomm.exchanges.swarm.daemon import Daemon, DaemonOptions
from lowcomm.exchanges.swarm.directory import Directory
from lowcomm.exchanges.swarm.folder import PrivateFolder
from lowcomm.exchanges.swarm.hivemind_node import HivemindNode, p2pd_program
from lowcomm.exchanges.swarm.identity import Gatekeeper, Identity

logger = logging.getLogger(__name__)

_AGAIN_S = (0.0, 0.2, 1.0, 5.0, 30.0)
"""Pauses before p2pd is started again; the last one from then on."""
_START_S = 30.0


class Host:
    """p2pd of one peer and what runs on it; call only from one event loop.

    Args:
        on_down: called with a reason in words when p2pd has died.
        on_revived: awaited with the new node when it runs again.

    Attributes:
        node, directory: of the newest p2pd; dead while it is being started again.
        addresses: where it listens or what it announces, each with the peer id at its end.
    """

    node: HivemindNode
    directory: Directory

    def __init__(
        self,
        run_id: str,
        identity: Identity,
        options: DaemonOptions,
        gate: Gatekeeper | None,
        *,
        on_down: Callable[[str], None],
        on_revived: Callable[[HivemindNode], Awaitable[None]],
    ) -> None:
        self._run_id, self._identity, self._options, self._gate = run_id, identity, options, gate
        self._on_down, self._on_revived = on_down, on_revived
        self._folder = PrivateFolder(SystemClock())
        self._daemon: Daemon | None = None
        self._attached: HivemindNode | None = None
        self._stands = False
        self._reviving: asyncio.Task[None] | None = None
        self.addresses: tuple[str, ...] = ()

    @property
    def pid(self) -> int | None:
        """The process id of p2pd, while it runs."""
        return self._daemon.pid if self._daemon is not None and self._daemon.alive else None

    async def start(self) -> None:
        """Start p2pd and what runs on it.

        Raises:
            ExchangeError: p2pd does not work.
        """
        await self._raise(self._options)
        self._stands = True

    async def refresh_addresses(self) -> None:
        """Ask p2pd for its addresses; relays and routers change them.

        Raises:
            PeerUnreachableError: p2pd does not answer.
        """
        if self._stands and not (self._folder.whole and self.node.has_sockets):
            # a program that cleans temporary folders: no link can be made without the sockets
            logger.error("%s was emptied while in use; p2pd is started again", self._folder.path)
            daemon = self._daemon
            if daemon is not None:
                daemon.kill()
            raise PeerUnreachableError("the sockets of this peer's p2pd were deleted")
        self._folder.stay_young()
        self.addresses = tuple(await self.node.addresses())

    async def close(self) -> None:
        """End p2pd and all that runs on it."""
        self._stands = False
        if self._reviving is not None:
            self._reviving.cancel()
            await asyncio.gather(self._reviving, return_exceptions=True)
        await self._fell()
        self._folder.remove()

    async def _raise(self, options: DaemonOptions) -> None:
        if not self._folder.whole:
            self._folder.remove()
            self._folder = PrivateFolder(SystemClock())
        key_file = self._folder.path / "key"  # p2pd's copy; the folder is ours alone
        for left in ("key", "p2pd.sock"):
            (self._folder.path / left).unlink(missing_ok=True)
        key_file.touch(mode=0o600)
        key_file.write_bytes(self._identity.to_bytes())
        self._daemon = await Daemon.start(
            p2pd_program(), key_file, self._folder.path, options, self._on_daemon_exit
        )
        key_file.unlink()
        self._attached = self.node = await HivemindNode.attach(
            self._daemon.control_socket, self._daemon.pid, closed=self._gate is not None
        )
        if self.node.peer_id != self._identity.peer_id:
            raise ExchangeError(f"p2pd took the name {self.node.peer_id}, not {self._identity.peer_id}")
        await self.refresh_addresses()
        members = self.node.callers.members
        self.directory = Directory(
            self.node, self._run_id, self._identity, SystemClock(), self._gate, members.__contains__
        )
        await self.directory.start()

    async def _fell(self) -> None:
        """End what is left of the last p2pd."""
        node, daemon = self._attached, self._daemon
        self._attached = self._daemon = None
        if node is not None:
            await node.close()
        if daemon is not None:
            await daemon.stop()

    def _on_daemon_exit(self, reason: str) -> None:
        if self._stands:  # else whoever is starting it finds out, too
            self._stands = False
            self._on_down(reason)
            self._reviving = asyncio.get_running_loop().create_task(self._revive())

    async def _revive(self) -> None:
        options = replace(self._options, listen=same_ports(self._options.listen, self.addresses))
        attempt = 0
        while True:
            await asyncio.sleep(_AGAIN_S[min(attempt, len(_AGAIN_S) - 1)])
            await self._fell()
            try:
                async with asyncio.timeout(_START_S):
                    await self._raise(options)
                    await self._on_revived(self.node)
                if self.pid is None:
                    raise ExchangeError("p2pd ended again")
            except (ExchangeError, OSError, EOFError, TimeoutError) as error:
                reason = str(error) or "it takes too long"
                logger.error("p2pd can't be started again: %s; trying on", reason)
                self._on_down(f"this peer's p2pd can't be started again: {reason}")
                attempt += 1
                if attempt == len(_AGAIN_S) - 1:
                    options = self._options  # a port may be taken by now; others learn of a new one by DHT
            else:
                self._stands = True
                logger.error("p2pd runs again; the links come back")
                return


def same_ports(listen: Sequence[str], addresses: Sequence[str]) -> tuple[str, ...]:
    """Listen addresses with each port 0 replaced by the port that was found for it.

    Args:
        addresses: where p2pd was reached, each `LISTEN/p2p/ID` with its own port and host.
    """
    found = []
    for address in listen:
        parts = address.split("/")
        if endpoint_of(address).port == 0:
            same = (a.split("/") for a in addresses)
            ports = [p[4] for p in same if p[1] == parts[1] and [p[3], *p[5:-2]] == [parts[3], *parts[5:]]]
            parts[4] = ports[0] if ports else "0"
        found.append("/".join(parts))
    return tuple(found)
