"""The lead rank's node in its own thread, which answers what the island's side asks; no node elsewhere."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from lowcomm.algorithms.fragments import Fragment
from lowcomm.errors import UsageError
from lowcomm.islands.vectors import Vectors
from lowcomm.ledger.file import LedgerFile
from lowcomm.ledger.state import OuterState
from lowcomm.outer.arguments import Arguments
from lowcomm.outer.island_side import Look, Request, Restore, Send, Steps, Tell, Wait
from lowcomm.outer.node import Node, NodeSettings
from lowcomm.outer.outcome import Outcome
from lowcomm.outer.thread import LoopThread
from lowcomm.peers.peer import State
from lowcomm.types import Json

T = TypeVar("T")

STAND_BY_S = 0.05
"""While training stands still for a round, others are looked for so often."""


def lead_node(
    given: Arguments, fragments: Sequence[Fragment], digests: Mapping[str, Json], vectors: Vectors | None
) -> Node | None:
    """The node of an island's lead; on the other ranks None, but they take their part in reading. Collective.

    Args:
        digests: of what has to be equal everywhere beside the settings.
        vectors: where the outer state is kept.
    """
    anchors = (given.island.read(fragment.tensors) for fragment in fragments)
    if given.exchange is None:
        for _ in anchors:
            pass  # one fragment at a time
        return None
    run_id, optimizer = given.exchange.run_id, given.outer_optimizer
    state = OuterState(run_id, fragments, anchors, optimizer, given.codec, given.aggregation, vectors)
    state.data = given.data_digest if given.unit_samples else ""
    settings = NodeSettings(
        policy=given.round_policy,
        shared={**given.settings, **digests, **given.shared},
        layout=given.island.layout,
        heartbeat_s=given.heartbeat_s,
        lease_s=given.lease_s,
        chunk_bytes=given.chunk_bytes,
        snapshot_mbit_s=given.snapshot_mbit_s,
        unit_samples=given.unit_samples,
        said=State(shard=given.shard, name=given.name),
    )
    folder = given.folder
    ledger_file = LedgerFile(folder / "ledger.jsonl", given.keep_updates) if folder else None
    return Node(given.exchange, state, settings, ledger_file=ledger_file, folder=folder)


class Network:
    """What an outer loop has of the network.

    Args:
        node: None on all ranks but the lead.
    """

    def __init__(self, node: Node | None) -> None:
        self.node, self._thread = node, LoopThread()
        self._sent: dict[int, Future[Outcome]] = {}

    def require_lead(self) -> Node:
        """The node.

        Raises:
            UsageError: this rank has none.
        """
        if self.node is None:
            raise UsageError("only the lead rank of an island knows this: ask for it where outer.is_lead")
        return self.node

    @property
    def running(self) -> bool:
        """Whether its thread runs."""
        return self._thread.running

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the node in its thread, and wait for it."""
        return self._thread.call(coroutine)

    def close(self) -> None:
        """Leave the swarm and end the thread. Idempotent."""
        if self.node is not None and self._thread.running:
            try:
                self._thread.call(self.node.close())
            finally:
                self._thread.stop()

    def run(self, steps: Steps[T]) -> T:
        """Run steps of the island's side to their end, waiting for what they wait for."""
        try:
            request = next(steps)
            while True:
                request = steps.send(self._answer(request))
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]

    def _answer(self, request: Request) -> Any:
        """See `lowcomm.outer.island_side`."""
        node = self.node
        if node is None:
            return None
        match request:
            case Tell(posted):
                node.peers.progressed(posted)
            case Look():
                return node.calls()
            case Send(fragment, contribution, standing, last):
                sent = node.submissions.contribute(fragment, contribution, standing, last=last)
                self._sent[fragment] = self._thread.submit(sent)
            case Wait(fragment, others):
                return self._wait(fragment, others)
            case Restore(fragment, saved):
                return self.call(node.restore(fragment, saved))

    def _wait(self, fragment: int, others: Sequence[int]) -> Outcome | int:
        while others and not self._sent[fragment].done():
            calls = self.require_lead().calls()
            if called := [index for index in others if calls[index].ready]:
                return called[0]
            wait((self._sent[fragment],), STAND_BY_S)
        return self._sent.pop(fragment).result()
