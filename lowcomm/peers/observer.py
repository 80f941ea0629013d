"""Peers without a model: the bootstrap seed, and the observer behind `lowcomm status`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from lowcomm.errors import ExchangeError, JoinRefusedError, ProtocolError
from lowcomm.exchanges.base import Exchange, Message
from lowcomm.exchanges.fields import Fields
from lowcomm.peers.notice import Notice
from lowcomm.peers.peer import State
from lowcomm.peers.table import Peers
from lowcomm.types import PeerId, PeerStatus

logger = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
LEASE_S = 10.0
SETTLE_S = 1.0
"""An observer returns once nothing new has come for so long."""


class Bystander:
    """Greets and gossips like any peer, but holds no outer state and takes part in no round."""

    def __init__(self, exchange: Exchange, role: str) -> None:
        self.changed = Notice()
        self.refusals: list[str] = []
        self.fatal: ExchangeError | None = None
        self.peers = Peers(
            exchange,
            shared={},
            layout=(),
            state=State(role=role, phase="training"),
            heartbeat_s=HEARTBEAT_S,
            lease_s=LEASE_S,
            on_change=self.changed.notify,
            on_refused=self._on_refused,
        )
        self._exchange = exchange

    def on_message(self, peer: PeerId, message: Message) -> None:
        """Membership messages only; rounds pass by."""
        handlers = {
            "hello": self.peers.on_hello,
            "peers": self.peers.on_peers,
            "state": self.peers.on_state,
            "refuse": self.peers.on_refuse,
            "ping": self.peers.on_ping,
            "pong": self.peers.on_pong,
            "doubt": self.peers.on_doubt,
        }
        handler = handlers.get(message.kind)
        try:
            self.peers.heard(peer)
            if self.peers.admit_message(peer, message.kind) and handler is not None:
                handler(peer, Fields(message.kind, message.body))
        except ProtocolError as error:
            logger.warning("peer %s broke the protocol and is dropped: %s", peer, error)
            task = asyncio.get_running_loop().create_task(self._exchange.disconnect(peer))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def on_bulk(self, peer: PeerId, message: Message) -> None:
        """Nobody has reason to send bulk data here; it is dropped."""

    def on_peer_up(self, peer: PeerId) -> None:
        """A link came up."""
        self.peers.on_peer_up(peer)

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        """A link broke."""
        self.peers.on_peer_down(peer)

    def on_fatal(self, error: ExchangeError) -> None:
        """This peer has to go."""
        self.fatal = error
        self.changed.notify()

    def _on_refused(self, peer: PeerId, reasons: list[str]) -> None:
        self.refusals.append(f"{peer}: " + "; ".join(reasons))
        self.changed.notify()


async def run_seed(exchange: Exchange, on_address: Callable[[str], None]) -> None:
    """Be a bootstrap peer until cancelled.

    Args:
        exchange: not started; closed when this ends.
        on_address: called with the shared string that islands join with.

    Raises:
        JoinRefusedError: another live process uses its identity.
    """
    seed = Bystander(exchange, "seed")
    try:
        await exchange.start(seed)
        seed.peers.start()
        on_address(exchange.join_string)
        while seed.fatal is None:
            await seed.changed.wait(HEARTBEAT_S)
        raise seed.fatal
    finally:
        await seed.peers.stop()
        await exchange.close()


async def observe(exchange: Exchange, timeout_s: float) -> list[PeerStatus]:
    """Look at the swarm: join without taking part, see who is there, leave.

    Args:
        exchange: not started, with initial peers; closed when this returns.
        timeout_s: look for at most so long.

    Raises:
        ExchangeError: no initial peer can be reached.
        JoinRefusedError: the peers speak another protocol version.
    """
    async with _observing(exchange, timeout_s) as look:
        return look()


async def watch(
    exchange: Exchange, timeout_s: float, every_s: float, show: Callable[[list[PeerStatus]], None]
) -> None:
    """Look at the swarm again and again, until cancelled.

    Args:
        exchange: as for `observe`.
        timeout_s: for the first look.
        every_s: between two looks.
        show: called with what is seen; peers that leave are in it no more.

    Raises:
        ExchangeError, JoinRefusedError: as `observe`, at the first look.
    """
    async with _observing(exchange, timeout_s) as look:
        while True:
            show(look())
            await asyncio.sleep(every_s)


@asynccontextmanager
async def _observing(exchange: Exchange, timeout_s: float) -> AsyncIterator[Callable[[], list[PeerStatus]]]:
    """An observer in the swarm, once nothing new has come for a moment; gives what shows the others."""
    observer = Bystander(exchange, "observer")

    def look() -> list[PeerStatus]:
        return [status for status in observer.peers.statuses() if status.peer != exchange.peer_id]

    try:
        await exchange.start(observer)
        observer.peers.start()
        loop = asyncio.get_running_loop()
        give_up_s = settled_s = loop.time() + timeout_s
        seen: set[PeerId] = set()
        while loop.time() < min(give_up_s, settled_s):
            await observer.changed.wait(0.2)
            if observer.refusals:
                raise JoinRefusedError(observer.refusals[0])
            now_seen = {status.peer for status in look()}
            if now_seen != seen or observer.peers.dialing():
                seen, settled_s = now_seen, loop.time() + SETTLE_S
        yield look
    finally:
        await observer.peers.stop()
        await exchange.close()
