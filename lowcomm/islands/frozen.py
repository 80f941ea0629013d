"""A digest of what is not trained: islands that freeze other weights train other functions.

And of what is, as it was read from a folder, since islands that begin otherwise begin another run.
"""

from __future__ import annotations

import torch
from blake3 import blake3
from torch import Tensor, nn

from lowcomm.islands.parameters import trainable
from lowcomm.islands.vectors import bytes_of, spans

CHUNK_BYTES = 1 << 26
"""What is on the host at a time of a tensor that lies elsewhere."""


class WeightsDigest:
    """Taken tensor by tensor, whole ones, so that it does not depend on how they are sharded.

    Over the names, types, shapes and bits: the same weights in another type are others, since the model
    computes something else with them.
    """

    def __init__(self) -> None:
        self._hasher = blake3(max_threads=blake3.AUTO)
        self._tensors = 0
        self._types: set[str] = set()

    def add(self, name: str, tensor: Tensor) -> None:
        """The next tensor; the order counts."""
        self._tensors += 1
        self._add(name, tensor.detach())

    def __str__(self) -> str:
        """In words that tell what it is of, and the 64 digits of the hash; empty without a tensor."""
        if not self._tensors:
            return ""
        return f"{self._tensors} tensors of {'+'.join(sorted(self._types))} {self._hasher.hexdigest()}"

    def _add(self, name: str, tensor: Tensor) -> None:
        flatten = getattr(tensor, "__tensor_flatten__", None)
        if flatten is not None:  # a quantised one, made of several
            for inner in flatten()[0]:
                self._add(f"{name}.{inner}", getattr(tensor, inner))
            return
        kind = str(tensor.dtype).removeprefix("torch.")
        self._types.add(kind)
        self._hasher.update(repr((name, kind, tuple(tensor.shape))).encode())
        if tensor.is_meta:
            return
        flat = tensor.reshape(-1).view(torch.uint8)
        for start, stop in spans(flat.numel(), CHUNK_BYTES):
            self._hasher.update(bytes_of(flat[start:stop].cpu()))


@torch.no_grad()
def digest_of_trained(model: nn.Module) -> str:
    """The same of the parameters that are trained, whole ones, as they are now."""
    digest = WeightsDigest()
    for name, parameter in sorted(trainable(model).items()):
        digest.add(name, parameter)
    return str(digest)
