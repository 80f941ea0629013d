"""Batches of leased samples: ranks draw in step, a checkpoint goes on with what nobody else has taken."""

import numpy as np
import pytest
import torch

from lowcomm.data.samples import Rows
from lowcomm.data.unit_loader import Numbering, UnitLoader
from lowcomm.errors import DataError
from lowcomm.spans import Spans, size

ROWS = 10


def rows() -> Rows:
    return Rows((torch.arange(ROWS),), np.arange(ROWS), seed=0)


class Leases:
    """Hands out units of three, and remembers what it was asked to give again."""

    def __init__(self) -> None:
        self.next, self.asked = 0, []

    def __call__(self, count: int, again: Spans | None) -> Spans:
        if again is not None:
            self.asked.append(again)
            return again[1:]
        first, self.next = self.next, self.next + 3 * -(-count // 3)
        return ((first, self.next),)


def test_ranks_draw_in_step_and_epochs_follow_each_other() -> None:
    ranks = [UnitLoader(rows(), Leases(), batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    drawn: list[int] = []
    for _ in range(10):
        for loader in ranks:
            drawn += loader.next_batch()[0].tolist()
    numbering = Numbering(rows())
    assert drawn == numbering.places(0, 40).tolist()
    for epoch in range(4):
        assert sorted(drawn[epoch * ROWS : (epoch + 1) * ROWS]) == list(range(ROWS))
    assert ranks[0].epoch == 3
    assert ranks[0].take_trained() == ranks[1].take_trained() == ((0, 40),)
    assert ranks[0].take_trained() == ()


def test_a_checkpoint_goes_on_with_what_is_still_free() -> None:
    loader = UnitLoader(rows(), Leases(), batch_size=4)
    loader.next_batch()
    state = loader.state_dict()
    assert state["ahead"] == [4, 6]
    leases = Leases()
    leases.next = 30
    again = UnitLoader(rows(), leases, batch_size=4)
    again.load_state_dict(state)
    assert leases.asked == [((4, 6),)]
    again.next_batch()
    assert again.take_trained() == ((30, 34),)  # (4, 6) was taken by another one
    assert again.tokens == 8


def test_another_kind_of_checkpoint_is_refused() -> None:
    loader = UnitLoader(rows(), Leases(), batch_size=4)
    with pytest.raises(DataError, match="the checkpoint was made with"):
        loader.load_state_dict({"epoch": 0, "position": 0, "tokens": 0, **rows().identity})


def test_a_sample_has_its_place() -> None:
    numbering = Numbering(rows())
    assert [numbering.place(number) for number in (0, 9, 10, 25)] == [(0, 0), (0, 9), (1, 0), (2, 5)]
    assert numbering.begin(3) == 30
    assert size(((0, 3), (5, 6))) == 4
