"""`shared.task.kind = "module:function"`: what a file may do, and what is said where it can't."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowcomm import exchanges
from lowcomm.config.load import load_config, shared_digest, to_toml
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError, DataError, LossError, LowcommError, ModelError
from lowcomm.report.figures import run_figures
from lowcomm.report.runs import load_run
from lowcomm.report.table import figure_rows
from lowcomm.tasks.base import Task
from lowcomm.tasks.rows import RowData
from lowcomm.training.build import build_model, build_task
from lowcomm.training.evaluation import evaluate
from lowcomm.training.export import export
from lowcomm.training.trainer import Trainer
from tests.training.islands import finished, lines, train_islands

OWN = """
import torch
from torch import nn
from lowcomm.tasks.base import Facts
from lowcomm.tasks.rows import RowData
from lowcomm.tasks.weights import save_weights

class Line:
    facts = Facts()

    def __init__(self, shards, slope): self.shards, self.slope = shards, slope
    def make_model(self): return nn.Linear(1, 1)
    def loss(self, model, batch): return nn.functional.mse_loss(model(batch[0]), batch[1])
    def evaluate(self, model, batch):
        loss = self.loss(model, batch)
        return {"loss": loss, "distance": loss.sqrt()}
    def data(self, *, say=True):
        x = torch.linspace(-1, 1, 40)[:, None]
        return RowData((x, self.slope * x), shards=self.shards, holdout_fraction=0.2, seed=0)
    def export(self, anchor, folder, *, run_id, step): save_weights(anchor, folder)

def make_task(shards, slope=2.0): return Line(shards, slope)
"""
RECIPE = """
[shared]
run_id = "own"
[shared.task]
kind = "KIND"
MODEL
[shared.inner]
name = "adamw"
lr = 0.05
[shared.schedule]
inner_steps = 5
[shared.data]
shards = 2
[train]
steps = 40
batch_size = 4
log_every = 5
eval_every = 4
[exchange]
heartbeat_s = 0.1
lease_s = 60.0
[metrics]
wandb = "off"
console = "off"
"""
NUMBERS = itertools.count()
MODEL, ROWS = "return nn.Linear(1, 1)", "linspace(-1, 1, 40)"
LOSS = "return nn.functional.mse_loss(model(batch[0]), batch[1])"


@pytest.fixture(autouse=True)
def path() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


def make(folder: Path, source: str = OWN, function: str = "make_task", model: str = "") -> Config:
    """The recipe beside a module of a name that no other test has imported."""
    name = f"own_{next(NUMBERS)}"
    (folder / f"{name}.py").write_text(source)
    recipe = folder / "own.toml"
    recipe.write_text(RECIPE.replace("KIND", f"{name}:{function}").replace("MODEL", model))
    return load_config(recipe)


def test_two_islands_train_it_and_what_it_tells_is_logged(tmp_path: Path) -> None:
    config = make(tmp_path, model="model = {slope = 3.0}")
    assert "task_folder" in to_toml(config)
    summaries = finished(train_islands(config, tmp_path))
    assert len({summary.digest for summary in summaries}) == 1
    evals = lines(tmp_path / "island-0", "eval")
    assert evals[-1]["eval_loss"] < 0.9 * evals[0]["eval_loss"]
    assert evals[-1]["eval_distance"] == pytest.approx(evals[-1]["eval_loss"] ** 0.5, rel=0.2)
    assert summaries[0].eval_metrics == {"distance": evals[-1]["eval_distance"]}
    (start,) = lines(tmp_path / "island-0", "start")
    assert (start["samples"], start["epoch_tokens"], start["step_tokens"]) == (40, 16, 4)
    rows = dict(figure_rows(run_figures(load_run(tmp_path / "island-0"))))
    assert rows["distance there"] == f"{evals[-1]['eval_distance']:.4f}"
    assert rows["loss on what is held out"] == f"{evals[-1]['eval_loss']:.4f}", "in a unit that nobody told"
    # the run folder knows where the file is, wherever one stands
    assert export(tmp_path / "island-0", tmp_path / "out") == 40
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.safetensors"]


def test_the_task_may_be_given(tmp_path: Path) -> None:
    config = make(tmp_path, model="model = {slope = 3.0}")
    task = build_task(make(tmp_path, OWN.replace("40)[:, None]", "80)[:, None]")))
    assert isinstance(task, Task)
    exchange = exchanges.loopback(exchanges.hub(), run_id="own", peer_id="alone", founder=True)
    own = replace(config, out=str(tmp_path / "island"), train=replace(config.train, steps=5))
    assert Trainer(own, exchange=exchange, task=task).fit().inner_steps == 5
    assert [start["samples"] for start in lines(tmp_path / "island", "start")] == [80]


def test_kind_and_table_are_shared_and_gpt_has_the_digest_it_had(tmp_path: Path) -> None:
    config, other = make(tmp_path, model="model = {slope = 2}"), make(tmp_path, model="model = {slope = 3}")
    assert len({shared_digest(config), shared_digest(other), shared_digest(load_config(None))}) == 3
    assert json.loads(config.shared.task.model) == {"slope": 2}
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "again.toml") == config
    assert config.train.task_folder == str(tmp_path)
    table = load_config(tmp_path / "own.toml", ["shared.task.model={slope = 2}"]).shared.task.model
    assert table == '{"slope":2}'


def test_random_weights_are_those_of_the_seed(tmp_path: Path) -> None:
    config = make(tmp_path)
    first, second = (build_model(config, build_task(config)) for _ in range(2))
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_buffers_are_not_exchanged_which_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = make(tmp_path, OWN.replace(MODEL, "return nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))"))
    build_model(config, build_task(config))
    (record,) = caplog.records
    assert "(buffers: 1.running_mean, 1.running_var)" in record.getMessage()
    assert "GroupNorm" in record.getMessage()


def test_an_error_of_lowcomms_own_passes_and_others_are_named(tmp_path: Path) -> None:
    said = "from lowcomm import LowcommError\ndef make_task(): raise LowcommError('no images here')"
    with pytest.raises(LowcommError, match=r"^no images here$"):
        build_task(make(tmp_path, said))
    said = "def make_task(): return 1 / 0"
    with pytest.raises(ConfigError, match="the call ended with ZeroDivisionError: division by zero"):
        build_task(make(tmp_path, said))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_library", r"can't be imported: ModuleNotFoundError: No module named 'no_such_l"),
        ("def make_task(:", r"can't be imported: SyntaxError: .*looked for in /\S+ or /"),
        ("raise RuntimeError('broken\\nhere')", r"can't be imported: RuntimeError: broken here; "),
        ("other = 1", r"expected a function make_task in /\S+\.py, got nothing of that name"),
        ("make_task = 3", r"expected a function make_task in /\S+\.py, got 3"),
        ("def make_task(): pass", r"expected a Task .*, got None without facts, make_model, loss"),
        ("def make_task(width): pass", r"parameters that .* \(seed, source, .*\), got width; set it there"),
    ],
    ids=["no library", "no Python", "raises", "no function", "no callable", "no Task", "no value"],
)
def test_a_file_that_makes_no_task(tmp_path: Path, source: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as caught:
        build_task(make(tmp_path, source))
    assert str(caught.value).startswith("shared.task.kind = own_")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("shared.task.kind=gtp",),
            r'shared\.task\.kind: expected one of gpt.* "mymodule:make_task", got "g',
        ),
        (("shared.task.kind=a b:c",), r'shared\.task\.kind: expected .* got "a b:c"'),
        (
            ("shared.task.kind=a:b", "shared.task.model=x"),
            r'shared\.task\.model: expected a table .* got "x"',
        ),
        (("shared.task.model={a=1}",), r"shared\.task\.model: expected nothing with kind = gpt"),
        (("shared.task.model={a=nan}",), r"shared\.task\.model: expected .* a table of plain values"),
        (("shared.task.model={a=1979-05-27}",), r"shared\.task\.model: expected .* a table of plain values"),
        (("shared.task.model=3",), r"shared\.task\.model: expected text in quotes, or a table .* got 3"),
        (("shared.task.kind=nowhere_at_all:f",), r"nowhere_at_all can't be imported: ModuleNotFoundError"),
    ],
)
def test_settings_that_name_none(overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_task(load_config(None, overrides))


def test_a_setting_that_the_function_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shared\.task\.model\.slop: expected a parameter of .* \(slope\)"):
        build_task(make(tmp_path, model="model = {slop = 3.0}"))


@pytest.mark.parametrize(
    ("line", "instead", "kind", "expected"),
    [
        (MODEL, "return 3", ModelError, r"expected a torch\.nn\.Module .*, got 3"),
        (MODEL, "return nn.ReLU()", ModelError, "with parameters to train, got none in ReLU"),
        (LOSS, "return (model(batch[0]) - batch[1])**2", ModelError, r"shape \(4, 1\) .*its mean"),
        (LOSS, "return 1.0", ModelError, r"got 1\.0"),
        (LOSS, "return model(batch[0]).mean().detach()", ModelError, "without gradients"),
        (LOSS, "return model(batch[0]).mean() / 0", LossError, "not finite .*Lower the inner learning"),
        (ROWS, "linspace(-1, 1, 8)", DataError, r"least 4 samples, .* got 3; lower train\.batch"),
        (ROWS, "linspace(-1, 1, 1)", DataError, r"one for each of shared\.data\.shards"),
        ('return {"loss": loss, ', "return {", ModelError, 'evaluate to tell at least "loss", got .*dist'),
    ],
    ids=[
        "no model", "nothing to train", "no scalar", "no tensor", "no gradients", "not finite", "few samples",
        "fewer than shards", "no loss told",
    ],
)  # fmt: skip
def test_a_task_that_can_not_be_trained(
    tmp_path: Path, line: str, instead: str, kind: type[LowcommError], expected: str
) -> None:
    assert line in OWN
    config = make(tmp_path, OWN.replace(line, instead))
    (error,) = train_islands(config, tmp_path, islands=1)
    assert isinstance(error, kind), error
    with pytest.raises(kind, match=expected):
        raise error
    assert "\n" not in str(error)


def test_rows_of_unlike_numbers_are_no_samples() -> None:
    with pytest.raises(DataError, match=r"expected tensors of equally many rows, got \[3, 4\]"):
        RowData((torch.zeros(3), torch.zeros(4)), shards=1, holdout_fraction=0.0, seed=0)


def test_an_evaluation_weighs_batches_by_their_samples(tmp_path: Path) -> None:
    class Mean:
        def evaluate(self, model: torch.nn.Module, batch: Tensor) -> dict[str, Tensor]:
            return {"loss": batch.mean()}

    batches = [torch.tensor([1.0, 1.0, 1.0]), torch.tensor([5.0])]
    found = evaluate(Mean(), torch.nn.Linear(1, 1), batches, torch.device("cpu"))  # type: ignore[arg-type]
    assert found == {"loss": 2.0}
