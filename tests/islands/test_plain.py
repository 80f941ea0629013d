from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from lowcomm.errors import CheckpointError, ConfigError, ModelError
from lowcomm.islands import wrap_island
from lowcomm.islands.vectors import HostVector
from lowcomm.models.gpt import GPT, GPTShape
from tests.islands.ranks import everything, make_island, make_model, train

TIED = GPTShape(
    vocab_size=16, dim=8, layers=1, heads=2, kv_heads=2, ffn_dim=8, context=8, tie_embeddings=True
)


def wrap(model: nn.Module, lr: float = 0.1):  # type: ignore[no-untyped-def]
    return wrap_island(model, torch.optim.SGD(model.parameters(), lr=lr))


def test_layout_names_what_is_trained_once() -> None:
    island = make_island()
    assert [(spec.name, spec.shape) for spec in island.layout] == [
        ("submodule.weight", (8, 6)),
        ("submodule.bias", (8,)),
        ("norm.weight", (8,)),
        ("norm.bias", (8,)),
        ("head.weight", (3, 8)),
    ]
    assert (island.rank, island.world_size, island.is_lead) == (0, 1, True)
    assert island.device == torch.device("cpu")
    names = [spec.name for spec in wrap(GPT(TIED)).layout]
    assert names.count("model.embed_tokens.weight") == 1
    assert "lm_head.weight" not in names


def test_a_compiled_model_has_the_same_layout() -> None:
    model = make_model()
    compiled = make_model()
    compiled.norm = torch.compile(compiled.norm)  # type: ignore[assignment]
    assert wrap(torch.compile(compiled)).layout == wrap(model).layout  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_read_and_write(dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    island = wrap(model)
    flat = island.read((4, 1))
    assert flat.dtype == torch.float32
    assert torch.equal(flat[:24].to(dtype), model.head.weight.detach().flatten())  # type: ignore[union-attr]
    places = [(p, p.data_ptr()) for p in model.parameters()]
    before = island.read((0, 2, 3))
    flat.copy_(torch.linspace(-1, 1, flat.numel()))
    assert not torch.equal(island.read((4, 1)), flat)  # what was read is a copy
    island.write((4, 1), flat)
    assert torch.equal(island.read((4, 1)), flat.to(dtype).float())
    assert torch.equal(island.read((0, 2, 3)), before)
    assert all(p.data_ptr() == place and p.dtype == dtype for p, place in places)
    assert island.read(()).shape == (0,)


def test_tensors_that_are_not_contiguous() -> None:
    model = nn.Linear(4, 3)
    model.weight = nn.Parameter(torch.arange(12.0).view(4, 3).T)
    island = wrap(model)
    assert torch.equal(island.read((0,)), model.weight.detach().flatten())
    island.write((0,), torch.arange(12.0))
    assert torch.equal(model.weight.detach(), torch.arange(12.0).view(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adding_rounds_the_sum_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList(
        torch.randn(shape, generator=generator).to(dtype) for shape in ((70_003,), (), (5, 3))
    )
    model.append(torch.randn(4, 6, generator=generator).to(dtype).t())
    island = wrap(model)
    values = torch.randn(1 + 24 + 70_003, generator=generator)
    before, kept = island.read([1, 3, 0]), island.read([2])
    island.add([1, 3, 0], HostVector(values))
    assert torch.equal(island.read([1, 3, 0]), (before + values).to(dtype).float())
    assert torch.equal(island.read([2]), kept)


def test_one_rank_agrees_with_itself() -> None:
    island = make_island()
    assert island.broadcast((1, -2)) == (1, -2)
    assert [island.any_rank(True), island.any_rank(False)] == [True, False]
    assert island.gather({"a": 1}) == [{"a": 1}]


def test_a_restart_equals_going_on() -> None:
    island = make_island()
    train(island, range(3))
    file = io.BytesIO()
    torch.save(island.state_dict(), file)
    train(island, range(3, 6))
    again = make_island(seed=9)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(again, range(3, 6))
    assert torch.equal(everything(again), everything(island))
    assert torch.equal(again.model.mean, torch.arange(3.0))  # type: ignore[arg-type]


def test_the_state_of_another_model_is_refused_untouched() -> None:
    other = make_model()
    other.head = nn.Linear(8, 4, bias=False)
    state = copy.deepcopy(wrap(other).state_dict())
    island = make_island()
    before = everything(island)
    with pytest.raises(CheckpointError, match=r"expected head\.weight \(3, 8\), it has it \(4, 8\)"):
        island.load_state_dict(state)
    del state["model"]["norm.bias"]
    state["model"]["head.weight"] = torch.zeros(3, 8)
    with pytest.raises(CheckpointError, match=r"expected norm\.bias \(8,\), it has it not at all"):
        island.load_state_dict(state)
    state = copy.deepcopy(make_island(seed=4).state_dict())
    state["optimizers"] = state["optimizers"] * 2
    with pytest.raises(
        CheckpointError, match=r"parameter groups of \[\[5\]\] tensors, it has \[\[5\], \[5\]\]"
    ):
        island.load_state_dict(state)
    assert torch.equal(everything(island), before)


def test_several_optimizers_are_kept() -> None:
    model = make_model()
    optimizers = [
        torch.optim.SGD([model.head.weight], lr=0.1),
        torch.optim.SGD(model.norm.parameters(), lr=0.1),
    ]  # type: ignore[union-attr, list-item]
    assert list(wrap_island(model, optimizers).optimizers) == optimizers


def test_what_makes_no_sense_is_said() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="expected auto, plain, ddp, fsdp2 or deepspeed, got 'fsdp'"):
        wrap_island(model, optimizer, engine="fsdp")
    with pytest.raises(ConfigError, match=r"torch\.distributed is not set up"):
        wrap_island(model, optimizer, engine="ddp")
    for sharded in ("fsdp2", "deepspeed"):
        with pytest.raises(ConfigError, match=f"{sharded}: expected to run under torchrun"):
            wrap_island(model, optimizer, engine=sharded)
    with pytest.raises(ModelError, match="Linear: expected trainable parameters, found none"):
        wrap_island(model.requires_grad_(False), optimizer)


def test_what_is_trained_but_not_exchanged_is_refused() -> None:
    model = make_model()
    with pytest.raises(ModelError) as caught:
        wrap_island(model, torch.optim.SGD([*model.parameters(), *nn.Linear(5, 2).parameters()], lr=0.1))
    assert "SGD, parameter group 0" in str(caught.value)
    assert "got one of shape (2, 5) that is not among them; build the optimizer from" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_is_unfrozen_or_added_later_is_refused_at_the_next_round() -> None:
    model = make_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    island = wrap_island(model, optimizer)
    optimizer.add_param_group({"params": list(model.frozen.parameters())})  # type: ignore[union-attr]
    everything(island)  # as long as it is frozen nothing is trained
    model.frozen.requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"frozen\.weight: expected it frozen, .* it was unfrozen"):
        everything(island)
    model.frozen.requires_grad_(False)  # type: ignore[union-attr]
    optimizer.add_param_group({"params": list(nn.Linear(8, 8).parameters())})
    with pytest.raises(ModelError, match=r"SGD, parameter group 2: .* got one of shape \(8, 8\)"):
        everything(island)


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_read_and_written_through_the_host() -> None:
    island = make_island(device="cuda")
    host = make_island()
    assert island.device.type == "cuda"
    assert torch.equal(everything(island), everything(host))
    values = torch.randn(everything(host).numel())
    island.write(range(len(island.layout)), values)
    assert torch.equal(everything(island), values)
    train(island, range(3))
    assert torch.isfinite(everything(island)).all()
