"""`outer.step(tokens=...)` takes what is a whole number, and refuses the rest before it counts anything."""

import decimal
import math

import numpy as np
import pytest
import torch

from lowcomm.errors import ArgumentError, ConfigError
from lowcomm.ledger.entry import MAX_TOKENS
from tests.outer.swarm import Swarm, batch, make_model, train_step

EIGHT = {
    "int": 8,
    "float": 8.0,
    "0-dim tensor": torch.tensor(8),
    "float tensor": torch.tensor(8.0),
    "tensor of one": torch.tensor([8]),
    "tensor with a gradient": torch.tensor(8.0, requires_grad=True),
    "numpy.int64": np.int64(8),
    "numpy.float32": np.float32(8),
    "0-dim array": np.array(8),
}
REFUSED = {
    "half": (8.5, ConfigError, "8.5"),
    "tensor of a half": (torch.tensor(8.5), ConfigError, r"tensor\(8.5000\) \(Tensor\)"),
    "negative": (-8, ConfigError, "-8"),
    "nan": (math.nan, ConfigError, "nan"),
    "inf": (math.inf, ConfigError, "inf"),
    "huge": (1 << 62, ConfigError, "4611686018427387904"),
    "huge float": (1e300, ConfigError, r"1e\+300"),
    "beyond floats": (10**400, ConfigError, "1000"),
    "bool": (True, ArgumentError, "True"),
    "numpy.bool": (np.bool_(True), ArgumentError, "True"),
    "bool tensor": (torch.tensor(True), ArgumentError, "True"),
    "mask": (torch.ones(3), ArgumentError, r"tensor\(\[1., 1., 1.\]\)"),
    "array": (np.ones(3), ArgumentError, "array"),
    "meta tensor": (torch.tensor(8, device="meta"), ArgumentError, "meta"),
    "text": ("8", ArgumentError, "'8'"),
    "None": (None, ArgumentError, "None"),
    "decimal": (decimal.Decimal(8), ArgumentError, "Decimal"),
    "list": ([8], ArgumentError, r"\[8\]"),
}


def started(swarm):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=swarm.lr)
    return swarm.loop(0, model, optimizer), model, optimizer


@pytest.mark.parametrize("count", EIGHT.values(), ids=EIGHT)
def test_whole_numbers_are_counted(count):
    outer, model, optimizer = started(Swarm(islands=1))
    with outer:
        reports = []
        for step in range(4):
            train_step(model, optimizer, batch(0, step))
            reports += outer.step(tokens=count)
        assert type(outer.tokens_trained) is int
        assert (outer.tokens_trained, reports[0].tokens, reports[0].committed) == (32, 32, True)


@pytest.mark.parametrize(("count", "kind", "got"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_before_it_is_counted(count, kind, got):
    outer, model, optimizer = started(Swarm(islands=1))
    with outer:
        train_step(model, optimizer, batch(0, 0))
        with pytest.raises(kind, match=rf"step: tokens: expected a whole number .*, got .*{got}.*numel"):
            outer.step(tokens=count)
        assert (outer.inner_step, outer.tokens_trained) == (0, 0)
        outer.step(tokens=8)  # nothing is broken
        assert (outer.inner_step, outer.tokens_trained) == (1, 8)


def test_rounds_without_a_token_commit_on_all_islands():
    swarm = Swarm(islands=2, tokens={0: 0, 1: 0})
    results = swarm.run(8)
    assert [result.error for result in results.values()] == [None, None]
    assert len({result.digest for result in results.values()}) == 1
    assert all(len(result.committed) == 2 for result in results.values())


def test_more_than_one_contribution_may_claim_is_credited_by_the_next_rounds():
    outer, model, optimizer = started(Swarm(islands=1))
    with outer:
        counted = []
        for step in range(12):
            train_step(model, optimizer, batch(0, step))
            for report in outer.step(tokens=MAX_TOKENS // 2 if step < 4 else 0):
                counted.append(report.tokens)
    assert counted == [MAX_TOKENS, MAX_TOKENS, 0]
