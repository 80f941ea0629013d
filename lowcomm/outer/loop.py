"""`OuterLoop`: low-communication training around any inner loop.

Call `step` after every inner optimizer step. Between rounds it counts; when a fragment is due it
takes the pseudo-gradient (anchor - local), lets the node exchange it, and merges what was committed
(DiLoCo, arXiv:2311.08105; with several fragments and a delay, Streaming DiLoCo, arXiv:2501.18512).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from lowcomm import arguments
from lowcomm.algorithms.aggregation import Aggregation
from lowcomm.algorithms.fragments import make_fragments, named_parts
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.algorithms.schedule import Schedule
from lowcomm.arguments import show
from lowcomm.clock import Clock
from lowcomm.codecs.base import Codec
from lowcomm.errors import ArgumentError, UsageError
from lowcomm.exchanges.base import Exchange, Traffic
from lowcomm.islands.base import Island
from lowcomm.islands.vectors import Vector
from lowcomm.ledger.entry import MAX_TOKENS, run_head
from lowcomm.outer.arguments import Arguments, listener, runs_of, steps_saved
from lowcomm.outer.island_side import IslandSide
from lowcomm.outer.life import Life
from lowcomm.outer.network import Network, lead_node
from lowcomm.outer.node import Node
from lowcomm.outer.records import Records
from lowcomm.outer.units import unit_state
from lowcomm.peers.agreement import DATA_DIGEST, FROZEN_DIGEST, check_unchanged
from lowcomm.recovery.joining import JoinReport
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.spans import Spans, flat, parse_spans
from lowcomm.storage.files import make_folder
from lowcomm.types import Digest, Json, PeerId, PeerStatus, RoundReport, SharedSettings

COUNT_TOKENS = "pass what this inner step was trained on, e.g. batch.numel() or int(mask.sum())"


class OuterLoop:
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
        unit_samples: samples in a unit, where islands lease what they train on (`lease`) instead, and entries
            credit it; 0 = they don't.
        folder: the run folder, made if it isn't there: `ledger.jsonl` gets a line per committed entry;
            snapshots under way and what others may still ask for are kept there. None = no ledger, and
            temporary files.
        metrics: write what `lowcomm report` and `lowcomm export` read into `folder`: metrics.jsonl, with the
            losses that `show_loss` is given, and at the end summary.json and the anchor.
        wandb: with them, also to Weights & Biases: "online", "offline", "auto" or "off".
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
        unit_samples: int = 0,
        folder: Path | str | None = None,
        keep_updates: int = 0,
        snapshot_mbit_s: float = 100.0,
        on_address: Callable[[str], None] | None = None,
        name: str = "",
        clock: Clock | None = None,
        found: bool = False,
        metrics: bool = True,
        wandb: str = "off",
    ) -> None:
        given = Arguments.of(**{name: value for name, value in locals().items() if name != "self"})
        self._island, self._given, self._life = island, given, Life()
        schedule = given.schedule
        fragments = make_fragments(island.layout, schedule.num_fragments, schedule.fragmenting)
        digests = {FROZEN_DIGEST: island.frozen_digest(), DATA_DIGEST: given.data_digest}
        self._digests: dict[str, Json] = {key: digest for key, digest in digests.items() if digest}
        self._vectors = island.open_vectors()
        if exchange is not None and given.folder is not None:
            make_folder(given.folder)
        node = lead_node(given, fragments, self._digests, self._vectors)
        self._node, self._network, self._fragments = node, Network(node), fragments
        standing = [node.state.position(fragment.index) for fragment in fragments] if node else []
        self._side = IslandSide(island, fragments, schedule, given.outer_optimizer, given.clock, standing)
        self._progress = self._side.progress
        self._records: Records | None = None
        if node is not None and given.folder is not None and given.metrics:
            self._records = Records(
                given.folder,
                node.signer.run_id,
                {**given.settings, **given.shared},
                expected_peers=given.expected_peers,
                island=island,
                clock=given.clock,
                wandb=given.wandb,
            )

    # -- coming and going --------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._records is not None:
            self._records.close(error)
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
            if (node := self._node) is not None:
                self._network.start()
                self._network.call(node.start(saved))
                if on_address is not None and self.address:
                    on_address(self.address)
                self._network.call(node.joining.gather(given.expected_peers, given.gather_timeout_s))
                chosen = node.joining.common_checkpoint(saved)
            return self._island.broadcast(chosen)

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
            self._network.run(self._side.joins())
            joined, given = None, self._given
            if self._node is not None:
                joining = self._node.joining.join(
                    fresh=not self._side.resumes,
                    num_shards=given.num_shards,
                    timeout_s=given.gather_timeout_s,
                    found=given.found,
                    over=over,
                )
                joined = self._network.call(joining)
            report = self._network.run(self._side.joined(joined))
            if self._node is not None and report.skipped[0] and self._side.resumes:
                self._network.call(self._node.units.forget())
        if self._records is not None:
            self._records.start(self, report)
        return report

    def close(self) -> None:
        """Leave the swarm and end the network thread. Idempotent."""
        if self._records is not None:
            self._records.close()
        self._life.phase = "closed"
        self._network.close()
        if self._vectors is not None:
            self._vectors.close()

    # -- training ----------------------------------------------------------------------------------

    def show_loss(self, loss: float) -> None:
        """Show the others this island's training loss, e.g. in their `lowcomm status`, and record it.

        Raises:
            ArgumentError: it is no number.
        """
        value = arguments.plain(loss)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"outer.show_loss: loss: expected a number, got {show(loss)}")
        known = float(value) if arguments.is_finite(value) else None
        if self._records is not None and known is not None:
            self._records.show_loss(known)
        self._network.run(self._side.show_loss(known))

    def lease(self, count: int, again: Spans | None = None) -> Spans:
        """At least so many samples to train on next, that nobody else has. Collective in the island.

        Samples are numbers in the endless order of the data, the same on all islands. Whoever is gone gives
        back what no entry credits.

        Args:
            again: what a checkpoint has of an earlier lease; what is still free of that is returned, and
                `count` doesn't matter.

        Returns:
            (first, stop) of runs of samples, ascending.

        Raises:
            UsageError: before `start`, after `close`, or without `unit_samples`.
            ConfigError: `count` is no whole number of at least 1.
        """
        self._life.require("lease", "joined")
        if not self._given.unit_samples:
            raise UsageError("outer.lease: expected OuterLoop(unit_samples=...), got 0: nothing is leased")
        asked = arguments.whole("outer.lease: count", count, least=1, most=MAX_TOKENS)
        leased: list[int] | None = None
        if self._node is not None:
            units = self._node.units
            leased = self._network.call(units.lease(asked) if again is None else units.retake(flat(again)))
        leased = self._island.broadcast(leased)
        return parse_spans("leased", leased, len(leased))

    def step(self, tokens: int, samples: Spans = ()) -> tuple[RoundReport, ...]:
        """Count an inner step; start and finish the rounds that are due. Collective in the island.

        Args:
            tokens: what all ranks of the island together trained on in this inner step; a whole number.
            samples: (first, stop) of runs of samples that it was trained on, of those that were leased.

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
        if self._vectors is not None:
            self._vectors.tidy()
        if self._node is not None:
            self._node.raise_fatal()
        if samples and self._node is not None:
            self._node.units.trained(runs_of(samples), count)
        reports = self._network.run(self._side.step(count))
        if self._records is not None:
            self._records.stepped(self, reports)
        return reports

    def finish(self) -> tuple[RoundReport, ...]:
        """The last rounds: every fragment with progress that is not committed. Collective.

        Raises:
            UsageError: before `start`, or after `close`.
        """
        self._life.require("finish", "joined")
        reports = self._network.run(self._side.finish())
        if self._records is not None:
            self._records.stepped(self, reports)
            self._records.finished(self, self.anchor())
        return reports

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
        if self._node is not None and self._network.running:
            self._node.recorder.written().result()  # else the ledger file could lack what the state has
        state = {**self._side.state_dict(), "digests": dict(self._digests)}
        if self._node is not None:
            state["shard"] = self._node.peers.state.shard
            if self._given.unit_samples and self._network.running:
                state["samples"] = self._network.call(self._node.units.state(self._progress.outer_steps[0]))
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
        self._network.require_lead()
        return self._side.fragment_state(index)

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
        self._network.run(self._side.load_state_dict(state))
        if self._node is not None:
            self._network.call(self._node.take_shard(state["shard"]))
            self._network.call(self._node.units.load(unit_state(state)))

    # -- reading -------------------------------------------------------------------------------------

    @property
    def is_lead(self) -> bool:
        """Whether this rank talks to the other islands."""
        return self._node is not None

    @property
    def tokens_trained(self) -> int:
        """Tokens this island has trained on since the run began."""
        return self._progress.tokens_trained

    @property
    def tokens_credited(self) -> int:
        """Tokens of this island in committed rounds."""
        return self._progress.tokens_credited

    @property
    def wait_s(self) -> float:
        """Seconds for which training stood still for rounds."""
        return self._progress.wait_s

    @property
    def transfer_s(self) -> float:
        """Seconds in which rounds moved data."""
        return self._progress.transfer_s

    @property
    def inner_step(self) -> int:
        """Inner steps: on the swarm's count with `fixed`, else those of this island."""
        return self._progress.inner_step

    @property
    def swarm_step(self) -> int:
        """Where the swarm is, equal on islands that are in step.

        With `fixed` its inner steps, else H for each outer step of fragment 0.
        """
        return self._side.swarm_step

    @property
    def swarm_committed(self) -> int:
        """Tokens of all islands in committed rounds; equal on islands at equal outer steps."""
        return self._progress.swarm_committed

    @property
    def swarm_tokens(self) -> int:
        """Those, and what has likely been trained on since; the learning rate can follow it."""
        return self._progress.swarm_tokens

    @property
    def outer_step(self) -> int:
        """Outer steps that all fragments have reached."""
        return min(self._progress.outer_steps)

    @property
    def outer_steps(self) -> tuple[int, ...]:
        """The outer step of each fragment; while they are equal, so is the anchor."""
        return tuple(self._progress.outer_steps)

    @property
    def tokens_dropped(self) -> int:
        """Tokens of this island that it gave up, as it could not know whether they had been credited."""
        return self._progress.tokens_dropped

    @property
    def tokens_uncommitted(self) -> int:
        """Tokens of this island that no committed round has credited yet; fragment 0 stands for the model."""
        return self._progress.tokens[0]

    @property
    def parameters(self) -> int:
        """Trainable numbers of the model."""
        return sum(spec.elements for spec in self._island.layout)

    @property
    def num_fragments(self) -> int:
        """Into how many the model is divided; `fragment_state` has them one by one."""
        return len(self._fragments)

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
        return self._lead.signer.peer_id

    @property
    def name(self) -> str:
        """What people call this island. Lead only."""
        return self._lead.peers.state.name

    @property
    def names(self) -> dict[PeerId, str]:
        """What the islands are called that were met, this one and those that are gone included. Lead only."""
        return {**self._lead.peers.names, self.peer_id: self.name}

    @property
    def address(self) -> str:
        """The shared string (run id and address) that others join with; empty if there is none."""
        return self._lead.directory.join_string

    @property
    def shard(self) -> int:
        """The part of the data that this island has claimed; -1 if none. Lead only."""
        return self._lead.peers.state.shard

    @property
    def traffic(self) -> Traffic:
        """Bytes on this island's sockets so far. Lead only."""
        return self._lead.links.traffic

    @property
    def round_trips_s(self) -> tuple[float, ...]:
        """What the latest heartbeats took to other islands and back, the newest last. Lead only."""
        return tuple(self._lead.peers.heartbeats.round_trips_s)

    @property
    def num_peers(self) -> int:
        """Live islands, this one included. Lead only."""
        return 1 + len(self._lead.peers.roll.look())

    def peers(self) -> list[PeerStatus]:
        """All live peers as this one sees them. Lead only."""

        async def look() -> list[PeerStatus]:
            return self._lead.peers.statuses()

        return self._network.call(look())

    def anchor(self) -> dict[str, Tensor]:
        """The whole anchor as named fp32 tensors on this rank's host. Lead only, until `close`."""
        return {
            name: part
            for fragment, state in zip(self._fragments, self._lead.state.states, strict=True)
            for name, part in named_parts(self._island.layout, fragment, state.anchor.load())
        }

    @property
    def _lead(self) -> Node:
        return self._network.require_lead()
