"""The run's directory in the DHT: one signed record per peer, and nothing else.

Whoever can dial a DHT node can write to it. So every node keeps and returns only records of this
run whose subkey is a peer id and whose signature, over the run, the record and its expiration, was
made by the key in that id.
"""

from __future__ import annotations

from collections.abc import Callable

import msgpack

from lowcomm.clock import Clock
from lowcomm.errors import ExchangeError, ProtocolError
from lowcomm.exchanges.swarm.hivemind_node import HivemindNode
from lowcomm.exchanges.swarm.identity import Gatekeeper, Identity, verify
from lowcomm.types import PeerId

MAX_RECORD_BYTES = 16 << 10
MAX_TTL_S = 600.0
MAX_STRANGE_BYTES = 1 << 20
"""Records of peers without a link to this one take so much together; identities cost nothing, so a flood
of them must be bounded. Those with a link are always taken."""

_ENVELOPE_BYTES = 1024
_DOMAIN = "directory"


class Directory:
    """Publishes this peer's record and finds the others'."""

    def __init__(
        self,
        node: HivemindNode,
        run_id: str,
        identity: Identity,
        clock: Clock,
        gate: Gatekeeper | None = None,
        linked: Callable[[PeerId], bool] = lambda peer: False,
    ) -> None:
        self._gate, self._linked = gate, linked
        self._node, self._run_id, self._identity, self._clock = node, run_id, identity, clock
        self._key = f"lowcomm/1/{run_id}"
        self._strange: dict[PeerId, tuple[float, int]] = {}

    async def start(self) -> None:
        """Take part in the DHT."""
        await self._node.start_dht(self._key, self._check)

    async def publish(self, record: bytes, ttl_s: float) -> None:
        """Sign and store this peer's record.

        Raises:
            ProtocolError: above 16 KiB or ten minutes.
            ExchangeError: no node of the DHT took it.
        """
        if len(record) > MAX_RECORD_BYTES or not 0 < ttl_s <= MAX_TTL_S:
            raise ProtocolError(
                f"directory: expected a record of at most {MAX_RECORD_BYTES} bytes for at most "
                f"{MAX_TTL_S:g} s, got {len(record)} bytes for {ttl_s:g} s"
            )
        expires_s = self._clock.wall_s() + ttl_s
        signature = self._identity.sign(_DOMAIN, signed_bytes(self._run_id, record, expires_s))
        shown = self._gate.show(self._identity) if self._gate else ""
        value = pack_value(record, signature, shown)
        if not await self._node.store(self._key, self._identity.peer_id, value, expires_s):
            raise ExchangeError("the directory did not take this peer's record; is its clock right?")

    async def discover(self) -> dict[PeerId, bytes]:
        """The records of all peers, by their ids; what does not verify is left out."""
        records = {}
        for name, (value, expires_s) in (await self._node.find(self._key)).items():
            record = self._read(PeerId(name), value, expires_s)
            if record is not None:
                records[PeerId(name)] = record
        return dict(sorted(records.items()))

    def _check(self, peer: PeerId, value: bytes, expires_s: float) -> bool:
        now_s = self._clock.wall_s()
        if self._read(peer, value, expires_s) is None or not now_s < expires_s < now_s + 2 * MAX_TTL_S:
            return False
        if peer == self._identity.peer_id or self._linked(peer):
            return True
        self._strange = {p: kept for p, kept in self._strange.items() if kept[0] > now_s and p != peer}
        if sum(size for _, size in self._strange.values()) + len(value) > MAX_STRANGE_BYTES:
            return False
        self._strange[peer] = (expires_s, len(value))
        return True

    def _read(self, peer: PeerId, value: object, expires_s: float) -> bytes | None:
        """The record in a value of the DHT, or None if it isn't `peer`'s."""
        if not isinstance(value, bytes) or len(value) > MAX_RECORD_BYTES + _ENVELOPE_BYTES:
            return None
        try:
            parts = msgpack.unpackb(value)
        except (ValueError, msgpack.UnpackException):
            return None
        if not isinstance(parts, list) or len(parts) != 3:
            return None
        record, signature, shown = parts
        if not isinstance(record, bytes) or not isinstance(signature, bytes):
            return None
        if self._gate is not None and not self._gate.admits(peer, shown):
            return None
        signed = signed_bytes(self._run_id, record, expires_s)
        return record if verify(peer, _DOMAIN, signed, signature) else None


def signed_bytes(run_id: str, record: bytes, expires_s: float) -> bytes:
    """What the signature of a record is over."""
    packed: bytes = msgpack.packb([run_id, record, float(expires_s)])
    return packed


def pack_value(record: bytes, signature: bytes, shown: str = "") -> bytes:
    """A record, its signature and its peer's pass, as they stand in the DHT."""
    packed: bytes = msgpack.packb([record, signature, shown])
    return packed
