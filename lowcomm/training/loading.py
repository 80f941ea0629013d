"""What an island trains on: units that it leases, the shard that it has claimed, or all that it has."""

from __future__ import annotations

from lowcomm.config.schema import Config
from lowcomm.data.loader import Batches, open_loader
from lowcomm.data.unit_loader import UnitLoader
from lowcomm.islands.base import Island
from lowcomm.ledger.entry import hash_value
from lowcomm.outer.loop import OuterLoop
from lowcomm.recovery.joining import JoinReport
from lowcomm.tasks.base import Data


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


def island_number(outer: OuterLoop, island: Island, join: JoinReport) -> int:
    """What tells this island's random numbers from those of others. Collective in the island."""
    if join.shard >= 0:
        return join.shard
    name = island.broadcast(outer.peer_id if outer.is_lead else None)
    return int(hash_value(name)[:8], 16)
