"""Check the ledger of a run folder without a network, by recomputing all that the folder allows.

Always: every line's own hash, and that each entry follows one that stands before it (or the
genesis, or a snapshot that the file names). A restart from an older checkpoint may rewind the
chain; lines that were left behind stay in the file and are counted as such. Where checkpoints are
there: the digest of anchor and slots against the entry of their outer step. Where encoded
updates are there (`train.keep_updates`): the whole state after each entry, replayed from the
genesis or a checkpoint, bit for bit.

What it cannot show: that the file is complete at its end, what happened before a snapshot, and in which
order entries of different fragments came, since each has a chain of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.islands.vectors import HostVectors
from lowcomm.ledger.entry import Entry, parse_entry, run_head
from lowcomm.ledger.file import update_path
from lowcomm.ledger.state import FragmentState, OuterState, saved_state
from lowcomm.ledger.update import Update
from lowcomm.types import Digest, Json

SHOWN = 40
"""Characters of a damaged line that an error quotes."""

ADVICE = "the run itself doesn't read this file: compare it with that of another island, or restore it"


@dataclass(slots=True)
class Audit:
    """What was found.

    Attributes:
        problem: the first thing that is wrong, as `file:line: ...` where it is a line; empty if nothing is.
        entries: lines that hold an entry, up to the problem.
        heads: of each fragment that has a line.
        snapshots: states taken from other peers; what came before them is not in the file.
        rewound: entries that a restart left behind, or applied again.
        replayed: entries whose state was recomputed from the encoded update.
        states: states in checkpoints that equal the digest in their entry.
        genesis: `recomputed` from the recipe and equal, `differs` from it, or `unknown`.
        fragments: of the run, as far as they are known.
        torn_bytes: of a last line without an end, as a killed process leaves it; the island cuts it off when
            it writes again, so it is no damage and no entry.
    """

    problem: str = ""
    entries: int = 0
    heads: dict[int, Digest] = field(default_factory=dict)
    snapshots: int = 0
    rewound: int = 0
    replayed: int = 0
    states: int = 0
    genesis: str = "unknown"
    fragments: int = 0
    torn_bytes: int = 0

    @property
    def valid(self) -> bool:
        return not self.problem

    @property
    def head(self) -> Digest | None:
        """The run's head; None where a fragment's head is not known."""
        if not self.heads or len(self.heads) < self.fragments:
            return None
        return run_head([self.heads[fragment] for fragment in sorted(self.heads)])

    def to_json(self) -> dict[str, Json]:
        return {
            "entries": self.entries,
            "head": self.head,
            "valid": self.valid,
            "problem": self.problem,
            "heads": {str(fragment): head for fragment, head in sorted(self.heads.items())},
            "genesis": self.genesis,
            "snapshots": self.snapshots,
            "rewound": self.rewound,
            "states_replayed": self.replayed,
            "states_in_checkpoints": self.states,
            "torn_bytes": self.torn_bytes,
        }


class _BadLineError(Exception):
    pass


class Auditor:
    """Reads one ledger file, then compares what else is there with it; what is wrong is in `found.problem`.

    Args:
        found: what was found before an error stays in it.
        ledger: `ledger.jsonl`.
        run_id: of the run, or None to take that of the first entry.
        fragments: of the run; 0 where it isn't known.

    Raises:
        OSError: the file can't be read.
    """

    def __init__(self, found: Audit, ledger: Path, run_id: str | None = None, fragments: int = 0) -> None:
        self._ledger, self._run_id = ledger, run_id
        self.found = found
        self._steps: dict[int, dict[Digest, int]] = {}
        self._entries: dict[Digest, Entry] = {}
        self._first: dict[int, Digest] = {}
        whole, _, torn = ledger.read_bytes().rpartition(b"\n")
        self.found.torn_bytes = len(torn)
        try:
            for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
                try:
                    self._read(line)
                except (ProtocolError, _BadLineError) as error:
                    raise _BadLineError(f"{ledger}:{number}: {error}; {ADVICE}") from error
            if not self.found.entries:
                raise _BadLineError(
                    f"{ledger}: expected entries, got {self._no_entries()}: there is nothing to verify; an "
                    "island writes its first entry when its first round commits"
                )
        except _BadLineError as error:
            self.found.problem = str(error)
        self.found.fragments = max(fragments, max(self.found.heads, default=-1) + 1)

    def _no_entries(self) -> str:
        if self.found.snapshots:
            return f"only {self.found.snapshots} states taken from other peers"
        return "one half-written line" if self.found.torn_bytes else "an empty file"

    def _read(self, line: bytes) -> None:
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested beyond measure
            quoted = ascii(line[:SHOWN].decode(errors="replace")) + ("..." if len(line) > SHOWN else "")
            raise _BadLineError(
                f"expected an entry as one JSON object, got {quoted}: it is damaged"
            ) from error
        fields = Fields("entry", value)
        fragment = fields.integer("fragment", 0, 1 << 20)
        known = self._steps.setdefault(fragment, {})
        if fields.has("snapshot"):
            head = fields.digest("head")
            known[head] = fields.integer("outer_step")
            self.found.heads[fragment] = head
            self.found.snapshots += 1
            return
        entry = parse_entry(fields)
        try:
            recomputed = entry.hash
        except UnicodeEncodeError as error:  # half a surrogate pair is JSON, but has no bytes to hash
            raise _BadLineError(f"expected names in Unicode, got {ascii(error.object)[:SHOWN]}") from error
        if recomputed != fields.digest("hash"):
            raise _BadLineError(
                f"outer step {entry.outer_step} of fragment {fragment}: expected the hash of the line, "
                f"{recomputed[:12]}, got {fields.digest('hash')[:12]}: it was changed"
            )
        self._run_id = self._run_id or entry.run_id
        if entry.run_id != self._run_id:
            raise _BadLineError(f"expected an entry of run {self._run_id!r}, got one of {entry.run_id!r}")
        self._follow(entry, known)
        if entry.hash in known:
            self.found.rewound += 1
        known[entry.hash] = entry.outer_step
        self._entries[entry.hash] = entry
        self.found.entries += 1
        self.found.heads[fragment] = entry.hash

    def _follow(self, entry: Entry, known: Mapping[Digest, int]) -> None:
        if entry.outer_step == 1:
            if self._first.setdefault(entry.fragment, entry.previous) != entry.previous:
                raise _BadLineError(
                    f"fragment {entry.fragment} starts from another genesis than in a line before it"
                )
        elif known.get(entry.previous) != entry.outer_step - 1:
            raise _BadLineError(
                f"outer step {entry.outer_step} of fragment {entry.fragment} follows {entry.previous[:12]}, "
                "which no line before it has: one is missing or was changed"
            )
        before = self._entries.get(entry.previous)
        total = entry.tokens + (before.total_tokens if before else 0)
        if (before or entry.outer_step == 1) and entry.total_tokens != total:
            raise _BadLineError(
                f"outer step {entry.outer_step} of fragment {entry.fragment} names {entry.total_tokens} "
                f"tokens in all, expected {total}"
            )
        head = self.found.heads.get(entry.fragment)
        if head is not None and head != entry.previous and entry.hash not in known:
            self.found.rewound += 1

    # -- states ------------------------------------------------------------------------------------

    def check_states(
        self, state: OuterState, saved: Iterable[tuple[str, Iterable[Mapping[str, Any]]]]
    ) -> None:
        """Compare checkpoints with the entries, and replay the updates that were kept.

        Args:
            state: built from the recipe and not stepped yet: the genesis.
            saved: (name, `saved_position` of each fragment) of each checkpoint; taken one at a time.
        """
        starts: dict[Digest, FragmentState] = {}
        self.found.fragments = len(state.fragments)
        for chain, fragment_state in zip(state.chains, state.states, strict=True):
            first = self._first.get(chain.fragment)
            if first is None:
                self.found.heads.setdefault(chain.fragment, chain.head)
            elif first != chain.head:
                self.found.genesis = "differs"
            elif self.found.genesis == "unknown":
                self.found.genesis = "recomputed"
            starts[chain.head] = fragment_state
        try:
            for name, checkpoint in saved:
                self._check_checkpoint(name, checkpoint, starts)
            for fragment in range(len(state.fragments)):
                self._replay(state, fragment, starts)
        except (ProtocolError, _BadLineError) as error:
            self.found.problem = self.found.problem or str(error)

    def _check_checkpoint(
        self, name: str, fragments: Iterable[Mapping[str, Any]], starts: dict[Digest, FragmentState]
    ) -> None:
        for fragment, saved in enumerate(fragments):
            chain = saved["chain"]
            head, last = chain["head"], self._entries.get(chain["head"])
            state = saved_state(saved, HostVectors())
            if chain["outer_step"] and head not in self._steps.get(fragment, {}):
                raise _BadLineError(
                    f"{name}: stands at outer step {chain['outer_step']} of fragment {fragment}, head "
                    f"{head[:12]}, which the ledger does not have"
                )
            if last is None:
                continue
            if state.digest != last.state_digest:
                raise _BadLineError(
                    f"{name}: fragment {fragment} has state {state.digest[:12]}, the entry of outer step "
                    f"{last.outer_step} says {last.state_digest[:12]}"
                )
            self.found.states += 1
            starts[head] = state

    def _chain(self, fragment: int) -> Sequence[Entry]:
        """The entries from the oldest that is known to the head."""
        entries: list[Entry] = []
        entry = self._entries.get(self.found.heads.get(fragment, Digest("")))
        while entry is not None:
            entries.append(entry)
            entry = self._entries.get(entry.previous)
        return entries[::-1]

    def _replay(self, state: OuterState, fragment: int, starts: Mapping[Digest, FragmentState]) -> None:
        before: FragmentState | None = None
        for entry in self._chain(fragment):
            before = before or starts.get(entry.previous)
            file = update_path(self._ledger, fragment, entry.outer_step)
            if before is None or not file.is_file():
                before = None
                continue
            try:
                update = Update([file.read_bytes()])
            except OSError as error:
                raise _BadLineError(f"{file}: can't be read: {error.strerror}") from error
            state.states[fragment] = before
            try:
                before = state.apply(entry, update)
            except ProtocolError as error:
                raise _BadLineError(f"{file}: {error}") from error
            self.found.replayed += 1
