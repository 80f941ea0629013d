"""What a task says of its model on fixed samples that nobody trains on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from lowcomm.arguments import show
from lowcomm.data.samples import Batch, HeldOut, count_samples, map_batch
from lowcomm.errors import ModelError
from lowcomm.islands.base import Island
from lowcomm.tasks.base import LOSS, Task

BITS, _BYTES = "bits_per_byte", "/bytes"


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    batches: Iterable[Batch | HeldOut],
    device: torch.device,
    island: Island | None = None,
) -> dict[str, float]:
    """Means over all samples: `loss`, and what the task tells beside it. Empty if there are no batches.

    Where it is known how many bytes of text a token stands for, `bits_per_byte` is the loss in bits over
    them, so that tokenizers compare. Both are told of each source, too, as `loss/NAME`, where sources are
    told apart.

    Args:
        device: where the model is.
        island: whose ranks share the batches; collective in it. None = all are done here.

    Raises:
        ModelError: the task tells no loss.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, list[float]] = {}  # by name: of its values, and of the samples that have it
    for held, share in _shared(batches, island):
        told = task.evaluate(model, map_batch(lambda tensor: tensor.to(device), held.batch))
        if LOSS not in told:
            raise ModelError(f'expected evaluate to tell at least "{LOSS}", got {show(sorted(told))}')
        count = share * count_samples(held.batch)
        values = {name: float(value) for name, value in told.items()}
        for suffix in ("", f"/{held.source}") if held.source else ("",):
            values |= {f"{LOSS}{suffix}": values[LOSS], f"{_BYTES}{suffix}": held.bytes_per_token}
        for name, value in values.items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += value * count
            total[1] += count
    model.train(was_training)
    if island is not None:
        sums = _together(sums, island)
    means = {name: total / count for name, (total, count) in sums.items() if count}
    for name in [name for name in means if name.startswith(_BYTES)]:
        each, suffix = means.pop(name), name.removeprefix(_BYTES)
        if math.isfinite(each):
            means[f"{BITS}{suffix}"] = means[f"{LOSS}{suffix}"] / (math.log(2) * each)
    return means


def _shared(batches: Iterable[Batch | HeldOut], island: Island | None) -> Iterator[tuple[HeldOut, int]]:
    """This rank's batches, and whether each counts: all ranks have equally many, since a forward pass of a
    sharded model is collective; where there is none left for a rank, it does one that another does.
    """  # fmt: skip
    rank, ranks = (island.rank, island.world_size) if island is not None else (0, 1)
    rest = iter(batches)
    while group := list(itertools.islice(rest, ranks)):
        batch = group[min(rank, len(group) - 1)]
        yield batch if isinstance(batch, HeldOut) else HeldOut(batch), int(rank < len(group))


def _together(sums: dict[str, list[float]], island: Island) -> dict[str, list[float]]:
    """The sums of all ranks, on all ranks. Collective."""
    whole: dict[str, list[float]] = {}
    for one in island.gather(sums):
        for name, (total, count) in one.items():
            before = whole.setdefault(name, [0.0, 0.0])
            whole[name] = [before[0] + total, before[1] + count]
    return island.broadcast(whole if island.is_lead else None)
