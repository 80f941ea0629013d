"""One island of a benchmark that is started once on each host, on whatever network connects them.

All islands are told how many they are and meet through the first one's address. From `OuterLoop` down
everything is as in training; the parameters are a payload of the asked size, in as many tensors as
there are fragments, so that fragments are equal to a few bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lowcomm import codecs, exchanges
from lowcomm.algorithms.outer_optimizers import nesterov
from lowcomm.algorithms.schedule import Schedule
from lowcomm.clock import SystemClock
from lowcomm.errors import StorageError
from lowcomm.garbage import exempt_from_collection
from lowcomm.islands import wrap_island
from lowcomm.outer.loop import OuterLoop
from lowcomm.rounds.decision import RoundPolicy

FLOAT_BYTES = 4
NOISE_SCALE = 1e-3
"""Of one inner step; the pseudo-gradient is not zero, so that codecs have real work."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where and with whom an island takes part.

    Attributes:
        run_id: name of the run; equal on all islands.
        islands: how many take part; no round commits with fewer.
        initial_peers: addresses to join through; none = this is the first island.
        address_file: gets the string that the others join with, in one piece.
        listen: multiaddr to listen on.
        payload_mib: MiB (2^20) of fp32 parameters before encoding.
        codec: its name.
        deadline_s: longest wait of and for an island.
    """

    run_id: str
    islands: int
    initial_peers: tuple[str, ...]
    address_file: Path | None
    listen: str
    payload_mib: float
    codec: str
    deadline_s: float


@dataclass(frozen=True, kw_only=True)
class Member:
    """An island that has joined.

    Attributes:
        outer: the loop to call after each inner step.
        parameters, noise: of equal shapes; fp32.
        join_s: from the start of the network to holding the swarm's state, all islands present.
    """

    outer: OuterLoop
    parameters: Sequence[nn.Parameter]
    noise: Sequence[Tensor]
    join_s: float

    def train(self) -> None:
        """One inner step: move the parameters a little, each island in a direction of its own."""
        with torch.no_grad():
            for parameter, noise in zip(self.parameters, self.noise, strict=True):
                parameter.add_(noise, alpha=NOISE_SCALE)


@contextmanager
def joined(site: Site, schedule: Schedule) -> Iterator[Member]:
    """Join the others, and leave at the end.

    Raises:
        ExchangeError: an address is wrong, nobody answers, or the swarm refuses this island.
        StorageError: the address can't be written.
    """
    torch.set_num_threads(1)
    clock = SystemClock()
    elements = max(schedule.num_fragments, int(site.payload_mib * 2**20) // FLOAT_BYTES)
    sizes = [
        len(part)
        for part in torch.empty(elements, dtype=torch.float32, device="cpu").tensor_split(
            schedule.num_fragments
        )
    ]
    model = nn.ParameterList(torch.zeros(n, dtype=torch.float32, device="cpu") for n in sizes)
    generator = torch.Generator()
    generator.seed()  # another one each: the islands' pseudo-gradients have to differ
    noise = [torch.randn(n, generator=generator, dtype=torch.float32, device="cpu") for n in sizes]
    outer = OuterLoop(
        wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.0)),
        exchanges.swarm(
            run_id=site.run_id, initial_peers=site.initial_peers, listen=[site.listen], relay=False
        ),
        schedule=schedule,
        codec=codecs.by_name(site.codec),
        outer_optimizer=nesterov(lr=1.0, momentum=0.0),
        round_policy=RoundPolicy(min_participants=site.islands, deadline_s=site.deadline_s),
        expected_peers=site.islands,
        gather_timeout_s=site.deadline_s,
    )
    exempt_from_collection()
    try:
        began_s = clock.monotonic_s()
        outer.connect(on_address=lambda address: _publish(site.address_file, address))
        outer.join()
        join_s = clock.monotonic_s() - began_s
        yield Member(outer=outer, parameters=list(model.parameters()), noise=noise, join_s=join_s)
    finally:
        outer.close()


def _publish(file: Path | None, address: str) -> None:
    if file is None:
        return
    whole = file.with_name(file.name + ".part")
    try:
        whole.write_text(address + "\n", encoding="utf-8")
        whole.replace(file)  # whoever waits for the file never sees half an address
    except OSError as error:
        raise StorageError(f"--address-file {file}: can't be written: {error.strerror or error}") from error
