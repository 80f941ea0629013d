"""An operator's signed decision: who may decide next, where most of those who may are lost for good.

A mandate names, for each fragment it is about, the outer step and the head after it, and the peers that
decide what follows: more than half of them take the place of more than half of the last participants. It
counts for that one outer step; as a head never comes again, so does no mandate (docs/design/0019-rounds.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgpack

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import MAX_NAME, Fields, checked_digest, checked_int
from lowcomm.ledger.entry import MAX_PARTICIPANTS, MAX_TOTAL_TOKENS, hash_bytes
from lowcomm.types import Digest, Json, PeerId

MAX_SIGNATURE = 1_024
"""Hex digits."""
MAX_POSITIONS = 100_000

NOBODY = PeerId("")

Verify = Callable[[PeerId, bytes, bytes], bool]
"""Whether a peer has made the signature (last) on the message."""

Position = tuple[int, Digest]
"""An outer step of a fragment, and the head after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mandate:
    """Who decides the outer steps that follow some positions.

    Attributes:
        positions: by fragment.
        members: who decides, ascending.
        number: 1; a later one replaces those before it at the same positions.
        operator: whose signature it has; empty where the run names no operator.
    """

    run_id: str
    positions: Mapping[int, Position]
    members: tuple[PeerId, ...]
    number: int = 1
    operator: PeerId = NOBODY
    signature: bytes = b""

    @property
    def content(self) -> bytes:
        """What the operator signs."""
        packed: bytes = msgpack.packb(
            [
                "lowcomm mandate",
                self.run_id,
                [[fragment, *position] for fragment, position in sorted(self.positions.items())],
                list(self.members),
                self.number,
            ]
        )
        return packed

    @property
    def digest(self) -> Digest:
        """Its name: whoever decides the same has the same one."""
        return hash_bytes(self.content)

    def follows(self, fragment: int, outer_step: int, head: Digest) -> bool:
        """Whether it is about what comes after this head."""
        return self.positions.get(fragment) == (outer_step, head)

    def to_json(self) -> dict[str, Json]:
        return {
            "run_id": self.run_id,
            "positions": [[fragment, *position] for fragment, position in sorted(self.positions.items())],
            "members": [str(peer) for peer in self.members],
            "number": self.number,
            "operator": str(self.operator),
            "signature": self.signature.hex(),
        }

    def __str__(self) -> str:
        return f"mandate {self.digest[:12]} (members {', '.join(self.members)})"


def parse_mandate(fields: Fields) -> Mandate:
    """Check the form of a mandate from the network or a file, not who has signed it.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    positions: dict[int, Position] = {}
    for item in fields.items("positions", MAX_POSITIONS):
        if not isinstance(item, list) or len(item) != 3:
            raise ProtocolError(f"{fields.kind}.positions: expected [fragment, outer step, head]")
        fragment = checked_int(f"{fields.kind}.fragment", item[0], 0, MAX_POSITIONS)
        step = checked_int(f"{fields.kind}.outer_step", item[1], 0, MAX_TOTAL_TOKENS)
        positions[fragment] = step, checked_digest(f"{fields.kind}.head", item[2])
    members = fields.texts("members", MAX_PARTICIPANTS)
    if not members or list(members) != sorted(set(members)) or not positions:
        raise ProtocolError(f"{fields.kind}: expected positions, and members in ascending order")
    try:
        signature = bytes.fromhex(fields.text("signature", MAX_SIGNATURE))
    except ValueError as error:
        raise ProtocolError(f"{fields.kind}.signature: expected hex digits") from error
    mandate = Mandate(
        run_id=fields.text("run_id"),
        positions=positions,
        members=tuple(PeerId(peer) for peer in members),
        number=fields.integer("number", 1),
        operator=PeerId(fields.text("operator", MAX_NAME)),
        signature=signature,
    )
    try:
        _ = mandate.content
    except UnicodeEncodeError as error:  # half a surrogate pair is JSON, but nothing that can be signed
        raise ProtocolError(f"{fields.kind}: expected names in Unicode, got {error.object!a}") from error
    return mandate


class Authority:
    """Whose mandates count on this peer, and which are in force.

    Args:
        operator: the peer id whose key signs them; empty = the run names none, and one counts where the
            island's own operator has put it into the run folder.
    """

    def __init__(self, run_id: str, operator: PeerId, verify: Verify) -> None:
        self.run_id, self.operator, self._verify = run_id, operator, verify
        self.allowed: set[Digest] = set()
        self._in_force: dict[tuple[int, Position], Mandate] = {}

    def check(self, mandate: Mandate) -> None:
        """See whether a mandate counts here.

        Raises:
            ProtocolError: it says why not.
        """
        if mandate.run_id != self.run_id:
            raise ProtocolError(f"{mandate} is one of run {mandate.run_id!r}, not of {self.run_id!r}")
        if not self.operator:
            if mandate.digest not in self.allowed:
                raise ProtocolError(
                    f"{mandate}: the run names no operator (shared.round.operator), and that of this island "
                    "has not agreed; `lowcomm recover` does"
                )
            return
        signed = mandate.operator == self.operator and self._verify(
            self.operator, mandate.content, mandate.signature
        )
        if not signed:
            raise ProtocolError(f"{mandate} is not signed by the run's operator, {self.operator}")

    def of(self, fragment: int, outer_step: int, head: Digest) -> Mandate | None:
        """The mandate in force for what follows this head."""
        return self._in_force.get((fragment, (outer_step, head)))

    def put_in_force(self, mandate: Mandate, fragments: Iterable[int]) -> None:
        """These fragments go by this mandate, at its positions."""
        for fragment in fragments:
            self._in_force[fragment, mandate.positions[fragment]] = mandate
