"""A task of one's own: handwritten digits, 8 x 8 pixels, by a small convolutional network.

The images come with scikit-learn (pip install 'lowcomm[digits]'; 1,797 of them, from
https://archive.ics.uci.edu/dataset/80). A recipe names this file: `kind = "digits:make_task"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowcomm.tasks.base import Facts
from lowcomm.tasks.rows import RowData
from lowcomm.tasks.weights import check_shapes, save_weights

CLASSES = 10


class Network(nn.Module):
    """(batch, 1, 8, 8) images -> (batch, 10) logits; GroupNorm, as islands exchange no buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.first_norm = nn.GroupNorm(4, width)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.second_norm = nn.GroupNorm(4, 2 * width)
        self.head = nn.Linear(2 * width * 4 * 4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(images)))
        x = F.relu(self.second_norm(self.second(x)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


class Digits:
    """See `lowcomm.tasks.base.Task`."""

    facts = Facts(sample="image", blank_loss=math.log(CLASSES), loss_unit="nats")

    def __init__(self, width: int, seed: int, shards: int, holdout_fraction: float) -> None:
        self.width, self.seed, self.shards, self.holdout_fraction = width, seed, shards, holdout_fraction

    def make_model(self) -> Network:
        return Network(self.width)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def evaluate(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        images, labels = batch
        logits = model(images)
        right = logits.argmax(1) == labels
        return {"loss": F.cross_entropy(logits, labels), "accuracy": right.float().mean()}

    def data(self, *, say: bool = True) -> RowData:
        from sklearn.datasets import load_digits

        found = load_digits()
        images = torch.from_numpy(found.images).float().div(16).unsqueeze(1)
        labels = torch.from_numpy(found.target).long()
        return RowData(
            (images, labels),
            shards=self.shards,
            holdout_fraction=self.holdout_fraction,
            seed=self.seed,
            source="digits",
        )

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        check_shapes(anchor, self.make_model().named_parameters())
        save_weights(anchor, folder)


def make_task(seed: int, shards: int, holdout_fraction: float, width: int = 16) -> Digits:
    """What `shared.task.kind` names; its parameters are of the recipe, `width` of `[shared.task.model]`."""
    return Digits(width, seed, shards, holdout_fraction)
