"""What an island trains on: units that it leases, the shard that it has claimed, or all that it has."""

from __future__ import annotations

import logging

from lowcomm.config.schema import Config
from lowcomm.data.loader import Batches, open_loader
from lowcomm.data.unit_loader import UnitLoader
from lowcomm.islands.base import Island
from lowcomm.ledger.entry import hash_value
from lowcomm.outer.loop import OuterLoop
from lowcomm.recovery.joining import JoinReport
from lowcomm.tasks.base import Data

logger = logging.getLogger(__name__)

MOST_OFF = 0.25
"""By so much of it a global batch may be missed without a word."""


def leased_units(config: Config, data: Data) -> int:
    """Samples in a unit, where the islands of this recipe lease what they train on; else 0."""
    divided = config.shared.data.same and config.data.shard < 0
    return getattr(data, "unit_samples", 0) if divided else 0


def make_loader(config: Config, data: Data, outer: OuterLoop, join: JoinReport, island: Island) -> Batches:
    """The batches of this rank, from the beginning.

    Raises:
        DataError: there is less than a batch.
    """
    size, rank, ranks = config.train.batch_size, island.rank, island.world_size
    if leased_units(config, data):
        samples = data.samples  # type: ignore[attr-defined]  # goes with `unit_samples`
        return UnitLoader(samples, outer.lease, batch_size=size, rank=rank, world_size=ranks)
    return open_loader(data.training(max(0, join.shard)), batch_size=size, rank=rank, world_size=ranks)


def micro_steps(config: Config, batch_tokens: int, islands: int) -> int:
    """Batches of an inner step.

    Args:
        batch_tokens: of all ranks of this island.
        islands: that take part.
    """
    asked = config.shared.data.global_batch_tokens
    if not asked:
        return config.train.grad_accumulation
    return max(1, round(asked / (max(1, islands) * batch_tokens)))


def warn_of_batches(config: Config, batch_tokens: int, islands: int) -> None:
    """Say where whole batches don't make the global batch that was asked for."""
    asked = config.shared.data.global_batch_tokens
    made = islands * batch_tokens * micro_steps(config, batch_tokens, islands)
    if asked and abs(made - asked) > MOST_OFF * asked:
        logger.warning(
            "shared.data.global_batch_tokens = %d: %d islands with batches of %d tokens like this one's make "
            "%d; change train.batch_size",
            asked,
            islands,
            batch_tokens,
            made,
        )


def island_number(outer: OuterLoop, island: Island, join: JoinReport) -> int:
    """What tells this island's random numbers from those of others. Collective in the island."""
    if join.shard >= 0:
        return join.shard
    name = island.broadcast(outer.peer_id if outer.is_lead else None)
    return int(hash_value(name)[:8], 16)
