"""`ledger.jsonl` of the run folder."""

from __future__ import annotations

import json
from pathlib import Path

from lowcomm.ledger.chain import Certified
from lowcomm.ledger.update import Update
from lowcomm.lines import LineFile
from lowcomm.types import Digest, Json


class LedgerFile:
    """`ledger.jsonl` of the run folder: one line per entry as it was applied, for audits.

    A line with `"snapshot": true` says that the state was taken from another peer there, so that
    the entries before it are not in this file; it has the last of them. A first line with `compacted` stands
    for what `lowcomm ledger compact` has dropped. `lowcomm ledger verify` reads it
    (`lowcomm.ledger.audit`).

    Args:
        path: a last line that a killed process left half written is cut off.
        keep_updates: encoded means per fragment that are kept beside it, in `updates/`.
    """

    def __init__(self, path: Path, keep_updates: int = 0) -> None:
        self._path, self._keep_updates = path, keep_updates
        self._lines = LineFile(path, torn="cut")

    def append(self, certified: Certified, update: Update | None) -> None:
        """Add a line, and the encoded mean where those are kept.

        Raises:
            OSError: the disk is full or the folder is gone; the line is kept and written with the next one.
        """
        entry = certified.entry
        self._write({**certified.to_json(), "hash": entry.hash})
        if self._keep_updates and update is not None:
            file = update_path(self._path, entry.fragment, entry.outer_step)
            file.parent.mkdir(exist_ok=True)
            with file.open("wb") as target:
                target.writelines(update.parts)
            old = sorted(file.parent.glob(f"{entry.fragment}-*.update"))[: -self._keep_updates]
            for update_file in old:
                update_file.unlink()

    def note_snapshot(
        self, fragment: int, outer_step: int, head: Digest, state_digest: Digest, tip: Certified | None
    ) -> None:
        """Say that a fragment goes on from a state that another peer handed over.

        Raises:
            OSError: see `append`.
        """
        self._write(
            {
                "snapshot": True,
                "fragment": fragment,
                "outer_step": outer_step,
                "head": head,
                "state_digest": state_digest,
                "last": tip.to_json() if tip else None,
            }
        )

    def _write(self, line: dict[str, Json]) -> None:
        self._lines.append(json.dumps(line, separators=(",", ":")))


def update_path(ledger: Path, fragment: int, outer_step: int) -> Path:
    """Where the encoded mean of an outer step is kept beside its ledger file."""
    return ledger.parent / "updates" / f"{fragment}-{outer_step:09d}.update"
