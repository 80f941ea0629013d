"""Islands in threads over the real swarm (p2pd on loopback), some of which lie in what they send."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lowcomm.exchanges.base import Message, Receiver
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.exchanges.swarm.identity import Identity
from lowcomm.types import PeerId
from tests.outer.swarm import Lie, Swarm

PATIENCE_S = 120.0
"""Five daemons on a busy machine take their time; nothing is measured."""


class LyingSwarm(SwarmExchange):
    """The production exchange of a member that says something else."""

    lie: Lie

    async def send(self, peer: PeerId, message: Message) -> None:
        for said in self._instead(message):
            await super().send(peer, said)

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        for said in self._instead(message):
            await super().send_bulk(peer, said)

    def _instead(self, message: Message) -> list[Message]:
        said = self.lie(message)
        return said if isinstance(said, list) else [said]


@dataclass
class RealSwarm(Swarm):
    """As `Swarm`, with an identity file for each island, whose peer ids ascend with their numbers.

    Attributes:
        folder: where the identities lie.
        ids: the peer id of each island.
    """

    folder: Path = field(kw_only=True)
    ids: list[PeerId] = field(default_factory=list)
    _address: str = ""

    def __post_init__(self) -> None:
        for number, identity in enumerate(
            sorted((Identity.generate() for _ in range(self.islands)), key=lambda identity: identity.peer_id)
        ):
            file = self.folder / f"{number}.key"
            file.touch(0o600)
            file.write_bytes(identity.to_bytes())
            self.ids.append(identity.peer_id)

    def exchange(self, island: int, *, founder: bool) -> SwarmExchange:
        """See `Swarm`."""
        lie = self.lies.get(island)
        kind = _Founder if founder else SwarmExchange if lie is None else LyingSwarm
        exchange = kind(
            "attacked",
            initial_peers=[] if founder else [self._address],
            identity_path=self.folder / f"{island}.key",
            connect_timeout_s=PATIENCE_S,
            relay=False,
        )
        if isinstance(exchange, _Founder):
            exchange.swarm = self
        elif isinstance(exchange, LyingSwarm) and lie is not None:
            exchange.lie = lie
        return exchange

    def open(self, address: str) -> None:
        """Others may join through this address from now on."""
        self._address = address
        self.founded.set()


class _Founder(SwarmExchange):
    swarm: RealSwarm

    async def start(self, receiver: Receiver) -> None:
        await super().start(receiver)
        self.swarm.open(self.join_string)
