"""Divide a model's tensors into fragments: every tensor in exactly one, none split.

`balanced` puts the largest tensor left into the lightest fragment so far (longest processing time
first; Graham 1969), which keeps payloads even. `strided` deals tensors out in turn, as Streaming
DiLoCo (arXiv:2501.18512, section 2.2) does with layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lowcomm.errors import ConfigError
from lowcomm.types import Layout


@dataclass(frozen=True, slots=True)
class Fragment:
    """Some tensors of the layout, exchanged together.

    Attributes:
        index: 0 <= index < number of fragments.
        tensors: their places in the layout, ascending.
        elements: numbers in all of them together.
    """

    index: int
    tensors: tuple[int, ...]
    elements: int


def make_fragments(layout: Layout, num_fragments: int, fragmenting: str) -> tuple[Fragment, ...]:
    """Divide `layout` into `num_fragments` fragments.

    Raises:
        ConfigError: there are fewer tensors than fragments.
    """
    if num_fragments > len(layout):
        raise ConfigError(
            f"schedule.num_fragments: expected at most {len(layout)}, the number of trainable "
            f"tensors of this model, got {num_fragments}"
        )
    members: list[list[int]] = [[] for _ in range(num_fragments)]
    if fragmenting == "strided":
        for index in range(len(layout)):
            members[index % num_fragments].append(index)
    else:
        load = [0] * num_fragments
        for index in sorted(range(len(layout)), key=lambda i: (-layout[i].elements, i)):
            # fewest tensors breaks a tie of empty tensors, so that no fragment stays empty
            lightest = min(range(num_fragments), key=lambda f: (load[f], len(members[f]), f))
            members[lightest].append(index)
            load[lightest] += layout[index].elements
    return tuple(
        Fragment(number, tuple(sorted(tensors)), sum(layout[i].elements for i in tensors))
        for number, tensors in enumerate(members)
    )


def named_parts(layout: Layout, fragment: Fragment, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a fragment's flat values (1-D) by name, as views of their own shapes."""
    start = 0
    for index in fragment.tensors:
        spec = layout[index]
        yield spec.name, flat[start : start + spec.elements].view(spec.shape)
        start += spec.elements
