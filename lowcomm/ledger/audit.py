"""Check the ledger of a run folder without a network, by recomputing all that the folder allows.

Always: every line's own hash, that each entry follows one that stands before it (or the genesis, or a
snapshot that the file names, or what was compacted), and that those who may decide have voted for it:
signatures as far as names have keys, a quorum of the participants of the entry before, mandates. A restart
from an older checkpoint may rewind the chain; lines that were left behind stay in the file and are counted as
such. Where checkpoints are there: the digest of anchor and slots against the entry of their outer step. Where
encoded updates are there (`train.keep_updates`): the whole state after each entry, replayed from the genesis
or a checkpoint, bit for bit.

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
from lowcomm.exchanges.swarm.identity import MESSAGES, has_key, verify
from lowcomm.islands.vectors import HostVectors
from lowcomm.ledger.certificate import check_certificate
from lowcomm.ledger.chain import Certified, parse_certified
from lowcomm.ledger.compacted import Compacted, Part, parse_compacted
from lowcomm.ledger.credits import Credits, credits_after
from lowcomm.ledger.entry import Entry, run_head
from lowcomm.ledger.file import update_path
from lowcomm.ledger.mandate import NOBODY, Authority
from lowcomm.ledger.state import FragmentState, OuterState, saved_state
from lowcomm.ledger.update import Update
from lowcomm.spans import Spans, common, joined
from lowcomm.types import Digest, Json, PeerId

SHOWN = 40
"""Characters of a damaged line that an error quotes."""

ADVICE = "the run itself doesn't read this file: compare it with that of another island, or restore it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """By which the votes of a run are judged.

    Attributes:
        majority, min_participants: see `RoundPolicy`; None where the mode isn't known.
        operator: whose mandates count.
        allowed: mandates that the island's own operator has agreed to.
    """

    majority: bool | None = None
    min_participants: int = 1
    operator: PeerId = NOBODY
    allowed: frozenset[Digest] = frozenset()


@dataclass(slots=True)
class Audit:
    """What was found.

    Attributes:
        problem: the first thing that is wrong, as `file:line: ...` where it is a line; empty if nothing is.
        entries: lines that hold an entry, up to the problem.
        heads: of each fragment that has a line.
        snapshots: states taken from other peers; what came before them is not in the file.
        proven: entries whose votes were checked; of `unsigned` ones only who has voted, as names have no
            keys (a process group); `unproven` have none, as versions before 0.2 wrote them.
        mandates: entries that an operator's mandate has led to.
        compacted: entries that the first line stands for, and who has signed it.
        credited: tokens of each peer in fragment 0, as far as the file tells.
        samples: which ones the anchor has seen, as the newest entry of fragment 0 says; None = it doesn't.
        twice: those of them that entries of the file credit to two, or again.
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
    proven: int = 0
    unsigned: int = 0
    unproven: int = 0
    mandates: int = 0
    compacted: int = 0
    signer: str = ""
    credited: dict[PeerId, int] = field(default_factory=dict)
    samples: Credits | None = None
    twice: Spans = ()

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
            "proven": self.proven,
            "unsigned": self.unsigned,
            "unproven": self.unproven,
            "mandates": self.mandates,
            "compacted": self.compacted,
            "compacted_by": self.signer,
            "credited": dict(sorted(self.credited.items())),
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
        law: how votes are judged.

    Attributes:
        compacted: the first line, where the file was compacted.
        entries: those of the file by their hashes, in order, and `lines` as they stand there.
        snapshots: fragment, outer step and head of each state taken from another peer.

    Raises:
        OSError: the file can't be read.
    """

    def __init__(
        self,
        found: Audit,
        ledger: Path,
        run_id: str | None = None,
        fragments: int = 0,
        law: Law | None = None,
    ) -> None:
        self._ledger, self._run_id, self._law = ledger, run_id, law or Law()
        self.found = found
        self.compacted: Compacted | None = None
        self.entries: dict[Digest, Certified] = {}
        self.lines: dict[Digest, bytes] = {}
        self.snapshots: list[tuple[int, int, Digest]] = []
        self._steps: dict[int, dict[Digest, int]] = {}
        self._known: dict[Digest, Certified] = {}
        self._first: dict[int, Digest] = {}
        whole, _, torn = ledger.read_bytes().rpartition(b"\n")
        self.found.torn_bytes = len(torn)
        try:
            for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
                try:
                    self._read(line)
                except (ProtocolError, _BadLineError) as error:
                    raise _BadLineError(f"{ledger}:{number}: {error}; {ADVICE}") from error
            if not self.found.entries and not self.found.compacted:
                raise _BadLineError(
                    f"{ledger}: expected entries, got {self._no_entries()}: there is nothing to verify; an "
                    "island writes its first entry when its first round commits"
                )
        except _BadLineError as error:
            self.found.problem = str(error)
        self.found.fragments = max(fragments, max(self.found.heads, default=-1) + 1)
        credited = self.newest_part(0).credits
        self.found.credited = {peer: credit.tokens for peer, credit in credited.items()}
        self._account_for_samples()

    def _account_for_samples(self) -> None:
        """What the history of fragment 0 credits, and what of that more than once."""
        head = self.found.heads.get(0)
        tip = self._known.get(head) if head else None
        self.found.samples = tip.entry.samples if tip else None
        twice: list[tuple[int, int]] = []
        while tip is not None and tip.entry.samples is not None:
            before = self._known.get(tip.entry.previous)
            seen = before.entry.samples.credited if before and before.entry.samples else ()
            for spans in tip.entry.samples.trained if before or tip.entry.outer_step == 1 else ():
                twice += common(spans, seen)
                seen = joined((*seen, *spans))
            tip = before
        self.found.twice = joined(twice)

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
        if fields.has("compacted"):
            self._take_compacted(parse_compacted(fields.inner("compacted")))
            return
        fragment = fields.integer("fragment", 0, 1 << 20)
        known = self._steps.setdefault(fragment, {})
        if fields.has("snapshot"):
            head = fields.digest("head")
            known[head] = fields.integer("outer_step")
            self.found.heads[fragment] = head
            self.found.snapshots += 1
            self.snapshots.append((fragment, known[head], head))
            if fields.has("last"):
                self._take_tip(parse_certified(fields.inner("last")), head)
            return
        certified = parse_certified(fields)
        entry = certified.entry
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
        self._judge(certified)
        if recomputed in known:
            self.found.rewound += 1
        known[recomputed] = entry.outer_step
        self._known[recomputed] = self.entries[recomputed] = certified
        self.lines[recomputed] = line
        self.found.entries += 1
        self.found.heads[fragment] = recomputed

    def _take_compacted(self, compacted: Compacted) -> None:
        """The first line stands for lines that were dropped."""
        if self.found.entries or self.found.snapshots or self.compacted:
            raise _BadLineError("expected what was compacted in the first line only")
        self._run_id = self._run_id or compacted.run_id
        if compacted.run_id != self._run_id:
            raise _BadLineError(f"expected a ledger of run {self._run_id!r}, got {compacted.run_id!r}")
        if not self._is_signed(compacted.signer, compacted.content, compacted.signature):
            raise _BadLineError(f"what was compacted is not signed by {compacted.signer}: it was changed")
        self.compacted = compacted
        self.found.compacted, self.found.signer = compacted.entries, str(compacted.signer)
        self.found.snapshots, self.found.rewound = compacted.snapshots, compacted.rewound
        for part in compacted.parts:
            self._take_part(part)

    def _take_part(self, part: Part) -> None:
        self._steps.setdefault(part.fragment, {})[part.head] = part.outer_step
        self.found.heads[part.fragment] = part.head
        if part.start == 0:
            self._first.setdefault(part.fragment, part.first)
            total = sum(credit.tokens for credit in part.credits.values())
            if part.last is not None and part.last.entry.total_tokens != total:
                raise _BadLineError(
                    f"what was compacted credits {total} tokens, its last entry another number"
                )
        if part.last is not None:
            self._take_tip(part.last, part.head)

    def _take_tip(self, certified: Certified, head: Digest) -> None:
        """The entry at a head whose own line, and those before it, are not in the file."""
        if certified.entry.hash != head:
            raise _BadLineError(f"expected the entry of head {head[:12]}, got {certified.entry.hash[:12]}")
        self._judge(certified, counts=False)
        self._known[head] = certified

    def _judge(self, certified: Certified, *, counts: bool = True) -> None:
        """See whether those who may decide have voted for an entry.

        Raises:
            _BadLineError, ProtocolError: they have not; it says what is missing.
        """
        entry, certificate = certified
        if certificate is None:
            if entry.contributions:  # which came with the votes
                raise _BadLineError(
                    f"outer step {entry.outer_step} of fragment {entry.fragment} has no votes, which it had"
                )
            self.found.unproven += counts
            return
        before, law = self._known.get(entry.previous), self._law
        electorate = [peer for peer, _ in before.entry.participants] if before else None
        authority = Authority(entry.run_id, law.operator, self._is_signed)
        authority.allowed |= law.allowed
        check_certificate(
            entry,
            certificate,
            electorate,
            self._is_signed,
            majority=certificate.mandate is not None if law.majority is None else law.majority,
            min_participants=law.min_participants,
            authority=authority,
        )
        self.found.proven += counts
        self.found.unsigned += counts and not all(map(has_key, certificate.voters))
        self.found.mandates += counts and certificate.mandate is not None

    def _is_signed(self, peer: PeerId, message: bytes, signature: bytes) -> bool:
        """Whether a peer has signed; where its name is no key's, what it says is all there is."""
        return not has_key(peer) or verify(peer, MESSAGES, message, signature)

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
        before = self._known.get(entry.previous)
        total = entry.tokens + (before.entry.total_tokens if before else 0)
        if (before or entry.outer_step == 1) and entry.total_tokens != total:
            raise _BadLineError(
                f"outer step {entry.outer_step} of fragment {entry.fragment} names {entry.total_tokens} "
                f"tokens in all, expected {total}"
            )
        named = entry.samples
        if named is not None and (before or entry.outer_step == 1):
            earlier = before.entry.samples if before else None
            if named != credits_after(earlier, named.data, named.trained):
                raise _BadLineError(
                    f"outer step {entry.outer_step} of fragment {entry.fragment} credits other samples than "
                    "those of the entry before it and its participants"
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
            head, known = chain["head"], self._known.get(chain["head"])
            state = saved_state(saved, HostVectors())
            if chain["outer_step"] and head not in self._steps.get(fragment, {}):
                raise _BadLineError(
                    f"{name}: stands at outer step {chain['outer_step']} of fragment {fragment}, head "
                    f"{head[:12]}, which the ledger does not have"
                )
            if known is None:
                continue
            last = known.entry
            if state.digest != last.state_digest:
                raise _BadLineError(
                    f"{name}: fragment {fragment} has state {state.digest[:12]}, the entry of outer step "
                    f"{last.outer_step} says {last.state_digest[:12]}"
                )
            self.found.states += 1
            starts[head] = state

    def chain_of(self, fragment: int) -> Sequence[Certified]:
        """The entries of a fragment from the oldest that the file has to its head."""
        return self.chain_to(self.found.heads.get(fragment, Digest("")))

    def newest_part(self, fragment: int, keep: int = 0) -> Part:
        """What leads to a fragment's head, as far as the file tells, without the newest `keep` entries."""
        chain = self.chain_of(fragment)
        before = self.compacted.newest(fragment) if self.compacted else None
        dropped = chain[: len(chain) - keep]
        head = self.found.heads.get(fragment, Digest(""))
        first = chain[0].entry if chain else None
        if before is not None and before.head == (first.previous if first else head):
            return before.extended(dropped)
        step = first.outer_step - 1 if first else self._steps.get(fragment, {}).get(head, 0)
        begin = first.previous if first else head
        begun = Part(
            fragment=fragment, start=step, first=begin, outer_step=step, head=begin, entries=0, credits={},
            last=self._known.get(begin),
        )  # fmt: skip
        return begun.extended(dropped)

    def chain_to(self, head: Digest) -> Sequence[Certified]:
        """The entries up to a head, as far as the file has them."""
        entries: list[Certified] = []
        certified = self.entries.get(head)
        while certified is not None:
            entries.append(certified)
            certified = self.entries.get(certified.entry.previous)
        return entries[::-1]

    def _replay(self, state: OuterState, fragment: int, starts: Mapping[Digest, FragmentState]) -> None:
        before: FragmentState | None = None
        for entry, _ in self.chain_of(fragment):
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
