"""Making a ledger file small: its older entries become one signed line (`lowcomm.ledger.compacted`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lowcomm.errors import StorageError
from lowcomm.ledger.audit import Auditor
from lowcomm.ledger.compacted import Compacted, Part
from lowcomm.ledger.entry import hash_bytes
from lowcomm.storage.files import io_reason, write_atomically
from lowcomm.types import Digest, PeerId


@dataclass(frozen=True, slots=True)
class Compaction:
    """What was done.

    Attributes:
        dropped, kept: entries.
        bytes_before, bytes_after: of the file.
    """

    dropped: int
    kept: int
    bytes_before: int
    bytes_after: int


def compact(
    ledger: Path,
    auditor: Auditor,
    keep: Mapping[int, int],
    signer: PeerId,
    sign: Callable[[bytes], bytes],
) -> Compaction:
    """Replace the file, atomically and durably; where nothing is to be dropped it stays as it is.

    Args:
        auditor: has read the file, and found nothing wrong.
        keep: the newest entries of each fragment that stay as they are.

    Raises:
        StorageError: the file can't be written; it is as it was.
    """
    data = ledger.read_bytes()
    chains = {fragment: auditor.chain_of(fragment) for fragment in auditor.found.heads}
    kept = {
        certified.entry.hash: certified
        for fragment, chain in chains.items()
        for certified in chain[max(0, len(chain) - keep[fragment]) :]
    }
    before = auditor.compacted
    dropped = [line for head, line in auditor.lines.items() if head not in kept]
    if not dropped:
        return Compaction(0, len(kept), len(data), len(data))
    parts: list[Part] = []
    for fragment in sorted(auditor.found.heads):
        newest = auditor.newest_part(fragment, min(keep[fragment], len(chains[fragment])))
        parts += [*_earlier(auditor, fragment, newest), newest]
    compacted = Compacted(
        run_id=next(iter(auditor.entries.values())).entry.run_id,
        lines=(before.lines if before else 0) + len(dropped),
        sum=_sum(before, dropped),
        parts=tuple(parts),
        snapshots=auditor.found.snapshots,
        rewound=auditor.found.rewound,
        signer=signer,
    )
    compacted = replace(compacted, signature=sign(compacted.content))
    first = json.dumps(compacted.to_json(), separators=(",", ":")).encode()
    lines = [first, *(line for head, line in auditor.lines.items() if head in kept)]
    text = b"".join(line + b"\n" for line in lines)
    try:
        write_atomically(ledger, text)
    except OSError as error:
        raise StorageError(f"{ledger}: can't be compacted, and is as it was: {io_reason(error)}") from error
    return Compaction(len(dropped), len(kept), len(data), len(text))


def _sum(before: Compacted | None, dropped: list[bytes]) -> Digest:
    """The hash chain over all lines that were ever dropped: each covers the one before it."""
    found = before.sum if before else hash_bytes(b"")
    for line in dropped:
        found = hash_bytes(found.encode(), line)
    return found


def _earlier(auditor: Auditor, fragment: int, newest: Part) -> list[Part]:
    """The parts before the newest one, which states taken from others have parted from it.

    What a restart has left behind is none: it branches off another part.
    """
    before = auditor.compacted
    parts = [
        part
        for part in (before.parts if before else ())
        if part.fragment == fragment and (part.start, part.first) != (newest.start, newest.first)
    ]
    followed = {certified.entry.previous for certified in auditor.entries.values()}
    chain = auditor.chain_of(fragment)
    taken = {newest.first, newest.head, *(certified.entry.hash for certified in chain)}
    taken |= {certified.entry.previous for certified in chain}
    for head, certified in reversed(auditor.entries.items()):  # of branches the last one is the history
        if certified.entry.fragment != fragment or head in followed or head in taken:
            continue
        chain = auditor.chain_to(head)
        first = chain[0].entry
        if taken & {first.previous, *(one.entry.hash for one in chain)}:
            continue
        taken |= {first.previous, *(one.entry.hash for one in chain)}
        known = next((part for part in parts if part.head == first.previous), None)
        begin = known or Part(
            fragment=fragment, start=first.outer_step - 1, first=first.previous,
            outer_step=first.outer_step - 1, head=first.previous, entries=0, credits={}, last=None,
        )  # fmt: skip
        parts = [part for part in parts if part is not known] + [begin.extended(chain)]
    return sorted(parts, key=lambda part: part.outer_step)
