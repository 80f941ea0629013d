"""What a program changes in its model after `wrap_island` is named at the next round, before it diverges."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowcomm import Schedule
from lowcomm.errors import ArgumentError, ModelError
from lowcomm.islands import wrap_island
from lowcomm.islands.base import Island
from lowcomm.islands.vectors import HostVector
from tests.islands.ranks import everything
from tests.outer.swarm import Swarm, batch, make_model, train_step


class Net(nn.Module):
    """Frozen, trained and tied parts, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(8, 6)
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 8, bias=False)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.3, 0.3, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.base(self.embed(ids))))
        return out


def wrapped() -> tuple[Net, torch.optim.Optimizer, Island]:
    model = Net()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return model, optimizer, wrap_island(model, optimizer)


def unfrozen(model: Net) -> None:
    model.base.requires_grad_(True)


def replaced_module(model: Net) -> None:
    model.norm = nn.BatchNorm1d(6)


def replaced_parameter(model: Net) -> None:
    model.norm.bias = nn.Parameter(torch.zeros(6))


def assigned(model: Net) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def untied(model: Net) -> None:
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())


def added(model: Net) -> None:
    model.extra = nn.Linear(2, 2)


def removed(model: Net) -> None:
    del model.norm


def frozen(model: Net) -> None:
    model.norm.weight.requires_grad_(False)


def half(model: Net) -> None:
    model.half()


def double(model: Net) -> None:
    model.to(torch.float64)


def moved(model: Net) -> None:
    model.to("meta")


def resized(model: Net) -> None:
    model.embed.weight.data = torch.zeros(9, 6)


CHANGES: dict[Callable[[Net], None], str] = {
    unfrozen: "parameter base.weight: expected it frozen, as when .*; it was unfrozen since",
    replaced_module: "parameter norm.weight: expected the tensor that is .*another was put in its place",
    replaced_parameter: "parameter norm.bias: expected the tensor that is .*another was put in its place",
    assigned: "parameter embed.weight: expected the tensor .*load_state_dict without assign=True",
    untied: "parameter head.weight: expected no such one, .*it was added since",
    added: "parameter extra.weight: expected no such one, .*it was added since",
    removed: "parameter norm.weight: expected it in the model, .*it was taken out",
    frozen: "parameter norm.weight: expected it to be trained, .*it was frozen",
    half: "parameter embed.weight: expected dtype torch.float32, .*it became torch.float16",
    double: "parameter embed.weight: expected dtype torch.float32, .*it became torch.float64",
    moved: "parameter embed.weight: expected the tensor",
    resized: r"parameter embed.weight: expected shape .*\[8, 6\]\), .*it became .*\[9, 6\]\)",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_parameter_and_the_change_are_named(change: Callable[[Net], None]) -> None:
    model, _, island = wrapped()
    everything(island)
    change(model)
    with pytest.raises(ModelError, match=CHANGES[change]) as caught:
        everything(island)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [replaced_module, assigned, removed, half], ids=lambda change: change.__name__
)
def test_a_result_is_not_written_where_nobody_would_see_it(change: Callable[[Net], None]) -> None:
    model, _, island = wrapped()
    values = everything(island)
    change(model)
    places = range(len(island.layout))
    for write in (lambda: island.write(places, values), lambda: island.add(places, HostVector(values))):
        with pytest.raises(ModelError, match="since wrap_island"):
            write()


def compiled(model: Net) -> None:
    model.norm = torch.compile(model.norm, backend="eager")  # type: ignore[assignment]


def wrapped_in_another(model: Net) -> None:
    model.base = nn.Sequential(model.base)  # type: ignore[assignment]


def tied_again(model: Net) -> None:
    model.head.weight = model.embed.weight


def loaded(model: Net) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def evaluated(model: Net) -> None:
    model.eval()
    with torch.no_grad():
        model(torch.arange(4))
    model.train()


def hooked(model: Net) -> None:
    model.register_forward_hook(lambda *_: None)
    model.norm.running_mean = torch.zeros(6)


def same_precision(model: Net) -> None:
    model.float().to("cpu")


HARMLESS = (compiled, wrapped_in_another, tied_again, loaded, evaluated, hooked, same_precision)


@pytest.mark.parametrize("change", HARMLESS, ids=lambda change: change.__name__)
def test_what_leaves_the_tensors_alone_is_no_change(change: Callable[[Net], None]) -> None:
    model, _, island = wrapped()
    values = everything(island)
    change(model)
    assert torch.equal(everything(island), values)
    island.write(range(len(island.layout)), values + 1)
    assert torch.equal(model.embed.weight.flatten(), values[:48] + 1)


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


def complex_numbers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64))


def eight_bits() -> nn.Module:
    model = nn.Linear(2, 2, bias=False)
    model.weight = nn.Parameter(model.weight.detach().to(torch.float8_e4m3fn))
    return model


def without_values() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


def sparse() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.eye(3).to_sparse())
    return model


UNUSABLE = {
    lazy: "parameter 1.weight: .* got one without a shape yet; run a forward pass before wrap_island",
    complex_numbers: "parameter 0.weight: .* got torch.complex64; keep it as real numbers",
    eight_bits: r"parameter weight: .* of at least 16 bits, got torch.float8_e4m3fn; freeze it",
    without_values: "parameter weight: .* got one on the meta device; load or initialise the weights",
    sparse: "parameter weight: .* got torch.sparse_coo; make it dense",
}


@pytest.mark.parametrize("make", UNUSABLE, ids=lambda make: make.__name__)
def test_what_fp32_numbers_cannot_stand_for_is_refused_at_once(make: Callable[[], nn.Module]) -> None:
    model = make()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(ModelError, match=UNUSABLE[make]):
        wrap_island(model, optimizer)


def test_what_is_frozen_may_be_of_any_kind() -> None:
    model = Net()
    model.base.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    model.base.bias = nn.Parameter(torch.zeros(6, dtype=torch.complex64), requires_grad=False)
    island = wrap_island(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    assert "base.weight" not in {spec.name for spec in island.layout}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_real_numbers_of_other_precisions_are_exchanged(dtype: torch.dtype) -> None:
    model = Net().to(dtype)
    island = wrap_island(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    assert everything(island).dtype == torch.float32


def test_an_optimizer_that_holds_nothing_of_the_model_is_refused() -> None:
    model = Net()
    mine = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    frozen_only = torch.optim.Adam(model.base.parameters(), lr=0.1)
    with pytest.raises(
        ModelError, match="Adam: expected parameters that the islands exchange, got none of them"
    ):
        wrap_island(model, [mine, frozen_only])


WRONG = {
    "swapped": (
        lambda m, o: (o, m),
        r"expected the model first, got SGD; swap the two: wrap_island\(model, optimizer\)",
    ),
    "no optimizer": (
        lambda m, o: (m,),
        "expected a torch.optim.Optimizer, .* got none; e.g. torch.optim.AdamW",
    ),
    "empty list": (lambda m, o: (m, []), "got none"),
    "None": (lambda m, o: (m, None), "got None"),
    "text": (lambda m, o: (m, "adamw"), "got 'adamw'; e.g. torch"),
    "class": (lambda m, o: (m, torch.optim.AdamW), "got <class 'torch.optim.adamw.AdamW'>"),
    "parameters": (lambda m, o: (m, m.parameters()), "got one with Parameter"),
    "two models": (lambda m, o: (m, m), r"got Net\("),
    "scheduler": (lambda m, o: (m, torch.optim.lr_scheduler.ConstantLR(o)), "pass its optimizer"),
    "model None": (lambda m, o: (None, o), "model: expected a torch.nn.Module, .* got None"),
    "model of parameters": (
        lambda m, o: (list(m.parameters()), o),
        r"model: expected a torch.nn.Module.*\(list\)",
    ),
}


@pytest.mark.parametrize(("given", "said"), WRONG.values(), ids=WRONG)
def test_other_arguments_are_named(given: Callable[..., tuple[object, ...]], said: str) -> None:
    model = Net()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with pytest.raises(ArgumentError, match=f"wrap_island: .*{said}") as caught:
        wrap_island(*given(model, optimizer))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_both_islands_stop_with_equal_anchors() -> None:
    """The whole way: the change is found at the round, and what was committed before it stays."""
    swarm = Swarm(islands=2)
    digests = {}

    def change(step: int, outer) -> None:  # type: ignore[no-untyped-def]
        digests[outer.peer_id] = outer.digest
        if step == 6:
            outer._island.model[2] = nn.Linear(24, 12)

    results = swarm.run(16, each=change)
    for result in results.values():
        assert isinstance(result.error, ModelError)
        assert "parameter 2.weight: expected the tensor that is exchanged" in str(result.error)
        assert len(result.committed) == 1
    assert len(set(digests.values())) == 1


def test_a_delayed_result_is_not_lost_in_a_replaced_tensor() -> None:
    swarm = Swarm(islands=1, schedule=Schedule(inner_steps=4, delay=2))
    model = nn.Sequential(nn.Linear(12, 12))
    outer = swarm.loop(0, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with outer:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(4):
            train_step(model, optimizer, batch(0, step))
            outer.step(tokens=8)
        assigned(model)  # type: ignore[arg-type]
        outer.step(tokens=8)
        with pytest.raises(ModelError, match=r"parameter 0\.weight"):
            outer.step(tokens=8)


@pytest.mark.parametrize("trained", ["a copy", "itself"])
def test_an_island_whose_copy_is_trained_is_warned_once(
    trained: str, caplog: pytest.LogCaptureFixture
) -> None:
    swarm = Swarm(islands=1, schedule=Schedule(inner_steps=2))
    model = make_model()
    other = copy.deepcopy(model) if trained == "a copy" else model
    with swarm.loop(0, model, torch.optim.SGD(model.parameters(), lr=0.1)) as outer:
        optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
        for step in range(4):
            train_step(other, optimizer, batch(0, step))
            outer.step(tokens=8)
    said = [r.getMessage() for r in caplog.records if "not a copy of it" in r.getMessage()]
    assert len(said) == (trained == "a copy")
    expected = (
        "inner step 2: no parameter of fragment 0 has changed in a round of 16 tokens; train the model "
    )
    assert all(message.startswith(expected) for message in said)
