"""Calls of an outer loop at the wrong time, or with wrong arguments: named, and without consequences."""

import numpy as np
import pytest
import torch

from lowcomm.errors import ArgumentError, ConfigError, UsageError
from tests.outer.test_arguments import alone, loop

BEFORE = "expected start() before it, got none; write `with OuterLoop(...) as outer:`"


@pytest.mark.parametrize("call", ["step", "finish", "anchor_weights"])
def test_a_forgotten_start_is_named(call):
    outer = loop()
    with pytest.raises(UsageError) as caught:
        _make(outer, call)
    assert f"outer.{call}: {BEFORE}" in str(caught.value)
    assert outer.tokens_trained == 0
    with outer:  # it is not too late
        _make(outer, call)
    with pytest.raises(UsageError, match=f"outer.{call}: .*it was closed; make a new OuterLoop"):
        _make(outer, call)
    outer.close()


def _make(outer, call):
    if call == "anchor_weights":
        with outer.anchor_weights():
            pass
    else:
        getattr(outer, call)(*([1] if call == "step" else []))


def test_a_loop_starts_once_and_a_second_start_leaves_it_running():
    with loop() as outer:
        for call in (outer.start, outer.connect, outer.join, outer.__enter__):
            with pytest.raises(UsageError, match="it is running already; one OuterLoop joins once"):
                call()
        assert [r.committed for _ in range(2) for r in outer.step(tokens=1)] == [True]


def test_joining_comes_after_connecting():
    outer = loop()
    with pytest.raises(UsageError, match=r"outer.join: expected connect\(\) before it"):
        outer.join()
    with pytest.raises(UsageError, match=r"outer.load_state_dict: expected connect\(\) before it"):
        outer.load_state_dict({})
    outer.connect()
    with pytest.raises(UsageError, match=r"outer.step: .*got connect\(\) alone; call join\(\)"):
        outer.step(tokens=1)
    outer.join()
    outer.close()


CONNECTS = {
    "no list": ({"checkpoints": 3}, r"outer.connect: checkpoints: expected inner steps, e.g. .*, got 3"),
    "none": ({"checkpoints": None}, "got None"),
    "text": ({"checkpoints": "12"}, "got '12'"),
    "text in it": ({"checkpoints": [1, "a"]}, "checkpoints: expected a whole number .*got 'a'"),
    "negative": ({"checkpoints": [-5]}, "got -5"),
    "listener": ({"on_address": 5}, "outer.connect: on_address: expected a function .*got 5"),
}


@pytest.mark.parametrize(("given", "said"), CONNECTS.values(), ids=CONNECTS)
def test_a_wrong_connect_is_named_and_may_be_made_again(given, said):
    outer = loop()
    with pytest.raises(ConfigError, match=said):
        outer.connect(**given)
    with outer:
        outer.step(tokens=1)


def test_no_step_is_taken_with_the_anchor_in_the_model():
    with loop() as outer:
        outer.step(tokens=1)
        for call in ("step", "finish", "anchor_weights"):
            with (
                outer.anchor_weights(),
                pytest.raises(UsageError, match=rf"outer.{call}: .* leave `with outer.anchor_weights\(\):`"),
            ):
                _make(outer, call)
        assert outer.inner_step == 1
        assert [report.committed for report in outer.step(tokens=1)] == [True]
        with outer.anchor_weights():
            outer.close()
        with pytest.raises(UsageError, match="it was closed"):
            outer.step(tokens=1)


LOSSES = {
    "none": None,
    "text": "2.5",
    "vector": torch.tensor([1.0, 2.0]),
    "meta": torch.empty((), device="meta"),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_that_is_no_number_is_named(loss):
    with (
        loop() as outer,
        pytest.raises(ArgumentError, match=r"outer.show_loss: loss: expected a number, got"),
    ):
        outer.show_loss(loss)


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (torch.tensor(2.5, requires_grad=True), 2.5),
        (np.float32(2.5), 2.5),
        (float("nan"), None),
        (10**400, None),
    ],
    ids=["tensor", "numpy", "nan", "no-float"],
)
def test_what_is_shown_of_a_loss(loss, shown):
    with loop() as outer:
        outer.show_loss(loss)
        assert [peer.loss for peer in outer.peers()] == [shown]


@pytest.mark.parametrize("index", [1, -1, "0", None])
def test_a_fragment_that_is_not_there_is_named(index):
    with (
        loop() as outer,
        pytest.raises(ConfigError, match=r"outer.fragment_state: index: expected a whole number"),
    ):
        outer.fragment_state(index)


def test_an_exchange_serves_one_loop():
    exchange = alone()
    with loop(exchange=exchange) as outer:
        with pytest.raises(UsageError, match=r"exchange: expected one of its own, .*make a new exchange"):
            loop(exchange=exchange)
        assert [r.committed for _ in range(2) for r in outer.step(tokens=1)] == [True]
    with pytest.raises(UsageError, match="exchange: expected one of its own"):
        loop(exchange=exchange)


def test_what_needs_the_network_says_so():
    outer = loop()
    with pytest.raises(UsageError, match=r"call it after start\(\) and before close\(\)"):
        outer.peers()
