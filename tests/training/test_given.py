"""`Trainer(model, data)`: any module on any data set, with all that a recipe has."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lowcomm import Trainer
from lowcomm.cli.main import main
from lowcomm.config.load import load_config
from lowcomm.errors import ConfigError, DataError, LowcommError, ModelError
from lowcomm.training.export import export
from tests.training.islands import cut_back, finished, lines, losses, run_trainers

SETTINGS = {
    "shared.schedule.inner_steps": 5,
    "shared.data.shards": 2,
    "train.log_every": 5,
    "train.checkpoint_every": 2,
    "train.threads": 1,
    "exchange.heartbeat_s": 0.1,
    "exchange.lease_s": 60.0,
    "metrics.wandb": "off",
    "metrics.console": "off",
}


def line_through(count: int, seed: int = 0) -> TensorDataset:
    """Points that a linear model fits."""
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.25)


def _drawn() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


MODEL = _drawn()
"""Drawn once: islands here are threads, and random numbers are the process's."""


def make_model() -> nn.Module:
    return copy.deepcopy(MODEL)


def squared(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return functional.mse_loss(model(x), y)


def train(
    folder: Path, data: object = None, islands: int = 2, settings: dict[str, object] | None = None, **more
):
    def make(number: int, exchange) -> Trainer:
        words = {"loss": squared, "steps": 20, "batch_size": 4, "run_id": "given", **more}
        given = {**SETTINGS, "data.shard": number, "exchange.expected_peers": islands, **(settings or {})}
        return Trainer(
            make_model(),
            data or line_through(100),
            exchange=exchange,
            out=folder / f"island-{number}",
            settings=given,
            **words,
        )

    return run_trainers(make, islands, run_id="given")


class Points(IterableDataset):
    """Other points on each island and in each epoch, 30 of them."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        yield from line_through(30, seed=100 * self.seed + self.epoch)


class Augmented(Dataset):
    """The same sample differs each time."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, place: int):
        x = torch.randn(3)
        return x, x.sum(0, keepdim=True)


def test_a_model_learns_on_two_islands_and_tells_all_that_a_recipe_tells(tmp_path) -> None:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.02)

    def evaluate(model, batch):
        return {
            "loss": squared(model, batch),
            "within": ((model(batch[0]) - batch[1]).abs() < 1).float().mean(),
        }

    summaries = finished(
        train(tmp_path, steps=60, optimizer=optimizer, eval_data=line_through(50, seed=1), evaluate=evaluate)
    )
    assert len({summary.digest for summary in summaries}) == 1
    assert len({summary.eval_loss for summary in summaries}) == 1
    first = summaries[0]
    assert (first.islands, first.inner_steps, first.tokens) == (2, 60, 60 * 4)
    for number in range(2):
        folder = tmp_path / f"island-{number}"
        curve = losses(folder)
        assert curve[60] < 0.5 * curve[5]
        (start,) = lines(folder, "start")
        assert (start["samples"], start["epoch_tokens"], start["all_epoch_tokens"]) == (100, 50, 100)
        assert {line["eval_within"] for line in lines(folder, "eval")} == {first.eval_metrics["within"]}

    assert export(tmp_path / "island-0", tmp_path / "out") == 60
    weights = load_file(tmp_path / "out" / "model.safetensors")
    model = make_model()
    model.load_state_dict(weights)
    held = line_through(50, seed=1)
    assert squared(model, held.tensors).item() == pytest.approx(first.eval_loss)


@pytest.mark.parametrize("data", [line_through(60), Points()], ids=["map-style", "iterable"])
def test_a_restart_goes_on_bit_for_bit(tmp_path, data) -> None:
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    expected = finished(train(straight, data))
    cut_back(straight, cut)
    resumed = finished(train(cut, data))
    assert [summary.digest for summary in resumed] == [summary.digest for summary in expected]
    assert [summary.tokens for summary in resumed] == [80, 80]


def test_an_optimizer_that_is_made_keeps_its_rate_as_the_peak(tmp_path) -> None:
    def make(number: int, exchange) -> Trainer:
        model = make_model()
        return Trainer(
            model,
            line_through(40),
            loss=squared,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
            exchange=exchange,
            steps=10,
            run_id="given",
            out=tmp_path / "run",
            settings={**SETTINGS, "shared.inner.schedule": "constant", "shared.inner.warmup_fraction": 0.0},
        )

    finished(run_trainers(make, 1, run_id="given"))
    assert {line["lr"] for line in lines(tmp_path / "run", "train")} == {0.05}


def test_each_sample_of_map_style_data_is_drawn_by_one_island_in_an_epoch(tmp_path) -> None:
    drawn: list[float] = []

    def seen(model: nn.Module, batch) -> torch.Tensor:
        drawn.extend(batch[0][:, 0].tolist())
        return squared(model, batch)

    data = line_through(80)
    finished(train(tmp_path, data, loss=seen, steps=10))
    assert sorted(drawn) == sorted(data.tensors[0][:, 0].tolist())


def test_samples_that_are_drawn_at_random_do_not_keep_islands_apart(tmp_path) -> None:
    summaries = finished(train(tmp_path, Augmented()))
    assert [summary.islands for summary in summaries] == [2, 2]


def test_islands_with_other_data_are_refused(tmp_path) -> None:
    network: list[TensorDataset] = [line_through(60), line_through(60, seed=5)]

    def make(number: int, exchange) -> Trainer:
        waits = {"exchange.expected_peers": 2, "exchange.gather_timeout_s": 1.0}
        given = {**SETTINGS, **waits, "data.shard": number}
        return Trainer(
            make_model(), network[number], loss=squared, exchange=exchange, run_id="given", steps=10,
            out=tmp_path / f"island-{number}", settings=given,
        )  # fmt: skip

    results = run_trainers(make, run_id="given")
    assert any("data.digest" in str(result) for result in results)


def test_a_model_whose_output_has_a_loss_needs_no_function(tmp_path) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_model()

        def forward(self, x, y):
            return {"loss": functional.mse_loss(self.inner(x), y)}

    def make(number: int, exchange) -> Trainer:
        data = [{"x": x, "y": y} for x, y in line_through(40)]
        return Trainer(
            WithLoss(),
            data,
            exchange=exchange,
            run_id="given",
            steps=10,
            out=tmp_path / "run",
            settings=SETTINGS,
        )

    (summary,) = finished(run_trainers(make, 1, run_id="given"))
    assert summary.last_loss is not None


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"data": [1, 2], "rate": 3}, ConfigError, "Trainer: rate: expected one of batch_size, collate, "),
        ({"data": None}, ConfigError, "Trainer: data: expected a map-style or an iterable data set"),
        ({"data": DataLoader(line_through(8))}, ConfigError, r"got a DataLoader, .* pass data=loader"),
        ({"data": [1], "loss": 3}, ConfigError, "Trainer: loss: expected a function, got 3"),
        ({"data": [1], "optimizer": 3}, ConfigError, "Trainer: optimizer: expected one of torch.optim"),
        ({"data": [1], "steps": 3, "settings": {"train.steps": 4}}, ConfigError, "Trainer: steps: expected"),
        ({"data": [1], "settings": 3}, ConfigError, "Trainer: settings: expected a dict, e.g. "),
        ({"data": [1], "settings": {"train.stps": 4}}, ConfigError, "did you mean train.steps?"),
        ({"data": [1], "join": "here"}, ConfigError, "Trainer: join here: expected RUN_ID@/ip4/"),
        ({"data": [1], "join": "a@/ip4/1.2.3.4/tcp/1", "run_id": "b"}, ConfigError, "run_id: expected a,"),
        ({"data": [1], "sample_tokens": 0}, ConfigError, "Trainer: sample_tokens: expected a whole number"),
    ],
)  # fmt: skip
def test_what_is_given_wrongly_is_said(words, error, message) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")) as raised:
        Trainer(make_model(), **words)
    assert "\n" not in str(raised.value)


def test_too_few_samples_and_a_missing_loss_are_said(tmp_path) -> None:
    with pytest.raises(DataError, match=r"expected at least 2 samples, one for each of .*, got 1"):
        finished(train(tmp_path / "few", line_through(1), islands=1))
    with pytest.raises(DataError, match="data: expected samples, got a stream without one"):
        finished(train(tmp_path / "none", iter_of_nothing(), islands=1))
    with pytest.raises(
        ModelError, match="expected a model whose output has a `loss`, got Tensor without one"
    ):
        finished(train(tmp_path / "loss", [torch.ones(3)] * 40, islands=1, loss=None))


def iter_of_nothing() -> IterableDataset:
    class Nothing(IterableDataset):
        def __iter__(self):
            return iter(())

    return Nothing()


def test_a_shorter_stream_is_not_resumed(tmp_path) -> None:
    finished(train(tmp_path / "run", Points(), steps=10, batch_size=2, islands=1))
    shutil.copytree(tmp_path / "run", tmp_path / "again")

    class Shorter(Points):
        def __iter__(self):
            yield from line_through(3)

    with pytest.raises(DataError, match="expected at least 20 samples in epoch 0"):
        finished(train(tmp_path / "again", Shorter(), steps=20, batch_size=2, islands=1))


def test_such_a_run_can_not_be_had_from_its_recipe(tmp_path) -> None:
    finished(train(tmp_path, islands=1, steps=5))
    with pytest.raises(LowcommError, match="kind = given: the model and the data of this run were made"):
        Trainer(load_config(tmp_path / "island-0" / "config.toml")).fit()
    assert main(["ledger", "verify", str(tmp_path / "island-0")]) == 0
    with pytest.raises(ConfigError, match="data: expected nothing beside a configuration"):
        Trainer(load_config(None), [1, 2])
