"""The seam of the outer optimizers: a deterministic step of the anchor along the mean pseudo-gradient.

The sign: a pseudo-gradient, anchor - local, points *against* the progress, as a gradient does, so it is
subtracted. What a method remembers lies in named slots, as in optax: any number of fp32 vectors of the
anchor's length. The slots are part of the outer state: what is hashed, sent as a snapshot, kept in a
checkpoint, replayed by `lowcomm ledger verify` and counted as memory is the anchor and then each slot, in
the order in which `init` names them.

Every machine must get the same bits (guarantee G1). So the maths is elementwise fp32 with multiply and add
apart (no fused multiply-add, `lerp` or `addcmul`, which round once instead of twice); `torch.div` rounds as
IEEE 754 says, `torch.sqrt` does not, `numpy.sqrt` does; and scalars that change with the outer step are
Python's float64 with + - * / and `math.sqrt` only, as `pow` is another one in each C library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

CACHED_ELEMENTS = 1 << 16
"""Five arrays of so many numbers stay in a core's cache from one pass to the next."""


class OuterOptimizer(Protocol):
    """A deterministic, elementwise step of the anchor."""

    @property
    def settings(self) -> dict[str, float | str]:
        """Name and hyper-parameters; must be equal on all peers."""
        ...

    def init(self, anchor: Tensor) -> dict[str, Tensor]:
        """The slots before the first outer step, by name, always the same ones in the same order.

        Args:
            anchor: 1-D fp32, the parameters that the run begins with; not changed.
        """
        ...

    def step(
        self,
        anchor: Tensor,
        slots: Mapping[str, Tensor],
        mean: Tensor,
        new_anchor: Tensor,
        new_slots: Mapping[str, Tensor],
        outer_step: int,
    ) -> None:
        """Write the new anchor and slots into `new_anchor` and `new_slots`; the others stay as they are.

        All 1-D fp32 of the same length. `init` and `step` are elementwise: both may be called slice by
        slice, in any order.

        Args:
            mean: of the pseudo-gradients.
            outer_step: the one that this step leads to, counted from 1.
        """
        ...


def slot_names(optimizer: OuterOptimizer) -> tuple[str, ...]:
    """What the optimizer calls its slots, in their order."""
    import torch

    return tuple(optimizer.init(torch.empty(0, dtype=torch.float32, device="cpu")))


def blocks(elements: int) -> Iterator[slice]:
    """Slices of a vector whose arrays stay in the cache while a step goes over them several times."""
    for start in range(0, elements, CACHED_ELEMENTS):
        yield slice(start, start + CACHED_ELEMENTS)
