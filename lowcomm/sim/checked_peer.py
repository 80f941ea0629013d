"""One peer of the model checker: the round machine that ships, and what its driver does, without I/O.

`lowcomm.rounds.round` is that driver; here messages are parsed alike, and writing to disk, moving data and
swapping states in are one step each. Whoever checks hands in an event and the time, and takes out messages
and what was broken. Numbers are abstract: an update is a hash over who gave what in which ballot, so two
ballots never make the same entry.
"""

from __future__ import annotations

from collections.abc import Collection

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.ledger.certificate import (
    Ballot,
    Certificate,
    check_certificate,
    parse_ballot,
    vote_bytes,
)
from lowcomm.ledger.chain import Certified, parse_certified
from lowcomm.ledger.entry import SUM_LENGTH, ContributionId, Entry, genesis_head, hash_bytes
from lowcomm.peers.peer import Chains, State
from lowcomm.rounds.claims import ClaimJudge
from lowcomm.rounds.roster import Roster, parse_roster
from lowcomm.rounds.values import (
    Action,
    AskForCertificate,
    CastVote,
    Commit,
    Drop,
    Ended,
    Finish,
    Forget,
    Keep,
    Offer,
    Propose,
    Record,
    Reduce,
    Reject,
    Seen,
    Slot,
    Tell,
    TellDecided,
    View,
    Vote,
    decided_json,
    parse_decided,
    parse_ready,
    parse_reason,
)
from lowcomm.sim.checked_values import Mail, Setting, Stored, entry_of, signature_of
from lowcomm.types import Digest, Json, PeerId

FRAGMENT = 0


class CheckedPeer:
    """A peer that runs.

    Attributes:
        pending: records that are not on disk yet.
        late: a chain has moved, and the island has not contributed anew yet.
        outbox: (to, message), in order.
        committed: (outer step, hash of the entry) that this peer has decided or taken over.
        broken: one sentence for each promise that does not hold.
    """

    def __init__(self, setting: Setting, me: PeerId, stored: Stored, linked: Collection[PeerId]) -> None:
        self.setting, self.me, self.life = setting, me, stored.life
        self.chain, self.record = stored.chain, stored.record
        self.linked, self.silent = set(linked), set[PeerId]()
        self.seen: dict[PeerId, tuple[int, Digest, int]] = {}
        self.unheard_since_s: dict[PeerId, float] = {}
        self.answered_s: dict[PeerId, float] = {}
        self.held: set[Digest] = set()
        self.pending: list[Record] = []
        self.parts: set[tuple[Ballot, PeerId]] = set()
        self.work: Roster | None = None
        self.named: set[ContributionId] = set()
        self.start, self.tokens, self.late = self._credited(), 1, False
        self.asked: dict[PeerId, Digest] = {}
        self.decided: tuple[Digest, Certificate] | None = None
        self.outbox: list[tuple[PeerId, Mail]] = []
        self.committed: list[tuple[int, Digest]] = []
        self.broken: list[str] = []
        rules = setting.rules
        self.machine = setting.machine(me, rules, self._slot(), ClaimJudge(rules.policy.limits))

    @property
    def stored(self) -> Stored:
        """What is on disk now."""
        return Stored(self.life, self.chain, self.record)

    @property
    def head(self) -> Digest:
        return self.chain[-1].entry.hash if self.chain else self._genesis()

    def _genesis(self) -> Digest:
        return genesis_head(self.setting.rules.run_id, FRAGMENT, Digest("0" * 64))

    def _slot(self) -> Slot:
        last = self.chain[-1].entry if self.chain else None
        members = tuple(peer for peer, _ in last.participants) if last else self.setting.peers
        return Slot(len(self.chain) + 1, self.head, members, last.total_tokens if last else 0)

    def _credited(self) -> int:
        return sum(certified.entry.tokens_of(self.me) or 0 for certified in self.chain)

    def _view(self, now_s: float) -> View:
        live = {}
        for peer in sorted(self.linked - self.silent):
            height, head, tokens = self.seen.get(peer, (0, self._genesis(), 0))
            state = State(phase="training", chains=Chains((height,), (head,), (tokens,)))
            live[peer] = Seen(state, answered_s=self.answered_s.get(peer, 0.0))
        unheard_s = {peer: now_s - since_s for peer, since_s in self.unheard_since_s.items()}
        return View(live, "training", {**unheard_s, self.me: 0.0}, {})

    def _refresh(self, now_s: float) -> None:
        self.machine.assembly.view = self._view(now_s)
        self.machine.assembly.following = bool(self._ahead())

    def _ahead(self) -> list[PeerId]:
        """Live peers with more in their chain."""
        here = (self.chain[-1].entry.total_tokens if self.chain else 0, len(self.chain))
        return [
            peer
            for peer in sorted(self.linked - self.silent)
            if peer in self.seen and (self.seen[peer][2], self.seen[peer][0]) > here
        ]

    # -- events --------------------------------------------------------------------------------------

    def begin(self, now_s: float, *, slow: bool = False) -> None:
        """The first thing of a life."""
        strangers = set(self.setting.peers) - self.linked - {self.me}
        self.unheard_since_s = dict.fromkeys(sorted(strangers), now_s)
        self._refresh(now_s)
        if self.record is not None:
            self.machine.recall(self.record)
        self._become_due(now_s, slow=False)
        self._act(now_s, slow=slow)

    def deliver(self, sender: PeerId, mail: Mail, now_s: float, *, slow: bool = False) -> None:
        """Something has come over a link.

        Args:
            slow: what this event makes the peer write is not on disk when it ends.
        """
        self.silent.discard(sender)
        if mail.kind == "down":
            self.linked.discard(sender)
            self.asked.pop(sender, None)
            self.unheard_since_s.setdefault(sender, now_s)
            self._refresh(now_s)
            self.machine.peer_down(sender, "cut", now_s)
        else:
            if sender not in self.linked and self.chain:
                self.outbox.append((sender, self.hello()))  # it may have moved since the link came up
            self.linked.add(sender)
            self.unheard_since_s.pop(sender, None)
            self._refresh(now_s)
            try:
                self._on_message(sender, mail, now_s, slow=slow)
            except ProtocolError as error:
                self.broken.append(f"{self.me} takes {sender} for a liar: {error}")
        self._act(now_s, slow=slow)

    def pass_time(
        self, now_s: float, silent: Collection[PeerId], deaf: Collection[PeerId] = (), *, slow: bool = False
    ) -> None:
        """A deadline has passed.

        Args:
            silent: peers whose messages have not come for all of it.
            deaf: peers to which messages of this one have not come.
        """
        sent_s = now_s - self.setting.rules.policy.deadline_s / 2
        for peer in self.linked - set(silent) - set(deaf):
            self.answered_s[peer] = sent_s  # a heartbeat of the time that has passed
        for peer in self.silent & self.linked - set(silent):
            self.unheard_since_s.pop(peer, None)
        before, self.silent = self.silent, self.silent & set(silent)
        for peer in sorted(set(silent) & self.linked - before):
            self.silent.add(peer)
            self.unheard_since_s.setdefault(peer, now_s)
            self._refresh(now_s)
            self.machine.peer_silent(peer, "silent", now_s)
            self._act(now_s, slow=slow)
        self._refresh(now_s)
        decision, deadline_s = self.machine.decision, self.setting.rules.policy.deadline_s
        self.machine.tick(now_s, deadline_s, self._missing(), ())
        self._act(now_s, slow=slow)
        trouble = self.machine.decision.refusal or self.machine.assembly.unformed
        if trouble is not None and self.machine.decision is decision:
            self.machine.abandon(now_s, answers=self.machine.decision.refusal is None)
            self.tokens += 1  # it has trained on meanwhile
            self._become_due(now_s, slow=False)
        self._look(now_s, slow=slow)
        self._act(now_s, slow=slow)
        self.asked.clear()
        self._catch_up()

    def kept(self, now_s: float) -> None:
        """The oldest record that is waited for is on disk."""
        record = self.pending.pop(0)
        self._save(record)
        self._refresh(now_s)
        self.machine.on_kept(record, now_s)
        self._act(now_s, slow=False)

    def contribute(self, now_s: float) -> None:
        """The island has learned where the chain is, and contributes what is left."""
        self._refresh(now_s)
        self._become_due(now_s, slow=False)
        self._act(now_s, slow=False)

    def crash(self, *, written: bool) -> Stored:
        """What is left of it.

        Args:
            written: what was waited for had reached the disk.
        """
        if written:
            for record in self.pending:
                self._save(record)
        return Stored(self.life + 1, self.chain, self.record)

    def hello(self) -> Mail:
        """What it says of itself to everybody, when a link comes up and after each commit."""
        tokens = self.chain[-1].entry.total_tokens if self.chain else 0
        return Mail.of("state", {"outer_step": len(self.chain), "head": self.head, "tokens": tokens})

    # -- messages ------------------------------------------------------------------------------------

    def _on_message(self, sender: PeerId, mail: Mail, now_s: float, *, slow: bool) -> None:
        fields, machine = mail.fields, self.machine
        if mail.kind == "state":
            step, tokens = fields.integer("outer_step"), fields.integer("tokens")
            self.seen[sender] = (step, fields.digest("head"), tokens)
            self._look(now_s, slow=slow)
            self._catch_up()
        elif mail.kind == "ask":
            self._answer(sender, fields)
        elif mail.kind == "entries":
            self._replay(fields, now_s, slow=slow)
        elif mail.kind == "ready":
            machine.on_ready(sender, fields.integer("outer_step", 1), parse_ready(fields), now_s)
        elif mail.kind == "unready":
            answers = fields.integer("answers", 0, 1) > 0
            machine.on_unready(sender, fields.integer("outer_step", 1), answers=answers)
        elif mail.kind == "opened":
            machine.on_opened(sender, fields.integer("outer_step", 1), fields.digest("previous"), now_s)
        elif mail.kind == "decided":
            joined = machine.joined_roster(fields.integer("outer_step", 1), parse_ballot(fields))
            if joined is not None and sender == joined.ballot.leader:
                self.decided = parse_decided(fields, joined)
                self._be_decided(now_s)
        elif mail.kind == "unformed":
            machine.on_unformed(sender, fields.integer("outer_step", 1), fields.text("reason", 1_000), now_s)
        elif mail.kind == "roster":
            machine.on_roster(parse_roster(fields.inner("roster")), now_s)
        elif mail.kind == "vote":
            vote = Vote(
                fields.digest("entry"),
                fields.digest("state"),
                bytes.fromhex(fields.text("signature")),
                tuple(PeerId(peer) for peer in fields.texts("absent", 64)),
            )
            machine.on_vote(sender, fields.integer("outer_step", 1), parse_ballot(fields), vote, now_s)
        elif mail.kind == "joined":
            step, entry = fields.integer("outer_step", 1), fields.digest("entry")
            machine.on_joined(sender, step, parse_ballot(fields), entry, now_s)
        elif mail.kind == "abort":
            machine.on_abort(
                sender,
                fields.integer("outer_step", 1),
                parse_ballot(fields),
                parse_reason(fields),
                [PeerId(peer) for peer in fields.texts("rejected", 4_096)],
                now_s,
            )
        elif mail.kind == "part":
            ballot = parse_ballot(fields)
            if ballot >= machine.decision.promised:
                self.parts.add((ballot, sender))
                machine.moved(now_s)
                self._stage(now_s)
        else:
            raise ProtocolError(f"no such message: {mail.kind}")

    def _answer(self, sender: PeerId, fields: Fields) -> None:
        height = fields.integer("outer_step")
        later = self.chain[height:] if self._head_at(height) == fields.digest("head") else ()
        self._send([sender], "entries", {"entries": [certified.to_json() for certified in later]})

    def _head_at(self, height: int) -> Digest | None:
        if height > len(self.chain):
            return None
        return self.chain[height - 1].entry.hash if height else self._genesis()

    def _catch_up(self) -> None:
        for peer in self._ahead()[:1]:
            self._ask(peer)

    def _ask(self, peer: PeerId) -> None:
        if self.asked.get(peer) != self.head:
            self.asked[peer] = self.head
            self._send([peer], "ask", {"outer_step": len(self.chain), "head": self.head})

    def _replay(self, fields: Fields, now_s: float, *, slow: bool) -> None:
        moved = False
        for item in fields.items("entries", 100):
            certified = parse_certified(Fields("entries.entry", item))
            entry, certificate = certified
            if entry.previous != self.head or certificate is None:
                continue
            self._check(entry, certificate)
            if entry.hash in self.held and self.machine.on_certificate(entry, certificate, now_s):
                self._act(now_s, slow=slow)
                continue
            self._settle(entry)
            self._append(certified, now_s)
            moved = True
        if moved:
            self._become_due(now_s, slow=slow)
        self._refresh(now_s)
        self._catch_up()

    def _look(self, now_s: float, *, slow: bool) -> None:
        self._refresh(now_s)
        self.machine.look(now_s)
        self._act(now_s, slow=slow)

    # -- what the machine wants done -----------------------------------------------------------------

    def _act(self, now_s: float, *, slow: bool) -> None:
        while actions := self.machine.take_actions():
            records: list[Record] = []
            finish: list[Roster] = []
            for action in actions:
                self._do(action, now_s, slow, records, finish)
            for record in records:
                if slow:
                    self.pending.append(record)
                else:
                    self._save(record)
                    self.machine.on_kept(record, now_s)
            for roster in finish:
                self._finish(roster, now_s)
            self._stage(now_s)
        self.parts = {part for part in self.parts if part[0] >= self.machine.decision.promised}

    def _do(
        self, action: Action, now_s: float, slow: bool, records: list[Record], finish: list[Roster]
    ) -> None:
        match action:
            case Tell(peers, kind, body):
                self._send(peers, kind, body)
            case Propose(roster):
                self._send(sorted(self.linked - self.silent), "roster", {"roster": roster.to_json()})
            case Keep(record):
                records.append(record)
            case Forget():
                self.record = None
            case Reduce(roster, sent):
                self.work = roster
                self.named.add(sent)
                self._send(roster.peers, "part", {"ballot": roster.ballot.to_json()})
            case Finish(roster):
                finish.append(roster)
            case Drop(_):
                self.work = None
            case Ended(_):
                pass
            case CastVote(roster, entry, to):
                self._vote(roster, entry, to, now_s)
            case TellDecided(roster, entry, certificate):
                told = decided_json(roster, entry.hash, certificate)
                self._send([peer for peer in roster.peers if peer != self.me], "decided", told)
            case Commit(entry, certificate):
                self._commit(entry, certificate, now_s, slow=slow)
            case Reject(peer, reason, _):
                self.broken.append(f"{self.me} rejects {peer}, which is honest: {reason}")
            case AskForCertificate(peer):
                self._ask(peer)

    def _send(self, peers: Collection[PeerId], kind: str, body: dict[str, Json]) -> None:
        mail = Mail.of(kind, {"outer_step": len(self.chain) + 1, **body})
        self.outbox += [(peer, mail) for peer in peers if peer in self.linked]

    def _save(self, record: Record) -> None:
        if self.record is None or record.order >= self.record.order:
            self.record = record

    def _missing(self) -> list[PeerId]:
        roster = self.work
        if roster is None:
            return []
        return [peer for peer in roster.peers if peer != self.me and (roster.ballot, peer) not in self.parts]

    def _stage(self, now_s: float) -> None:
        """Where all parts of the ballot are here, its update is."""
        roster = self.work
        if roster is None or self._missing():
            return
        self.work = None
        entry = entry_of(roster, self._slot(), self.setting.rules)
        self._hold(roster.ballot, entry, now_s)

    def _hold(self, ballot: Ballot, entry: Entry, now_s: float) -> None:
        self.held.add(entry.hash)
        self.machine.on_staged(ballot, entry, now_s)
        self._be_decided(now_s)

    def _finish(self, roster: Roster, now_s: float) -> None:
        assert roster.entry is not None
        self._hold(roster.ballot, roster.entry, now_s)  # those that have accepted it have its bytes on disk

    def _be_decided(self, now_s: float) -> None:
        """Commit what the leader says is decided, where that is held here."""
        if self.decided is None or self.decided[0] not in self.machine.decision.voted:
            return
        (name, certificate), self.decided = self.decided, None
        entry = self.machine.decision.voted[name]
        self._check(entry, certificate)
        self.machine.on_certificate(entry, certificate, now_s)

    def _vote(self, roster: Roster, entry: Entry, to: Collection[PeerId], now_s: float) -> None:
        run_id, step, ballot = self.setting.rules.run_id, roster.outer_step, roster.ballot
        signed = vote_bytes(run_id, FRAGMENT, step, ballot, roster.absent, entry.hash)
        vote = Vote(entry.hash, entry.state_digest, signature_of(self.me, signed), roster.absent)
        body: dict[str, Json] = {
            "ballot": ballot.to_json(),
            "absent": [str(peer) for peer in roster.absent],
            "entry": vote.entry,
            "state": vote.state,
            "signature": vote.signature.hex(),
        }
        self._send([peer for peer in to if peer != self.me], "vote", body)
        self.machine.on_vote(self.me, step, ballot, vote, now_s)

    def _commit(self, entry: Entry, certificate: Certificate, now_s: float, *, slow: bool) -> None:
        self._check(entry, certificate)
        if entry.previous != self.head:
            self.broken.append(f"{self.me} commits an entry that doesn't follow its chain")
            return
        for voter in certificate.voters:  # they have committed it, or are about to
            if voter in self.linked and self.seen.get(voter, (0,))[0] < entry.outer_step:
                self.seen[voter] = entry.outer_step, entry.hash, entry.total_tokens
        mine = self._settle(entry)
        self.machine.committed(entry, (), mine=mine)
        self._append(Certified(entry, certificate), now_s)
        self._become_due(now_s, slow=slow)

    def _check(self, entry: Entry, certificate: Certificate) -> None:
        policy = self.setting.rules.policy
        try:
            check_certificate(
                entry,
                certificate,
                self._slot().electorate,
                lambda peer, message, signature: signature_of(peer, message) == signature,
                majority=self.setting.rules.majority,
                min_participants=policy.min_participants,
            )
        except ProtocolError as error:
            self.broken.append(f"{self.me}: the certificate does not prove it: {error}")

    def _append(self, certified: Certified, now_s: float) -> None:
        self.chain = (*self.chain, certified)
        self.committed.append((certified.entry.outer_step, certified.entry.hash))
        self.work, self.parts = None, set()
        self.machine.begin(self._slot(), now_s)
        self.held &= set(self.machine.decision.voted)
        mail = self.hello()
        self.outbox += [(peer, mail) for peer in sorted(self.linked)]

    # -- the island ----------------------------------------------------------------------------------

    def _settle(self, entry: Entry) -> bool:
        """Take what an entry names out of what is still to be contributed; whether anything was."""
        credited = entry.contribution_of(self.me)
        if credited is None:
            return False
        decision = self.machine.decision
        known = {*decision.sent, *([decision.offer.id] if decision.offer else [])}
        trained = self.start + self.tokens
        if credited.start < self._credited():
            self.broken.append(f"{self.me}: tokens {credited.start} to {self._credited()} are credited twice")
        if credited in self.named and credited not in known:
            self.broken.append(f"{self.me} does not recognise what it has sent: {credited}")
        self.start = credited.start + credited.tokens
        self.tokens = max(1, trained - self.start)
        return credited in known

    def _become_due(self, now_s: float, *, slow: bool) -> None:
        if len(self.chain) >= self.setting.target:
            if self.machine.decision.offer is not None:
                self.machine.abandon(now_s, answers=False)
            return
        self.late = slow
        if slow:
            return
        given = f"{self.me} {self.life} {self.start} {self.tokens}".encode()
        named = ContributionId(self.start, self.tokens, hash_bytes(given)[:SUM_LENGTH])
        self.machine.contribute(Offer(named, 1.0, 0), now_s)
