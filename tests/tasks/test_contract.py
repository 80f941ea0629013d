"""What every task must do, whatever it trains: the kinds of the table, and one of a user's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.data.loader import Loader
from lowcomm.data.samples import count_samples, tensors_of
from lowcomm.errors import CheckpointError, DataError
from lowcomm.tasks.base import Task
from lowcomm.tasks.weights import WEIGHTS
from lowcomm.training.build import build_model, build_task
from lowcomm.training.evaluation import evaluate
from lowcomm.training.inner_step import checked_loss

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = (
    "shared.data.shards=2", "shared.data.holdout_fraction=0.2", "shared.model.dim=16",
    "shared.model.layers=1", "shared.model.heads=2", "shared.model.kv_heads=2",
    "shared.model.ffn_dim=32", "shared.model.context=16",
)  # fmt: skip
LLAMA = (
    "{model_type='llama', vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=1, "
    "num_attention_heads=2, max_position_embeddings=32}"
)
GPT2 = "{model_type='gpt2', vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=32}"
TASKS: dict[str, tuple[Path | None, tuple[str, ...]]] = {
    # the recipe, and what of it is set otherwise
    "gpt": (None, ()),
    "hf": (None, ("shared.task.kind=hf", f"shared.task.model={LLAMA}")),
    "gpt2": (None, ("shared.task.kind=hf", f"shared.task.model={GPT2}")),
    "digits": (RECIPES / "digits.toml", ("shared.task.model={width=8}",)),
}


@pytest.fixture(params=TASKS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    recipe, overrides = TASKS[request.param]
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"the tide of day {number} comes and goes. " * 40)
    return load_config(recipe, [*SMALL, f"data.source='{tmp_path}'", *overrides])


@pytest.fixture
def task(config: Config) -> Task:
    return build_task(config)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_all_islands_begin_with_the_same_bits(config: Config, task: Task) -> None:
    first = build_model(config, task)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = build_model(config, build_task(config))
    assert torch.equal(flat(first), flat(second))
    assert torch.equal(torch.get_rng_state(), before), "training draws its random numbers from there on"
    if task.facts.parameters is not None:
        assert task.facts.parameters == len(flat(first))


def test_a_loss_from_which_all_that_is_trained_gets_gradients(config: Config, task: Task) -> None:
    model, loader = build_model(config, task), Loader(task.data().training(0), batch_size=4)
    batch = loader.next_batch()
    assert count_samples(batch) == 4
    assert loader.batch_tokens == 4 * task.facts.sample_tokens
    loss = checked_loss(task.loss(model, batch))
    assert math.isfinite(loss.detach())
    if (blank := task.facts.blank_loss) is not None:
        assert 0.5 * blank < float(loss.detach()) < 1.5 * blank
    torch.autograd.backward(loss)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_training_lowers_the_loss(config: Config, task: Task) -> None:
    model, loader = build_model(config, task), Loader(task.data().training(0), batch_size=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    batch, losses = loader.next_batch(), []
    for _ in range(20):
        loss = task.loss(model, batch)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_samples_go_on_where_they_stood_and_ranks_take_different_ones(task: Task) -> None:
    samples = task.data().training(1)
    alone, resumed = Loader(samples, batch_size=4), Loader(task.data().training(1), batch_size=4)
    ranks = [Loader(samples, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    alone.next_batch()
    for rank in ranks:
        rank.next_batch()
    resumed.load_state_dict(alone.state_dict())
    ranks[0].skip(0)
    whole = list(tensors_of(alone.next_batch()))
    halves = [list(tensors_of(rank.next_batch())) for rank in ranks]
    for number, expected in enumerate(whole):
        assert torch.equal(expected, torch.cat([half[number] for half in halves]))
    assert all(map(torch.equal, whole, tensors_of(resumed.next_batch())))
    assert alone.state_dict() == resumed.state_dict() == ranks[1].state_dict()
    skipped = Loader(samples, batch_size=4)
    skipped.skip(2 * skipped.batch_tokens)
    assert skipped.state_dict() == alone.state_dict()


def test_shards_are_of_other_data_and_there_are_no_more(task: Task) -> None:
    data = task.data()
    assert data.num_shards == 2
    assert data.digest == task.data(say=False).digest
    assert data.training(0).identity != data.training(1).identity
    with pytest.raises(DataError, match=r"data\.shard: expected 0 to 1, got 2"):
        data.training(2)


def test_evaluation_is_of_fixed_samples(config: Config, task: Task) -> None:
    model, data, cpu = build_model(config, task), task.data(), torch.device("cpu")
    batches = list(data.evaluation(10, 4))
    assert [count_samples(getattr(batch, "batch", batch)) for batch in batches] == [4, 4, 2]
    found = evaluate(task, model, batches, cpu)
    assert found == evaluate(task, model, data.evaluation(10, 4), cpu)
    assert found["loss"] == pytest.approx(
        evaluate(task, model, data.evaluation(10, 10), cpu)["loss"], rel=1e-5
    )
    assert model.training
    assert evaluate(task, model, [], cpu) == {}


def test_the_export_holds_the_weights_and_refuses_others(config: Config, task: Task, tmp_path: Path) -> None:
    anchor = {name: p.detach() + 1 for name, p in build_model(config, task).named_parameters()}
    folder = tmp_path / "export"
    folder.mkdir()
    task.export(anchor, folder, run_id="demo", step=3)
    assert {name: t.tolist() for name, t in load_file(folder / WEIGHTS).items()} == {
        name: t.tolist() for name, t in anchor.items()
    }
    name, values = anchor.popitem()
    with pytest.raises(CheckpointError, match=f"has {name} .* the checkpoint not at all"):
        task.export(anchor, folder, run_id="demo", step=3)
    with pytest.raises(CheckpointError, match=f"has {name}"):
        task.export({**anchor, name: values[None]}, folder, run_id="demo", step=3)
