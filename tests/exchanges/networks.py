"""Linked peers of each kind of exchange, and a receiver that notes what it hears."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from lowcomm import exchanges
from lowcomm.errors import ExchangeError
from lowcomm.exchanges import Exchange, Message
from lowcomm.exchanges.process_group import ProcessGroupExchange
from lowcomm.exchanges.shaped import Fate, ShapedExchange
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.types import PeerId

RUN = "contract"
PATIENCE_S = 30.0
"""No test waits so long unless something hangs."""


@dataclass
class Recorder:
    """A receiver. `gate` holds back bulk messages while it is clear."""

    messages: list[tuple[PeerId, Message]] = field(default_factory=list)
    bulk: list[tuple[PeerId, Message]] = field(default_factory=list)
    begun: int = 0
    links: list[tuple[str, PeerId]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    fatal: ExchangeError | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def on_message(self, peer: PeerId, message: Message) -> None:
        self.messages.append((peer, message))
        self.changed.set()

    async def on_bulk(self, peer: PeerId, message: Message) -> None:
        self.begun += 1
        self.changed.set()
        await self.gate.wait()
        self.bulk.append((peer, message))
        self.changed.set()

    def on_peer_up(self, peer: PeerId) -> None:
        self.links.append(("up", peer))
        self.changed.set()

    def on_peer_down(self, peer: PeerId, reason: str) -> None:
        self.links.append(("down", peer))
        self.reasons.append(reason)
        self.changed.set()

    def on_fatal(self, error: ExchangeError) -> None:
        self.fatal = error
        self.changed.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for what a callback brings about."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                self.changed.clear()
                await self.changed.wait()


class FairWeather:
    """A shaper that lets everything through."""

    def fate(self, sender: PeerId, receiver: PeerId, message: Message, now_s: float) -> Fate:
        return Fate()


@dataclass
class Peer:
    exchange: Exchange
    heard: Recorder

    @property
    def id(self) -> PeerId:
        return self.exchange.peer_id


@contextlib.asynccontextmanager
async def network(kind: str, count: int = 2) -> AsyncIterator[list[Peer]]:
    """`count` started peers, each linked to all others and admitting them."""
    peers: list[Peer] = []
    try:
        if kind in GROUPS:
            peers += [Peer(exchange, Recorder()) for exchange in GROUPS[kind](count)]
            await asyncio.gather(*(peer.exchange.start(peer.heard) for peer in peers))
        else:
            hub = exchanges.hub()
            for number in range(count):
                if kind == "swarm":
                    exchange: Exchange = exchanges.swarm(
                        run_id=RUN, initial_peers=[join_string(p) for p in peers[:1]]
                    )
                else:
                    exchange = exchanges.loopback(
                        hub, run_id=RUN, peer_id=f"peer-{number}", founder=number == 0
                    )
                    exchange = ShapedExchange(exchange, FairWeather()) if kind == "shaped" else exchange
                peers.append(Peer(exchange, Recorder()))
                await exchange.start(peers[-1].heard)
        await asyncio.gather(
            *(a.exchange.connect(b.id, b.exchange.addresses) for a in peers for b in peers if a is not b)
        )
        for a in peers:
            for b in peers:
                a.exchange.admit(b.id)
        yield peers
    finally:
        await asyncio.gather(*(peer.exchange.close() for peer in peers))


def process_groups(count: int) -> list[ProcessGroupExchange]:
    """Ranks of one group in this process; each needs a store of its own, since `wait` locks it."""
    hosted = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [dist.TCPStore("127.0.0.1", hosted.port, wait_for_workers=False) for _ in range(count)]
    stores[0] = hosted
    return [
        ProcessGroupExchange(RUN, store=store, rank=rank, world_size=count)
        for rank, store in enumerate(stores)
    ]


GROUPS: dict[str, Callable[[int], Sequence[Exchange]]] = {
    # those whose peers are all there from the start
    "process_group": process_groups,
}
KINDS = ("loopback", "swarm", "shaped", *GROUPS)


def join_string(peer: Peer) -> str:
    assert isinstance(peer.exchange, SwarmExchange)
    return peer.exchange.join_string
