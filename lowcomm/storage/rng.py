"""The states of the random number generators, for checkpoints."""

from __future__ import annotations

import random
from typing import Any

import blake3
import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The states of torch (CPU and this rank's GPU), numpy and Python; loads with `weights_only=True`.

    Asking all GPUs of the machine would make every rank open a context on each of them.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "python": [version, list(internal), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def seed_rng(*name: int) -> None:
    """Begin all generators anew, in a state that follows from the numbers given."""
    digest = blake3.blake3(",".join(map(str, name)).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8]))  # all devices'
    np.random.seed(int.from_bytes(digest[8:12]))
    random.seed(digest)
