"""What can be read of an island's outer loop without changing it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lowcomm.algorithms.fragments import Fragment, named_parts
from lowcomm.algorithms.schedule import Schedule
from lowcomm.errors import UsageError
from lowcomm.exchanges.base import Traffic
from lowcomm.ledger.entry import run_head
from lowcomm.outer.node import Node
from lowcomm.outer.progress import Progress
from lowcomm.outer.thread import LoopThread
from lowcomm.types import Digest, Layout, PeerId, PeerStatus


class Views:
    """The reading half of `OuterLoop`.

    Args:
        node: on the lead only; there, what it holds can be read while its thread runs.
    """

    def __init__(
        self,
        layout: Layout,
        fragments: Sequence[Fragment],
        schedule: Schedule,
        progress: Progress,
        node: Node | None,
        thread: LoopThread,
    ) -> None:
        self._layout, self._fragments = layout, fragments
        self._schedule, self._progress = schedule, progress
        self._node, self._thread = node, thread

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
        if self._schedule.mode == "fixed":
            return self._progress.inner_step
        return self._progress.outer_steps[0] * self._schedule.inner_steps

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
        return sum(spec.elements for spec in self._layout)

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
        return tuple(self._lead.peers.round_trips_s)

    @property
    def num_peers(self) -> int:
        """Live islands, this one included. Lead only."""
        return 1 + len(self._lead.peers.live())

    def peers(self) -> list[PeerStatus]:
        """All live peers as this one sees them. Lead only."""

        async def look() -> list[PeerStatus]:
            return self._lead.peers.statuses()

        return self._thread.call(look())

    def anchor(self) -> dict[str, Tensor]:
        """The whole anchor as named fp32 tensors on this rank's host. Lead only, until `close`."""
        return {
            name: part
            for fragment, state in zip(self._fragments, self._lead.state.states, strict=True)
            for name, part in named_parts(self._layout, fragment, state.anchor.load())
        }

    @property
    def _lead(self) -> Node:
        if self._node is None:
            raise UsageError("only the lead rank of an island knows this: ask for it where outer.is_lead")
        return self._node
