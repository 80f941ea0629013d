"""`OuterLoop`: low-communication training around any inner loop.

Call `step` after every inner optimizer step. Between rounds it counts; when a fragment is due it
takes the pseudo-gradient (anchor - local), lets the node exchange it, and merges what was committed
(DiLoCo, arXiv:2311.08105; with several fragments and a delay, Streaming DiLoCo, arXiv:2501.18512).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from lowcomm.algorithms.aggregation import Aggregation, Mean
from lowcomm.algorithms.fragments import Fragment, make_fragments
from lowcomm.algorithms.merge import merge, rebase
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import Clock, SystemClock
from lowcomm.codecs.base import Codec
from lowcomm.errors import ConfigError, LossError
from lowcomm.exchanges.base import Exchange, Traffic
from lowcomm.islands.base import Island
from lowcomm.membership.ledger import LedgerFile, run_head
from lowcomm.outer.decision import Contribution, RoundPolicy
from lowcomm.outer.node import Node, RoundOutcome
from lowcomm.outer.recovery import JoinReport
from lowcomm.outer.state import OuterState
from lowcomm.outer.thread import LoopThread
from lowcomm.types import Digest, Json, PeerId, PeerStatus, RoundReport, SharedSettings


@dataclass(slots=True)
class _Flight:
    """A round under way: what was sent, and when its result is to be used."""

    contribution: Contribution
    use_at_step: int
    outcome: Future[RoundOutcome]


class OuterLoop:
    """Joins a swarm, and takes part in its outer steps.

    Args:
        island: `wrap_island(model, optimizer)`.
        exchange: how to reach the other islands; None on ranks that are not the island's lead.
        schedule: when fragments are due.
        codec: how pseudo-gradients are compressed.
        outer_optimizer: e.g. `nesterov(lr=0.7, momentum=0.9)`.
        aggregation: what reducers make of the contributions; None = the token-weighted mean.
        round_policy: who must take part and how long anybody waits.
        shared: further settings that must be equal on all islands, e.g. of the inner optimizer.
        expected_peers: islands to wait for at the start, this one included.
        gather_timeout_s: for how long.
        heartbeat_s, lease_s: signs of life, and the silence after which a peer counts as gone.
        chunk_bytes: fp32 bytes of one separately encoded piece.
        shard, num_shards: the part of the data this island uses (-1 = any free one), of how many.
        ledger_path: a file that gets one line per committed entry.
        keep_updates: encoded means per fragment that are kept beside it, for audits.

    Raises:
        ConfigError: the schedule doesn't fit the model, or the aggregation the codec or the policy.
    """

    def __init__(
        self,
        island: Island,
        exchange: Exchange | None,
        *,
        schedule: Schedule,
        codec: Codec,
        outer_optimizer: OuterOptimizer,
        aggregation: Aggregation | None = None,
        round_policy: RoundPolicy | None = None,
        shared: SharedSettings | None = None,
        expected_peers: int = 1,
        gather_timeout_s: float = 120.0,
        heartbeat_s: float = 1.0,
        lease_s: float = 5.0,
        chunk_bytes: int = 1 << 20,
        shard: int = -1,
        num_shards: int = 0,
        ledger_path: Path | None = None,
        keep_updates: int = 0,
        clock: Clock | None = None,
    ) -> None:
        if island.is_lead != (exchange is not None):
            raise ValueError("pass an exchange on the island's lead rank, and None on all others")
        self._island, self._schedule = island, schedule
        self._clock = clock or SystemClock()
        self._expected_peers, self._gather_timeout_s = expected_peers, gather_timeout_s
        self._num_shards = num_shards
        self._layout = island.layout
        self._fragments = make_fragments(self._layout, schedule.num_fragments, schedule.fragmenting)
        self._tokens = [0] * len(self._fragments)
        self._flights: dict[int, _Flight] = {}
        self._realign = [False] * len(self._fragments)
        self._inner_step = 0
        self._outer_steps = [0] * len(self._fragments)
        self._restored = False
        self._loaded_flights: list[tuple[int, Contribution, int]] = []
        self._node: Node | None = None
        self._exchange = exchange
        self.tokens_trained = 0
        self.tokens_credited = 0
        self.wait_s = 0.0
        self.transfer_s = 0.0
        aggregation, round_policy = aggregation or Mean(), round_policy or RoundPolicy()
        _check_aggregation(aggregation, codec, round_policy)
        if exchange is not None:
            state = OuterState(
                exchange.run_id,
                self._fragments,
                [island.read(fragment.tensors) for fragment in self._fragments],
                outer_optimizer,
                codec,
                aggregation,
            )
            self._node = Node(
                exchange,
                state,
                policy=round_policy,
                shared={**_settings(schedule, codec, outer_optimizer, aggregation), **(shared or {})},
                layout=self._layout,
                heartbeat_s=heartbeat_s,
                lease_s=lease_s,
                chunk_bytes=chunk_bytes,
                ledger_file=LedgerFile(ledger_path, keep_updates) if ledger_path else None,
            )
            self._node.peers.state.shard = shard
            self._thread = LoopThread()

    # -- coming and going --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> JoinReport:
        """Reach the swarm and take over its state, or found the run. Collective in the island."""
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
            on_address: called with the shared string that others join with, as soon as it is known.

        Returns:
            The inner step of the checkpoint to load now, or None.

        Raises:
            ExchangeError: the port is taken, an address is wrong, nobody answers, or the swarm
                refuses this island; on the lead only, other ranks are told to stop.
        """
        chosen = None
        if self._node is not None:
            node = self._node
            node.peers.state.checkpoints = tuple(checkpoints)
            self._thread.start()
            self._thread.call(node.start())
            if on_address is not None and self.address:
                on_address(self.address)
            self._thread.call(node.recovery.gather(self._expected_peers, self._gather_timeout_s))
            if self._expected_peers > 1:
                node.recovery.expect_company()
            chosen = node.recovery.common_checkpoint(checkpoints)
        return self._agree(chosen)

    def join(self) -> JoinReport:
        """Take over the swarm's state. Collective in the island.

        A checkpoint, if there is one to load, has to be loaded (`load_state_dict`) before.

        Raises:
            JoinRefusedError, PeerUnreachableError: see `connect`.
        """
        report: JoinReport | None = None
        changed = False
        if self._node is not None:
            node = self._node
            before = [state.anchor for state in node.state.states]
            node.peers.state.inner_step = self._inner_step
            report = self._thread.call(
                node.recovery.join(
                    fresh=not self._restored,
                    alone_ok=node.exchange.founder or self._restored,
                    num_shards=self._num_shards,
                    timeout_s=self._gather_timeout_s,
                )
            )
            changed = report.how in ("replayed", "snapshot")
        facts = None
        if report is not None:
            flags = [int(changed), int(report.out_of_step)]
            facts = [*flags, report.tokens_credited, report.shard, report.inner_step, *report.outer_steps]
        facts = self._island.broadcast(facts, 5 + len(self._fragments))
        changed, out_of_step, credited, shard, self._inner_step = bool(facts[0]), bool(facts[1]), *facts[2:5]
        self._outer_steps = facts[5:]
        self._realign = [out_of_step] * len(self._fragments)
        if changed:
            for fragment in self._fragments:
                values = None
                if self._node is not None:
                    anchor = self._node.state.states[fragment.index].anchor
                    local = self._island.read(fragment.tensors)
                    fresh = not self._restored
                    values = anchor if fresh else rebase(before[fragment.index], anchor, local)
                self._island.write(fragment.tensors, values)
        for index, contribution, use_at_step in self._loaded_flights:
            self._submit(self._fragments[index], contribution, use_at_step)
        self._loaded_flights = []
        return report or JoinReport(
            inner_step=self._inner_step,
            outer_steps=tuple(self._outer_steps),
            peers=(),
            how="aligned",
            entries=0,
            snapshot_bytes=0,
            tokens_credited=credited,
            shard=shard,
            out_of_step=out_of_step,
        )

    def close(self) -> None:
        """Leave the swarm and end the network thread. Idempotent."""
        if self._node is not None and self._thread.running:
            try:
                self._thread.call(self._node.close())
            finally:
                self._thread.stop()

    # -- training ----------------------------------------------------------------------------------

    def step(self, tokens: int) -> tuple[RoundReport, ...]:
        """Count an inner step; start and finish the rounds that are due. Collective in the island.

        Args:
            tokens: what all ranks of the island together trained on in this inner step.

        Returns:
            The rounds that ended now, committed or not; mostly none.

        Raises:
            LossError: the local parameters hold a NaN or Inf, so there is nothing to contribute.
        """
        self._inner_step += 1
        self.tokens_trained += tokens
        for index in range(len(self._tokens)):
            self._tokens[index] += tokens
        if self._node is not None:
            self._node.peers.state.inner_step = self._inner_step
        due = self._schedule.due(self._inner_step)
        if not (due or self._flights or any(self._realign) or self._is_behind()):
            return ()
        for index in self._called(due):
            if index not in self._flights:
                self._begin(self._fragments[index], self._inner_step + self._schedule.delay)
        return self._land(everything=False)

    def finish(self) -> tuple[RoundReport, ...]:
        """The last rounds: every fragment with progress that is not committed. Collective."""
        reports = list(self._land(everything=True))
        for fragment in self._fragments:
            if self._tokens[fragment.index] > 0:
                self._begin(fragment, self._inner_step)
                reports += self._land(everything=True)
        return tuple(reports)

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
        """Fragments to begin now: due by schedule; missed; or, while out of step, asked for by others."""
        flags = None
        if self._node is not None:
            flags = [
                int(
                    index in due
                    or bool(fragment_round.ahead())
                    or (self._realign[index] and fragment_round.called)
                )
                for index, fragment_round in enumerate(self._node.rounds)
            ]
        if self._island.world_size == 1 or any(self._realign) or due:
            chosen = self._island.broadcast(flags, len(self._fragments))
            return [index for index, flag in enumerate(chosen) if flag]
        return []

    def _begin(self, fragment: Fragment, use_at_step: int) -> None:
        values = self._island.read(fragment.tensors)
        if self._node is not None:
            values = self._node.state.states[fragment.index].anchor - values
        norm = float(values.norm())
        if not norm < float("inf"):
            bad = next(name for name, part in self._named(fragment, values) if not part.isfinite().all())
            raise LossError(
                f"inner step {self._inner_step}: parameter {bad} is not finite any more; nothing was sent. "
                "Lower the inner learning rate, or resume from the last checkpoint"
            )
        self._submit(
            fragment, Contribution(values, self._tokens[fragment.index], norm, self._inner_step), use_at_step
        )

    def _submit(self, fragment: Fragment, contribution: Contribution, use_at_step: int) -> None:
        outcome: Future[RoundOutcome] = Future()
        if self._node is not None:
            outcome = self._thread.submit(self._node.contribute(fragment.index, contribution))
        self._flights[fragment.index] = _Flight(contribution, use_at_step, outcome)

    def _land(self, *, everything: bool) -> tuple[RoundReport, ...]:
        reports = []
        for index, flight in sorted(self._flights.items(), key=lambda item: (item[1].use_at_step, item[0])):
            if everything or flight.use_at_step <= self._inner_step:
                del self._flights[index]
                reports.append(self._finish_round(self._fragments[index], flight))
        return tuple(reports)

    def _finish_round(self, fragment: Fragment, flight: _Flight) -> RoundReport:
        """Wait for a round's outcome and bring it into the local parameters of all ranks."""
        outcome: RoundOutcome | None = None
        began_s = self._clock.monotonic_s()
        values: Tensor | None = None
        moved = credited = 0
        outer_step = 0
        if self._node is not None:
            outcome = flight.outcome.result()
            values = self._merged(fragment, outcome)
            moved, credited = int(values is not None), outcome.tokens
            outer_step = self._node.state.chains[fragment.index].outer_step
        facts = self._island.broadcast(
            [
                moved,
                credited,
                outer_step,
                int(bool(outcome and outcome.entry)),
                int(bool(outcome and outcome.adopted)),
                outcome.swarm_step if outcome else 0,
            ]
            if self._node
            else None,
            6,
        )
        moved, credited, outer_step, committed, missed, swarm_step = facts
        if moved:
            self._island.write(fragment.tensors, values)
        wait_s = self._clock.monotonic_s() - began_s
        self._tokens[fragment.index] = max(0, self._tokens[fragment.index] - credited)
        self._outer_steps[fragment.index] = outer_step
        if swarm_step and (missed or self._realign[fragment.index]):
            # in step again: due when the others are, with the learning rate that they have
            self._inner_step += swarm_step - flight.contribution.inner_step
        self._realign[fragment.index] = bool(missed) and not committed
        if fragment.index == 0:
            self.tokens_credited += credited
        self.wait_s += wait_s
        if outcome is not None:
            self.transfer_s += outcome.transfer_s
        return self._report(fragment, flight, outcome, outer_step, bool(committed), credited, wait_s)

    def _merged(self, fragment: Fragment, outcome: RoundOutcome) -> Tensor | None:
        """The new local parameters, or None if the anchor did not move."""
        if outcome.entry is None and outcome.adopted == 0:
            return None
        alpha = self._schedule.merge_alpha
        if outcome.entry is not None and alpha == 0.0:
            return outcome.after
        local = rebase(outcome.before, outcome.base, self._island.read(fragment.tensors))
        return merge(outcome.after, local, alpha) if outcome.entry is not None else local

    def _report(
        self,
        fragment: Fragment,
        flight: _Flight,
        outcome: RoundOutcome | None,
        outer_step: int,
        committed: bool,
        credited: int,
        wait_s: float,
    ) -> RoundReport:
        entry = outcome.entry if outcome else None
        participants: tuple[PeerId, ...] = tuple(peer for peer, _ in entry.participants) if entry else ()
        return RoundReport(
            outer_step=outer_step,
            fragment=fragment.index,
            committed=committed,
            reason=outcome.reason if outcome else "",
            participants=participants,
            attempts=outcome.attempts if outcome else 0,
            bytes_sent=outcome.bytes_sent if outcome else 0,
            bytes_received=outcome.bytes_received if outcome else 0,
            round_s=outcome.round_s if outcome else wait_s,
            wait_s=wait_s,
            form_s=outcome.form_s if outcome else 0.0,
            transfer_s=outcome.transfer_s if outcome else 0.0,
            tokens=credited,
            round_tokens=sum(tokens for _, tokens in entry.participants) if entry else 0,
            compression_ratio=4 * fragment.elements / entry.update_bytes
            if entry and entry.update_bytes
            else None,
            pseudo_gradient_norm=flight.contribution.norm,
            mean_norm=outcome.mean_norm if outcome else None,
            cosine=outcome.cosine if outcome else None,
            adopted=outcome.adopted if outcome else 0,
            digest=outcome.digest if outcome else Digest(""),
            head=outcome.head if outcome else Digest(""),
        )

    # -- looking in --------------------------------------------------------------------------------

    @property
    def is_lead(self) -> bool:
        """Whether this rank talks to the other islands."""
        return self._node is not None

    @property
    def inner_step(self) -> int:
        """Inner steps on the swarm's count; the learning rate follows it."""
        return self._inner_step

    @property
    def outer_step(self) -> int:
        """Outer steps that all fragments have reached."""
        return min(self._outer_steps)

    @property
    def tokens_uncommitted(self) -> int:
        """Tokens of this island that no committed round has credited yet."""
        return max(self._tokens)

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model."""
        return sum(spec.elements for spec in self._layout)

    @property
    def digest(self) -> Digest:
        """Of the whole outer state; equal on all islands at equal outer steps. Lead only."""
        return self._lead.state.digest

    @property
    def head(self) -> Digest:
        """Of the run: the hash over the fragments' heads. Lead only."""
        return run_head([chain.head for chain in self._lead.state.chains])

    @property
    def peer_id(self) -> PeerId:
        """This island's name in the swarm. Lead only."""
        return self._lead.exchange.peer_id

    @property
    def address(self) -> str:
        """The shared string (run id and address) that others join with; empty if there is none."""
        return self._lead.exchange.join_string

    @property
    def shard(self) -> int:
        """The part of the data that this island has claimed; -1 if none. Lead only."""
        return self._lead.peers.state.shard

    @property
    def traffic(self) -> Traffic:
        """Bytes on this island's sockets so far. Lead only."""
        return self._lead.exchange.traffic

    @property
    def num_peers(self) -> int:
        """Live islands, this one included. Lead only."""
        return 1 + len(self._lead.peers.live())

    def peers(self) -> list[PeerStatus]:
        """All live peers as this one sees them. Lead only."""

        async def look() -> list[PeerStatus]:
            return self._lead.peers.statuses()

        return self._thread.call(look())

    def tell_speed(self, tokens_per_s: float) -> None:
        """Let the other islands know how fast this one trains. Lead only."""
        self._lead.peers.state.tokens_per_s = tokens_per_s

    def anchor(self) -> dict[str, Tensor]:
        """The anchor as named fp32 tensors on the host. Lead only."""
        return {
            name: part
            for fragment, state in zip(self._fragments, self._lead.state.states, strict=True)
            for name, part in self._named(fragment, state.anchor)
        }

    @contextmanager
    def anchor_weights(self) -> Iterator[None]:
        """The island's model holds the anchor inside, its own parameters again after. Collective."""
        local = [self._island.read(fragment.tensors) for fragment in self._fragments]
        try:
            for fragment in self._fragments:
                anchor = self._node.state.states[fragment.index].anchor if self._node else None
                self._island.write(fragment.tensors, anchor)
            yield
        finally:
            for fragment, values in zip(self._fragments, local, strict=True):
                self._island.write(fragment.tensors, values if self._node else None)

    # -- saving and restoring ----------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a restart needs to go on bit for bit; for `torch.save`.

        Rounds under way are saved as what was sent, and sent again after the restart.
        """
        state: dict[str, Any] = {
            "inner_step": self._inner_step,
            "outer_steps": list(self._outer_steps),
            "tokens": list(self._tokens),
            "tokens_trained": self.tokens_trained,
            "tokens_credited": self.tokens_credited,
            "realign": list(self._realign),
            "flights": [
                [index, sent.values, sent.tokens, sent.inner_step, flight.use_at_step]
                for index, flight in sorted(self._flights.items())
                for sent in (flight.contribution,)
            ],
        }
        if self._node is not None:
            state["shard"] = self._node.peers.state.shard
            state["outer"] = self._node.state.state_dict()
            state["anchor"] = self.anchor()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, between `connect` and `join`.

        Raises:
            CheckpointError: it belongs to another model or is damaged.
        """
        self._inner_step = state["inner_step"]
        self._outer_steps = list(state["outer_steps"])
        self._tokens = list(state["tokens"])
        self.tokens_trained, self.tokens_credited = state["tokens_trained"], state["tokens_credited"]
        self._realign = list(state["realign"])
        self._restored = True
        self._loaded_flights = [
            (index, Contribution(values, tokens, float(values.norm()), began_at_step), use_at_step)
            for index, values, tokens, began_at_step, use_at_step in state["flights"]
        ]
        if self._node is not None:
            self._thread.call(self._node.restore(state["outer"], state["shard"]))

    @property
    def _lead(self) -> Node:
        if self._node is None:
            raise RuntimeError("only the lead rank of an island knows this")
        return self._node

    def _agree(self, step: int | None) -> int | None:
        """The lead's answer on all ranks."""
        answer = self._island.broadcast([-1 if step is None else step] if self._node else None, 1)[0]
        return None if answer < 0 else answer

    def _named(self, fragment: Fragment, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        start = 0
        for index in fragment.tensors:
            spec = self._layout[index]
            yield spec.name, flat[start : start + spec.elements].view(spec.shape)
            start += spec.elements


def _check_aggregation(aggregation: Aggregation, codec: Codec, policy: RoundPolicy) -> None:
    name = aggregation.settings["name"]
    if aggregation.min_participants > max(1, policy.min_participants):
        raise ConfigError(
            f"shared.aggregation: {name} needs {aggregation.min_participants} participants to keep what it "
            f"promises; raise shared.round.min_participants, now {policy.min_participants}, to that"
        )
    if name != "mean" and codec.topology != "reduce_scatter":
        raise ConfigError(
            f"shared.aggregation: {name} needs a codec whose chunks are reduced by one peer, and "
            f"{codec.name} has none; use mean with it, or a dense codec"
        )


def _settings(
    schedule: Schedule, codec: Codec, outer_optimizer: OuterOptimizer, aggregation: Aggregation
) -> dict[str, Json]:
    """What the loop itself needs to be equal everywhere, as dotted keys."""
    settings: dict[str, Json] = {
        "shared.schedule.inner_steps": schedule.inner_steps,
        "shared.schedule.num_fragments": schedule.num_fragments,
        "shared.schedule.fragmenting": schedule.fragmenting,
        "shared.codec.name": codec.name,
        "shared.codec.error_feedback": codec.error_feedback,
    }
    settings.update({f"shared.aggregation.{key}": value for key, value in aggregation.settings.items()})
    settings.update({f"shared.outer.{key}": value for key, value in outer_optimizer.settings.items()})
    return settings
