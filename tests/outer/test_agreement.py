"""Islands that train on other data, or on other weights that are not trained, refuse each other by name."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from lowcomm import OuterLoop
from lowcomm.errors import CheckpointError, JoinRefusedError
from tests.outer.swarm import Swarm, in_parallel


def adapter(base_seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A frozen layer, and one that is trained on top of it."""
    torch.manual_seed(base_seed)
    model = nn.Sequential(nn.Linear(6, 6).to(dtype).requires_grad_(False), nn.Linear(6, 6))
    with torch.no_grad():
        for parameter in model[1].parameters():
            parameter.fill_(0.5)
    return model


def loop(swarm: Swarm, number: int, model: nn.Module, **settings: Any) -> OuterLoop:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return swarm.loop(number, model, torch.optim.SGD(trained, lr=0.1), expected_peers=1, **settings)


def meet(
    founder: tuple[nn.Module, dict[str, Any]], joiner: tuple[nn.Module, dict[str, Any]]
) -> BaseException | None:
    """What the joiner raises at a founder that trains already."""
    swarm, ended = Swarm(islands=2), threading.Event()
    started = threading.Event()

    def found() -> None:
        outer = loop(swarm, 0, founder[0], **founder[1])
        try:
            outer.start()
            started.set()
            assert ended.wait(30)
        finally:
            outer.close()

    def join() -> None:
        assert started.wait(30)
        outer = loop(swarm, 1, joiner[0], **joiner[1])
        try:
            outer.start()
        finally:
            outer.close()
            ended.set()

    torch.manual_seed(0)
    in_parallel([found, join], swarm.results, [0, 1])
    assert 0 not in swarm.results
    return swarm.results[1].error if 1 in swarm.results else None


ONE, TWO = "1" * 64, "2" * 64


@pytest.mark.parametrize(
    ("founder", "joiner", "said"),
    [
        pytest.param(
            (adapter(0), {}), (adapter(1), {}), "model.frozen: here '2 tensors of float32 ", id="other-base"
        ),
        pytest.param(
            (adapter(0), {}),
            (adapter(0, torch.bfloat16), {}),
            "here '2 tensors of bfloat16 ",
            id="other-type-of-base",
        ),
        pytest.param(
            (adapter(0), {"data_digest": ONE}),
            (adapter(0), {"data_digest": TWO}),
            "data.digest: here '222222222222...', there '111111111111...'; the islands have read other texts",
            id="other-data",
        ),
        pytest.param(
            (adapter(0), {"data_digest": ONE}),
            (adapter(0), {}),
            "data.digest: here None, there '111111111111...'",
            id="data-not-said",
        ),
        pytest.param(
            (adapter(0), {"data_digest": ONE, "shared": {"shared.data.same": True}}),
            (adapter(0), {"shared": {"shared.data.same": False}}),
            "together: shared.data.same: here False, there True",
            id="own-data-on-one",
        ),
        pytest.param(
            (adapter(0), {}), (nn.Linear(6, 6), {}), "model: here tensor ['weight'", id="another-model"
        ),
    ],
)
def test_who_trains_on_something_else_is_refused(
    founder: tuple[nn.Module, dict[str, Any]], joiner: tuple[nn.Module, dict[str, Any]], said: str
) -> None:
    error = meet(founder, joiner)
    assert isinstance(error, JoinRefusedError)
    assert said in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("founder", "joiner"),
    [
        pytest.param({}, {}, id="nothing-said"),
        pytest.param({"data_digest": ONE}, {"data_digest": ONE}, id="same-data"),
        pytest.param(
            {"shared": {"model.frozen": "mine"}}, {"shared": {"model.frozen": "mine"}}, id="said-otherwise"
        ),
    ],
)
def test_who_trains_on_the_same_joins(founder: dict[str, Any], joiner: dict[str, Any]) -> None:
    base = 1 if "shared" in joiner else 0
    assert meet((adapter(0), founder), (adapter(base), joiner)) is None


@pytest.mark.parametrize(
    ("model", "digest", "said"),
    [
        (adapter(0), ONE, ""),
        (adapter(0), "", ""),
        (adapter(1), ONE, "model.frozen: expected '2 tensors of float32 "),
        (
            adapter(0),
            TWO,
            "data.digest: expected '111111111111...', as in the checkpoint, got '222222222222...'",
        ),
    ],
    ids=["same", "data-not-said", "other-base", "other-data"],
)
def test_a_checkpoint_of_other_data_or_base_weights_is_refused(
    model: nn.Module, digest: str, said: str
) -> None:
    with loop(Swarm(islands=1), 0, adapter(0), data_digest=ONE) as outer:
        state = outer.state_dict()
    outer = loop(Swarm(islands=1), 0, model, data_digest=digest)
    try:
        outer.connect([0])
        if said:
            with pytest.raises(CheckpointError) as caught:
                outer.load_state_dict(state)
            assert said in str(caught.value)
        else:
            outer.load_state_dict(state)
            outer.join()
    finally:
        outer.close()


def test_a_checkpoint_from_before_digests_is_taken() -> None:
    with loop(Swarm(islands=1), 0, adapter(0), data_digest=ONE) as outer:
        state = outer.state_dict()
    del state["digests"]
    outer = loop(Swarm(islands=1), 0, adapter(0), data_digest=TWO)
    try:
        outer.connect([0])
        outer.load_state_dict(state)
        assert outer.join().how == "founded"
    finally:
        outer.close()
