"""Which samples the anchor has seen: what an entry credits, and all that was credited before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import MAX_COUNT, Fields, checked_text
from lowcomm.spans import Spans, common, flat, joined, parse_spans, size
from lowcomm.types import Json

MAX_RUNS = 1_024
"""Spans in one contribution."""
MAX_CREDITED = 65_536
"""Spans in all that is credited: some holes for each island that ever was. What finds no room is counted."""


@dataclass(frozen=True, kw_only=True)
class Credits:
    """Samples by their numbers in the endless order of the data, see docs/design/0026-units.md.

    Attributes:
        data: digest of it.
        trained: of each participant, in the entry's order.
        credited: by this entry and all before it.
        twice: samples of an entry that it or one before it had credited already, so far.
        uncounted: samples that found no room, so far.
    """

    data: str
    trained: tuple[Spans, ...]
    credited: Spans
    twice: int = 0
    uncounted: int = 0

    def to_json(self) -> dict[str, Json]:
        """As it travels and as it is hashed."""
        return {
            "data": self.data,
            "trained": [list(flat(spans)) for spans in self.trained],
            "credited": list(flat(self.credited)),
            "twice": self.twice,
            "uncounted": self.uncounted,
        }


def credits_after(before: Credits | None, data: str, trained: Sequence[Spans]) -> Credits | None:
    """What an entry credits whose participants have trained on these; None where no sample ever was named."""
    if before is None and not any(trained):
        return None
    credited = before.credited if before else ()
    twice, uncounted = (before.twice, before.uncounted) if before else (0, 0)
    for spans in trained:
        twice += size(common(spans, credited))
        more = joined((*credited, *spans))
        if len(more) > MAX_CREDITED:
            uncounted += size(spans)
        else:
            credited = more
    return Credits(
        data=before.data if before else data,
        trained=tuple(trained),
        credited=credited,
        twice=twice,
        uncounted=uncounted,
    )


def parse_credits(fields: Fields, participants: int) -> Credits:
    """Check and build what an entry from the network or a file credits.

    Raises:
        ProtocolError: a field is missing, of the wrong type or out of range.
    """
    trained = []
    for item in fields.items("trained", participants):
        if not isinstance(item, list):
            raise ProtocolError(f"{fields.kind}.trained: expected a list for each participant")
        trained.append(parse_samples(Fields(fields.kind, {"trained": item}), "trained"))
    if len(trained) != participants:
        raise ProtocolError(f"{fields.kind}.trained: expected one for each of {participants} participants")
    credited = fields.integers("credited", 2 * MAX_CREDITED)
    return Credits(
        data=checked_text(f"{fields.kind}.data", fields.text("data", 128), 128),
        trained=tuple(trained),
        credited=parse_spans(f"{fields.kind}.credited", credited, MAX_CREDITED),
        twice=fields.integer("twice", 0, MAX_COUNT),
        uncounted=fields.integer("uncounted", 0, MAX_COUNT),
    )


def parse_samples(fields: Fields, key: str) -> Spans:
    """Check and build the samples of one contribution.

    Raises:
        ProtocolError: they are no ascending spans, or too many.
    """
    return parse_spans(f"{fields.kind}.{key}", fields.integers(key, 2 * MAX_RUNS), MAX_RUNS)
