"""`OuterLoop`: low-communication training around any inner loop.

Call `step` after every inner optimizer step. Between rounds it counts; when a fragment is due it
takes the pseudo-gradient (anchor - local), lets the node exchange it, and merges what was committed
(DiLoCo, arXiv:2311.08105; with several fragments and a delay, Streaming DiLoCo, arXiv:2501.18512).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from lowcomm import arguments
from lowcomm.algorithms.aggregation import Aggregation
from lowcomm.algorithms.fragments import Fragment, make_fragments, named_parts
from lowcomm.algorithms.merge import rebase_
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.algorithms.schedule import Schedule
from lowcomm.arguments import show
from lowcomm.clock import Clock
from lowcomm.codecs.base import Codec
from lowcomm.errors import ArgumentError, CheckpointError
from lowcomm.exchanges.base import Exchange
from lowcomm.islands.base import Island
from lowcomm.islands.vectors import Vector, spans
from lowcomm.ledger.entry import MAX_TOKENS
from lowcomm.ledger.file import LedgerFile
from lowcomm.ledger.state import OuterState, saved_position
from lowcomm.outer.arguments import Arguments, listener, steps_saved
from lowcomm.outer.flights import Flights
from lowcomm.outer.inspection import Views
from lowcomm.outer.life import Life
from lowcomm.outer.node import Node
from lowcomm.outer.pacing import Pacing
from lowcomm.outer.progress import Progress
from lowcomm.outer.restart import Joined, Restart
from lowcomm.outer.thread import LoopThread
from lowcomm.peers.agreement import DATA_DIGEST, FROZEN_DIGEST, check_unchanged
from lowcomm.recovery.joining import JoinReport
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.types import Json, RoundReport, SharedSettings

COUNT_TOKENS = "pass what this inner step was trained on, e.g. batch.numel() or int(mask.sum())"


class OuterLoop(Views):
    """Joins a swarm, and takes part in its outer steps.

    Args:
        island: `wrap_island(model, optimizer)`.
        exchange: how to reach the other islands; None on ranks that are not the island's lead.
        schedule: when fragments are due.
        codec: how pseudo-gradients are compressed, or its name, e.g. "int8".
        outer_optimizer: e.g. `nesterov(lr=0.7, momentum=0.9)`; "nesterov" = `nesterov()`.
        aggregation: what reducers make of the contributions, or its name; None = the token-weighted mean.
        round_policy: who must take part and how long anybody waits.
        shared: further settings that must be equal on all islands, e.g. of the inner optimizer.
        data_digest: a hash of the data that all islands have in common, compared when they meet and when a
            checkpoint is loaded; empty where each has its own.
        expected_peers: islands to wait for at the start, this one included.
        gather_timeout_s: for how long.
        heartbeat_s, lease_s: signs of life, and the silence after which a peer counts as gone.
        chunk_bytes: fp32 bytes of one separately encoded piece.
        shard, num_shards: the part of the data this island uses (-1 = any free one), of how many.
        folder: the run folder: `ledger.jsonl` gets a line per committed entry; snapshots under way and what
            others may still ask for are kept there. None = no ledger, and temporary files.
        keep_updates: encoded means per fragment that are kept beside the ledger, for audits.
        snapshot_mbit_s: upload rate for snapshots handed to others; 0 = unlimited.
        on_address: called on the lead with the shared string that others join with, as soon as it is known:
            before any wait for them. E.g. `print`.
        name: what the others and `lowcomm status` call this island; empty = this host's name.
        found: go on at once where nobody is there, also if `folder` knows islands of an earlier process;
            otherwise they are looked for first, for half a minute.

    Raises:
        ConfigError: an argument is of another type or out of range, the schedule doesn't fit the model, or
            the aggregation the codec or the policy.
        UsageError: the exchange belongs to another loop.
    """

    def __init__(
        self,
        island: Island,
        exchange: Exchange | None,
        *,
        schedule: Schedule,
        codec: Codec | str,
        outer_optimizer: OuterOptimizer | str,
        aggregation: Aggregation | str | None = None,
        round_policy: RoundPolicy | None = None,
        shared: SharedSettings | None = None,
        data_digest: str = "",
        expected_peers: int = 1,
        gather_timeout_s: float = 120.0,
        heartbeat_s: float = 1.0,
        lease_s: float = 5.0,
        chunk_bytes: int = 1 << 20,
        shard: int = -1,
        num_shards: int = 0,
        folder: Path | str | None = None,
        keep_updates: int = 0,
        snapshot_mbit_s: float = 100.0,
        on_address: Callable[[str], None] | None = None,
        name: str = "",
        clock: Clock | None = None,
        found: bool = False,
    ) -> None:
        given = Arguments.of(
            island=island,
            exchange=exchange,
            schedule=schedule,
            codec=codec,
            outer_optimizer=outer_optimizer,
            aggregation=aggregation,
            round_policy=round_policy,
            shared=shared,
            data_digest=data_digest,
            expected_peers=expected_peers,
            gather_timeout_s=gather_timeout_s,
            heartbeat_s=heartbeat_s,
            lease_s=lease_s,
            chunk_bytes=chunk_bytes,
            shard=shard,
            num_shards=num_shards,
            folder=folder,
            keep_updates=keep_updates,
            snapshot_mbit_s=snapshot_mbit_s,
            on_address=on_address,
            name=name,
            clock=clock,
            found=found,
        )
        self._island, self._given, self._restart, self._life = island, given, Restart(), Life()
        schedule = given.schedule
        fragments = make_fragments(island.layout, schedule.num_fragments, schedule.fragmenting)
        digests = {FROZEN_DIGEST: island.frozen_digest(), DATA_DIGEST: given.data_digest}
        self._digests: dict[str, Json] = {key: digest for key, digest in digests.items() if digest}
        self._vectors = island.open_vectors()
        node = self._make_node(given, fragments)
        super().__init__(island.layout, fragments, schedule, Progress(len(fragments)), node, LoopThread())
        self._pacing = Pacing(schedule, len(fragments), island.world_size, given.clock)
        self._flights = Flights(
            island, fragments, schedule, self._progress, self._pacing, given.clock, node, self._thread
        )

    def _make_node(self, given: Arguments, fragments: Sequence[Fragment]) -> Node | None:
        """What the lead has; the other ranks take their part in reading. Collective in the island."""
        anchors = (given.island.read(fragment.tensors) for fragment in fragments)
        if given.exchange is None:
            for _ in anchors:
                pass  # one fragment at a time
            return None
        state = OuterState(
            given.exchange.run_id,
            fragments,
            anchors,
            given.outer_optimizer,
            given.codec,
            given.aggregation,
            self._vectors,
        )
        folder = given.folder
        node = Node(
            given.exchange,
            state,
            policy=given.round_policy,
            shared={**given.settings, **self._digests, **given.shared},
            layout=given.island.layout,
            heartbeat_s=given.heartbeat_s,
            lease_s=given.lease_s,
            chunk_bytes=given.chunk_bytes,
            ledger_file=LedgerFile(folder / "ledger.jsonl", given.keep_updates) if folder else None,
            folder=folder,
            snapshot_mbit_s=given.snapshot_mbit_s,
        )
        node.peers.state.shard, node.peers.state.name = given.shard, given.name
        return node

    # -- coming and going --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> JoinReport:
        """Reach the swarm and take over its state, or found the run. Collective in the island.

        Raises:
            UsageError: it was started before.
            ExchangeError: see `connect` and `join`; the loop is closed then.
        """
        self._life.require("start", "new")
        try:
            self.connect()
            return self.join()
        except BaseException:
            self.close()
            raise

    def connect(
        self, checkpoints: Sequence[int] = (), *, on_address: Callable[[str], None] | None = None
    ) -> int | None:
        """Start the network and wait for the expected islands. Collective in the island.

        Args:
            checkpoints: inner steps of the checkpoints this island could resume from.
            on_address: in place of the constructor's.

        Returns:
            The inner step of the checkpoint to load now, or None.

        Raises:
            UsageError: it was started before.
            ConfigError: `checkpoints` are no inner steps, or `on_address` is no function.
            ExchangeError: the port is taken, an address is wrong, nobody answers, or the swarm
                refuses this island; on the lead only, other ranks are told to stop.
        """
        given, chosen = self._given, None
        saved = steps_saved(checkpoints)
        on_address = listener("outer.connect", on_address) or given.on_address
        with self._life.moves("connect", "new", "connected"):
            if self._node is not None:
                node = self._node
                node.peers.state.checkpoints = saved
                self._thread.start()
                self._thread.call(node.start())
                if on_address is not None and self.address:
                    on_address(self.address)
                self._thread.call(node.joining.gather(given.expected_peers, given.gather_timeout_s))
                if given.expected_peers > 1:
                    node.joining.expect_company()
                chosen = node.joining.common_checkpoint(saved)
            return self._agree(chosen)

    def join(self, *, over: bool = False) -> JoinReport:
        """Take over the swarm's state. Collective in the island.

        A checkpoint, if there is one to load, has to be loaded (`load_state_dict`) before.

        Args:
            over: nothing is left to train, so that an island that is alone warns of no second history.

        Raises:
            UsageError: without `connect` before it.
            JoinRefusedError, PeerUnreachableError: see `connect`.
        """
        with self._life.moves("join", "connected", "joined"):
            return self._join(over)

    def _join(self, over: bool) -> JoinReport:
        report: JoinReport | None = None
        facts: list[int] | None = None
        if self._node is not None:
            node = self._node
            if self._restart.loaded:
                self._restart.keep([state.anchor for state in node.state.states])
            node.peers.state.inner_step = self.swarm_step
            if not (over or self._given.found):
                self._thread.call(node.joining.look_for_others())
            report = self._thread.call(
                node.joining.join(
                    fresh=not self._restart.loaded,
                    alone_ok=node.directory.founder or self._restart.loaded,
                    num_shards=self._given.num_shards,
                    timeout_s=self._given.gather_timeout_s,
                    over=over,
                )
            )
            facts = Joined.of(report, [chain.total_tokens for chain in node.state.chains]).to_integers()
        joined = Joined.parse(self._island.broadcast(facts, Joined.length(len(self._fragments))))
        progress = self._progress
        if self._pacing.fixed:
            progress.inner_step = joined.inner_step
        given_up = [skipped and self._restart.loaded for skipped in joined.skipped]
        for index, total in enumerate(joined.totals):
            if total != progress.totals[index]:
                progress.committed(index, total, 0, progress.inner_step)
        progress.outer_steps = list(joined.outer_steps)
        progress.realign = [joined.out_of_step] * len(self._fragments)
        uncommitted = list(progress.tokens)
        credited = progress.recover(joined.credits)
        for fragment in self._fragments:
            if given_up[fragment.index]:
                progress.give_up(fragment.index)
        if joined.changed:
            for fragment, done, left in zip(self._fragments, joined.credits, uncommitted, strict=True):
                self._take_over(fragment, done, left, given_up=given_up[fragment.index])
        for saved in self._restart.end(joined):
            fragment = self._fragments[saved.fragment]
            self._flights.submit(fragment, saved.contribution, saved.steps, saved.use_at_step, saved.shift)
        if report is not None:
            return replace(report, tokens_credited=credited, inner_step=progress.inner_step)
        return JoinReport(
            inner_step=progress.inner_step,
            outer_steps=joined.outer_steps,
            peers=(),
            how="aligned",
            entries=0,
            snapshot_bytes=0,
            skipped=tuple(given_up),
            credits=joined.credits,
            tokens_credited=credited,
            shard=joined.shard,
            out_of_step=joined.out_of_step,
        )

    def _take_over(self, fragment: Fragment, credited: int, left: int, *, given_up: bool) -> None:
        """Bring the state that was taken over into the local parameters of all ranks.

        Args:
            credited, left: see `Restart.base`.
            given_up: the checkpoint's own progress is not to be kept.
        """
        local = self._island.read(fragment.tensors)
        values = None
        if self._node is not None:
            anchor = self._node.state.states[fragment.index].anchor
            found = None if given_up else self._restart.base(fragment.index, credited, left)
            if found is None:
                values = anchor.load()
            else:
                base, shift = found
                values = local if shift is None else local.sub_(shift)
                for start, stop in spans(fragment.elements):
                    rebase_(values[start:stop], base.load(start, stop), anchor.load(start, stop))
        self._island.write(fragment.tensors, values)

    def close(self) -> None:
        """Leave the swarm and end the network thread. Idempotent."""
        self._life.phase = "closed"
        if self._node is not None and self._thread.running:
            try:
                self._thread.call(self._node.close())
            finally:
                self._thread.stop()
        if self._vectors is not None:
            self._vectors.close()

    # -- training ----------------------------------------------------------------------------------

    def show_loss(self, loss: float) -> None:
        """Show the others this island's training loss, in nats per token, e.g. in their `lowcomm status`.

        Raises:
            ArgumentError: it is no number.
        """
        value = arguments.plain(loss)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"outer.show_loss: loss: expected a number, got {show(loss)}")
        if self._node is not None:
            self._node.peers.state.loss = float(value) if arguments.is_finite(value) else None

    def step(self, tokens: int) -> tuple[RoundReport, ...]:
        """Count an inner step; start and finish the rounds that are due. Collective in the island.

        Args:
            tokens: what all ranks of the island together trained on in this inner step; a whole number.

        Returns:
            The rounds that ended now, committed or not; mostly none.

        Raises:
            UsageError: before `start`, or after `close`.
            ConfigError: `tokens` is no whole number of at least 0.
            LossError: the local parameters have diverged, so there is nothing to contribute.
            JoinRefusedError: another live process uses this peer's identity; on the lead only.
        """
        self._life.require("step", "joined")
        count = arguments.whole("outer.step: tokens", tokens, least=0, most=MAX_TOKENS, advice=COUNT_TOKENS)
        with self._flights.between_steps(count):
            return self._after_step(count)

    def _after_step(self, tokens: int) -> tuple[RoundReport, ...]:
        self._progress.trained(tokens)
        if self._vectors is not None:
            self._vectors.tidy()
        if self._node is not None:
            self._node.raise_fatal()
            self._node.peers.state.inner_step = self.swarm_step
        due = self._pacing.due(self._progress.inner_step)
        looks = self._pacing.looks(self._progress.inner_step)
        if due or looks or any(self._progress.realign) or self._is_behind():
            for index in self._called(due):
                if index not in self._flights:
                    self._flights.begin(self._fragments[index])
        return self._flights.land(everything=False)

    def finish(self) -> tuple[RoundReport, ...]:
        """The last rounds: every fragment with progress that is not committed. Collective.

        Where islands take unlike numbers of steps, one may have work left that another has not, and none is
        to be alone in its last round: the ledger, equal for all, says whether a fragment needs another one.

        Raises:
            UsageError: before `start`, or after `close`.
        """
        self._life.require("finish", "joined")
        reports = list(self._flights.land(everything=True))
        for fragment in self._fragments:
            again = self._needs_last_round(fragment.index)
            while again:
                self._flights.begin(fragment, last=True)
                ended = self._flights.land(everything=True)
                reports += ended
                moved = any(r.fragment == fragment.index and r.round_tokens > 0 for r in ended)
                again = moved and fragment.index > 0 and self._needs_last_round(fragment.index)
        return tuple(reports)

    def _needs_last_round(self, index: int) -> bool:
        progress = self._progress
        if self._pacing.fixed:
            return progress.tokens[index] > 0
        if index == 0:
            return progress.tokens[0] > 0 or self._schedule.delay != 0
        return progress.totals[index] < progress.totals[0]

    def _is_behind(self) -> bool:
        """Whether the others have committed without this island.

        Several ranks would have to agree on it at every step; they look when a fragment is due.
        """
        return (
            self._node is not None
            and self._island.world_size == 1
            and any(fragment_round.ahead() for fragment_round in self._node.rounds)
        )

    def _called(self, due: tuple[int, ...]) -> list[int]:
        """Fragments to begin now: due; missed; waited for; or, while out of step, asked for by others.

        Collective in the island.
        """
        flags = None
        if self._node is not None:
            flags = [
                int(
                    index in due
                    or bool(fragment_round.ahead())
                    or (self._progress.realign[index] and fragment_round.is_called())
                    or self._pacing.early(index, fragment_round.is_called)
                )
                for index, fragment_round in enumerate(self._node.rounds)
            ]
        chosen = self._island.broadcast(flags, len(self._fragments))
        return [index for index, flag in enumerate(chosen) if flag]

    @contextmanager
    def anchor_weights(self) -> Iterator[None]:
        """The island's model holds the anchor inside, its own parameters again after. Collective.

        Raises:
            UsageError: before `start`, or after `close`; inside it by `step` and `finish`.
        """
        with self._life.evaluates():
            local: list[Vector] = []
            for fragment in self._fragments:
                values = self._island.read(fragment.tensors)
                if self._vectors is not None:
                    local.append(self._vectors.hold(values))
            try:
                for fragment in self._fragments:
                    anchor = self._node.state.states[fragment.index].anchor.load() if self._node else None
                    self._island.write(fragment.tensors, anchor)
                yield
            finally:
                for fragment in self._fragments:
                    own = local[fragment.index].load() if local else None
                    self._island.write(fragment.tensors, own)

    # -- saving and restoring ----------------------------------------------------------------------

    def state_dict(self, *, fragments: bool = True) -> dict[str, Any]:
        """Everything that a restart needs to go on bit for bit; for `torch.save`.

        Rounds under way are saved as what was sent, and sent again after the restart; so where one has been
        committed already and not merged yet, the outer state from before it is saved.

        Args:
            fragments: with `fragment_state` of each under that name, all in this rank's memory; without
                them whoever saves asks for one after the other.
        """
        if self._node is not None and self._thread.running:
            self._node.recorder.written().result()  # else the ledger file could lack what the state has
        state: dict[str, Any] = {**self._progress.state_dict(), "flights": self._flights.state_dict()}
        state["pacing"] = self._pacing.state_dict()
        state["digests"] = dict(self._digests)
        if self._node is not None:
            state["shard"] = self._node.peers.state.shard
            if fragments:
                state["fragments"] = [self.fragment_state(index) for index in range(self.num_fragments)]
        return state

    def fragment_state(self, index: int) -> dict[str, Any]:
        """What a restart needs of one fragment; as long as no step is taken it fits `state_dict`. Lead only.

        Under `tensors` the anchor as named fp32 tensors of their own shapes.

        Raises:
            ConfigError: there is no such fragment.
        """
        index = arguments.whole("outer.fragment_state: index", index, least=0, most=self.num_fragments - 1)
        saved = saved_position(self._lead.submissions.standing[index])
        sent, shift = self._flights.sent(index)
        named = dict(named_parts(self._layout, self._fragments[index], saved["anchor"]))
        return {**saved, "sent": sent, "shift": shift, "tensors": named}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`, between `connect` and `join`.

        Args:
            state: `fragments` in it may be any iterable; the lead alone goes through it, once, and keeps
                nothing whole.

        Raises:
            UsageError: not between the two.
            CheckpointError: it belongs to another model or is damaged.
        """
        self._life.require("load_state_dict", "connected")
        if self._node is not None:
            check_unchanged(self._digests, state.get("digests", {}))
        self._progress.load_state_dict(state)
        self._pacing.load_state_dict(state["pacing"])
        tensors: dict[int, tuple[Tensor, Tensor | None]] = {}
        if self._node is not None:
            saved_fragments = iter(state["fragments"])
            for index in range(self.num_fragments):
                saved = next(saved_fragments, None)
                if saved is None:
                    raise CheckpointError(
                        f"expected {self.num_fragments} fragments, the checkpoint has {index}"
                    )
                self._thread.call(self._node.restore(index, saved))
                if saved["sent"] is not None:
                    tensors[index] = saved["sent"], saved["shift"]
            if self._node.peers.state.shard < 0:
                self._node.peers.state.shard = state["shard"]
        self._restart.load(state["flights"], tensors)

    def _agree(self, step: int | None) -> int | None:
        """The lead's answer on all ranks."""
        answer = self._island.broadcast([-1 if step is None else step] if self._node else None, 1)[0]
        return None if answer < 0 else answer
