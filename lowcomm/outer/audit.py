"""Check the ledger of a run folder without a network, by recomputing all that the folder allows.

Always: every line's own hash, and that each entry follows one that stands before it (or the
genesis, or a snapshot that the file names). A restart from an older checkpoint may rewind the
chain; lines that were left behind stay in the file and are counted as such. Where checkpoints are
there: the digest of anchor and momentum against the entry of their outer step. Where encoded
updates are there (`train.keep_updates`): the whole state after each entry, replayed from the
genesis or a checkpoint, bit for bit.

What it cannot show: that the file is complete at its end, and what happened before a snapshot.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.errors import ProtocolError, StorageError
from lowcomm.membership.fields import Fields
from lowcomm.membership.ledger import Entry, parse_entry, run_head, update_path
from lowcomm.membership.update import Update
from lowcomm.outer.state import FragmentState, OuterState
from lowcomm.types import Digest, Json


@dataclass(slots=True)
class Audit:
    """What was found.

    Attributes:
        problem: the first thing that is wrong, with its line; empty if nothing is.
        entries: lines that hold an entry.
        heads: of each fragment that has a line.
        snapshots: states taken from other peers; what came before them is not in the file.
        rewound: entries that a restart left behind, or applied again.
        replayed: entries whose state was recomputed from the encoded update.
        states: states in checkpoints that equal the digest in their entry.
        genesis: `recomputed` from the recipe and equal, `differs` from it, or `unknown`.
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
        }


class _BadLineError(Exception):
    pass


class Auditor:
    """Reads one ledger file, then compares what else is there with it.

    Args:
        ledger: `ledger.jsonl`.
        run_id: of the run, or None to take that of the first entry.

    Raises:
        StorageError: the file can't be read.
    """

    def __init__(self, ledger: Path, run_id: str | None = None) -> None:
        self._ledger, self._run_id = ledger, run_id
        self.found = Audit()
        self._steps: dict[int, dict[Digest, int]] = {}
        self._entries: dict[Digest, Entry] = {}
        self._first: dict[int, Digest] = {}
        try:
            text = ledger.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise StorageError(
                f"{ledger}: expected the ledger of a run: {error.strerror}; name an island's run folder"
            ) from error
        whole = text.rpartition("\n")[0]  # a killed process may leave its last line half written
        try:
            for number, line in enumerate(whole.split("\n") if whole else [], start=1):
                try:
                    self._read(line)
                except (ProtocolError, _BadLineError, ValueError, RecursionError) as error:
                    raise _BadLineError(f"{ledger.name}, line {number}: {error}") from error
        except _BadLineError as error:
            self.found.problem = str(error)
        self.found.fragments = max(self.found.heads, default=-1) + 1

    def _read(self, line: str) -> None:
        value: Any = json.loads(line)
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
        if entry.hash != fields.digest("hash"):
            raise _BadLineError(
                f"outer step {entry.outer_step} of fragment {fragment} hashes to {entry.hash[:12]}, but the "
                f"line says {fields.digest('hash')[:12]}: it was changed"
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

    def check_states(self, state: OuterState, saved: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Compare checkpoints with the entries, and replay the updates that were kept.

        Args:
            state: built from the recipe and not stepped yet: the genesis.
            saved: (name, `saved_positions`) of each checkpoint.
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
        self, name: str, saved: Mapping[str, Any], starts: dict[Digest, FragmentState]
    ) -> None:
        for fragment, chain in enumerate(saved["chains"]):
            head, last = chain["head"], self._entries.get(chain["head"])
            state = FragmentState.of(saved["anchors"][fragment], saved["momenta"][fragment])
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
                raise _BadLineError(f"{file.name}: {error}") from error
            self.found.replayed += 1
