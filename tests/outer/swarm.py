"""Islands in threads over the loopback exchange: the production round, node and loop, no network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowcomm import OuterLoop, RoundPolicy, Schedule, codecs, exchanges, nesterov, wrap_island
from lowcomm.algorithms.outer_optimizers import OuterOptimizer
from lowcomm.codecs.base import Codec
from lowcomm.exchanges.base import Message, Receiver
from lowcomm.exchanges.loopback import LoopbackExchange, LoopbackHub
from lowcomm.types import PeerId, RoundReport

Lie = Callable[[Message], Message | list[Message]]
"""What an island puts in the place of a message that it sends: one or several."""

DIM = 12
TIMEOUT_S = 90.0


def make_model(seed: int = 0) -> nn.Module:
    """A small network with a few tensors of unlike sizes."""
    model = nn.Sequential(nn.Linear(DIM, 24), nn.Tanh(), nn.Linear(24, DIM))
    generator = torch.Generator().manual_seed(seed)  # the global one is shared by all threads
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.3, 0.3, generator=generator)
    return model


def batch(island: int, step: int, size: int = 8) -> Tensor:
    """The inputs of one island at one step; the same at every run."""
    return torch.randn(size, DIM, generator=torch.Generator().manual_seed(1_000 * island + step))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> float:
    """One inner step of an autoencoder."""
    loss = (model(inputs) - inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@dataclass
class Result:
    """What one island saw."""

    reports: list[RoundReport] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    digest: str = ""
    head: str = ""
    tokens_trained: int = 0
    tokens_credited: int = 0
    tokens_left: int = 0
    local: Tensor | None = None
    how: str = ""
    error: BaseException | None = None
    started: threading.Event = field(default_factory=threading.Event)
    """It has joined, and has not trained yet."""

    @property
    def committed(self) -> list[RoundReport]:
        return [report for report in self.reports if report.committed]


@dataclass
class Swarm:
    """Settings of a small run; `run` starts the islands and waits for all of them."""

    islands: int = 2
    schedule: Schedule = field(default_factory=lambda: Schedule(inner_steps=4))
    codec: Callable[[], Codec] = codecs.fp32
    optimizer: OuterOptimizer = field(default_factory=nesterov)
    lease_s: float = 30.0
    policy: RoundPolicy = field(default_factory=lambda: RoundPolicy(deadline_s=20.0))
    lr: float = 0.05
    hub: Any = field(default_factory=exchanges.hub)
    expected: int | None = None
    chunk_bytes: int = 256
    lies: dict[int, Lie] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    """Tokens that an island says it trained on in a step, where those are not its inputs."""
    results: dict[int, Result] = field(default_factory=dict)
    founded: threading.Event = field(default_factory=threading.Event)

    def loop(
        self, island: int, model: nn.Module, optimizer: torch.optim.Optimizer, **changes: Any
    ) -> OuterLoop:
        """An OuterLoop of one island, not started."""
        founder = changes.pop("founder", island == 0)
        settings: dict[str, Any] = {
            "schedule": self.schedule,
            "codec": self.codec(),
            "outer_optimizer": self.optimizer,
            "round_policy": self.policy,
            "expected_peers": self.islands if self.expected is None else self.expected,
            "gather_timeout_s": 30.0,
            "heartbeat_s": 0.5,
            "lease_s": self.lease_s,
            "chunk_bytes": self.chunk_bytes,
        }
        if not founder:
            assert self.founded.wait(TIMEOUT_S)
        exchange = _Exchange(self, name(island), founder, self.lies.get(island, lambda message: message))
        return OuterLoop(wrap_island(model, optimizer), exchange, **{**settings, **changes})

    def train(
        self,
        island: int,
        steps: int,
        *,
        seed: int = 0,
        each: Callable[[int, OuterLoop], None] | None = None,
        **changes: Any,
    ) -> Result:
        """One island from start to end, in the calling thread."""
        result = self.results.setdefault(island, Result())
        model = make_model(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        outer = self.loop(island, model, optimizer, **changes)
        try:
            result.how = outer.start().how
            result.started.set()
            while outer.inner_step < steps:
                inputs = batch(island, outer.inner_step)
                result.losses.append(train_step(model, optimizer, inputs))
                result.reports += outer.step(tokens=self.tokens.get(island, len(inputs)))
                if each is not None:
                    each(outer.inner_step, outer)
            result.reports += outer.finish()
            result.digest, result.head = outer.digest, outer.head
            result.tokens_trained, result.tokens_credited = outer.tokens_trained, outer.tokens_credited
            result.tokens_left = outer.tokens_uncommitted
            result.local = nn.utils.parameters_to_vector(model.parameters()).detach()
        finally:
            outer.close()
        return result

    def run(self, steps: int, islands: Iterable[int] | None = None, **changes: Any) -> dict[int, Result]:
        """All islands, each in a thread."""
        chosen = list(range(self.islands) if islands is None else islands)
        in_parallel([lambda i=i: self.train(i, steps, **changes) for i in chosen], self.results, chosen)
        return self.results


class Lying:
    """Before an exchange among the bases: sends what `lie` makes of each message."""

    lie: Lie

    async def send(self, peer: PeerId, message: Message) -> None:
        for said in self._instead(message):
            await super().send(peer, said)

    async def send_bulk(self, peer: PeerId, message: Message) -> None:
        for said in self._instead(message):
            await super().send_bulk(peer, said)

    def _instead(self, message: Message) -> list[Message]:
        said = self.lie(message)
        return said if isinstance(said, list) else [said]


class LyingExchange(Lying, LoopbackExchange):
    def __init__(self, hub: LoopbackHub, run_id: str, peer_id: PeerId, *, founder: bool, lie: Lie) -> None:
        super().__init__(hub, run_id, peer_id, founder=founder)
        self.lie = lie


class _Exchange(LyingExchange):
    """Says when the founder can be joined through."""

    def __init__(self, swarm: Swarm, peer_id: PeerId, founder: bool, lie: Lie) -> None:
        super().__init__(swarm.hub, "test", peer_id, founder=founder, lie=lie)
        self._swarm = swarm

    async def start(self, receiver: Receiver, met: Sequence[str] = ()) -> None:
        await super().start(receiver, met)
        self._swarm.founded.set()


def name(island: int) -> PeerId:
    """The peer id of an island."""
    return PeerId(f"island-{island}")


def in_parallel(calls: list[Callable[[], Any]], results: dict[int, Result], numbers: list[int]) -> None:
    """Run each call in a thread; errors land in the results."""

    def guarded(number: int, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:  # handed to the test, which looks at it
            results.setdefault(number, Result()).error = error

    threads = [
        threading.Thread(target=guarded, args=pair, daemon=True) for pair in zip(numbers, calls, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "an island hangs"


def plain_diloco(swarm: Swarm, steps: int) -> Tensor:
    """DiLoCo written down naively: the anchor after `steps` inner steps, one fragment, no delay."""
    models = [make_model() for _ in range(swarm.islands)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=swarm.lr) for model in models]
    anchor = nn.utils.parameters_to_vector(models[0].parameters()).detach()
    momentum = torch.zeros_like(anchor)
    for step in range(steps):
        for island, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            train_step(model, optimizer, batch(island, step))
        if (step + 1) % swarm.schedule.inner_steps == 0:
            lr, beta = outer_settings(swarm.optimizer, (step + 1) // swarm.schedule.inner_steps)
            total = torch.zeros_like(anchor)
            for model in models:
                local = nn.utils.parameters_to_vector(model.parameters()).detach()
                total = total + (anchor - local) * (1 / swarm.islands)
            momentum = momentum * beta + total
            anchor = anchor - (momentum * beta + total) * lr
            for model in models:
                nn.utils.vector_to_parameters(anchor.clone(), model.parameters())
    return anchor


def outer_settings(optimizer: OuterOptimizer, outer_step: int) -> tuple[float, float]:
    """Outer learning rate and momentum as docs/concepts.md has them."""
    lr, momentum = optimizer.settings["lr"], optimizer.settings["momentum"]
    beta = 0.9 * (outer_step - 1) / (outer_step + 49) if momentum == "auto" else float(momentum)
    return 1 - beta / 3 if lr == "auto" else float(lr), beta
