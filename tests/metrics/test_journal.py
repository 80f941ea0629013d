"""What an island tells of its run: figures of its steps, each anchor evaluated once, a run that diverged."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowcomm import exchanges
from lowcomm.cli.main import main
from lowcomm.clock import SystemClock
from lowcomm.data.loader import Loader
from lowcomm.islands import wrap_island
from lowcomm.metrics.console import describe
from lowcomm.metrics.summary import Counts, has_diverged, mean_islands, resumed, spent
from lowcomm.models.gpt import GPT, GPTShape, flops_per_token
from lowcomm.report.figures import run_figures
from lowcomm.report.runs import find_runs
from lowcomm.report.table import figure_rows
from lowcomm.training.device import peak_flops
from lowcomm.training.trainer import Trainer
from tests.training.islands import finished, lines, make_config, train_islands

DIVERGING = ("shared.inner.name=adamw", "shared.inner.lr=5")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with two islands that evaluated their last anchor at an outer step that was due for it."""
    folder = tmp_path_factory.mktemp("told")
    finished(train_islands(make_config(folder, "train.eval_every=2"), folder))
    return folder


def test_train_lines_say_what_the_steps_were_like(told):
    for line in lines(told / "island-0", "train"):
        assert 0 < line["lr"] <= 2e-3
        assert 0 < line["grad_norm"] <= line["grad_norm_max"] < 100
        assert line["tokens_per_s"] > 0
        assert 10 << 20 < line["host_memory_bytes"] < 1 << 40
        assert (line["device_memory_bytes"], line["mfu"]) == (None, None)  # this device's peak is not known


class Skewed(SystemClock):
    """The system's clock, with time that only a test lets pass."""

    ahead_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


def test_the_wait_for_batches_is_told(tmp_path, monkeypatch):
    clock, next_batch = Skewed(), Loader.next_batch

    def slow(loader):
        clock.ahead_s += 2
        return next_batch(loader)

    monkeypatch.setattr(Loader, "next_batch", slow)
    config = replace(make_config(tmp_path, "train.grad_accumulation=2"), out=str(tmp_path / "run"))
    exchange = exchanges.loopback(exchanges.hub(), run_id="small", peer_id="alone", founder=True)
    summary = Trainer(config, exchange=exchange, clock=clock).fit()
    told = lines(tmp_path / "run", "train")
    assert [line["data_s"] // 20 for line in told] == [1, 2, 3, 4]
    assert told[-1]["compute_s"] < 80 <= told[-1]["data_s"]
    (run,) = find_runs([tmp_path / "run"])
    rows = dict(figure_rows(run_figures(run)))
    assert rows["time waiting for data"] == f"{100 * summary.data_wait_share:.1f} %"
    (end,) = lines(tmp_path / "run", "end")
    share = f"{summary.data_wait_share:.1%}"
    assert describe(end, 20).endswith(f"; {share} of the time of training waited for data")


@pytest.mark.parametrize("clip_norm", [0.0, 0.1], ids=["off", "clipped"])
def test_the_norm_is_that_before_clipping(clip_norm):
    model = nn.Linear(4, 3)
    island = wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1))
    loss = model(torch.randn(8, 4, generator=torch.Generator().manual_seed(0))).square().sum()
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, model.parameters(), retain_graph=True)]
    ).norm()
    island.backward(loss)
    norm = island.update(clip_norm)
    assert float(norm) == pytest.approx(float(expected))
    assert float(norm) > 0.1


@pytest.mark.parametrize(
    "setting",
    [
        (),
        ("shared.schedule.num_fragments=2",),
        ("shared.schedule.num_fragments=2", "shared.schedule.delay=2"),
    ],
    ids=["one-fragment", "two-fragments", "delayed"],
)
def test_each_anchor_is_evaluated_once(tmp_path, setting):
    finished(train_islands(make_config(tmp_path, "train.eval_every=1", *setting), tmp_path))
    evaluated = [line["eval_loss"] for line in lines(tmp_path / "island-0", "eval")]
    assert len(evaluated) == len(set(evaluated)) >= 4


def test_a_run_that_diverged_says_so(tmp_path, caplog):
    config = make_config(tmp_path, *DIVERGING)
    for number, summary in enumerate(finished(train_islands(config, tmp_path))):
        assert summary.diverged
        assert summary.last_loss > 10 * summary.first_loss
        folder = tmp_path / f"island-{number}"
        assert lines(folder, "end")[0]["reason"] == "diverged"
        assert json.loads((folder / "summary.json").read_text())["diverged"] is True
        assert (folder / "checkpoints" / "step-000000020").is_dir()
    said = [record.message for record in caplog.records if "DIVERGED" in record.message]
    assert len(said) == 2
    assert "lower shared.inner.lr or shared.outer.lr" in said[0]


def test_a_run_that_diverged_is_over_at_once_when_it_is_started_again(tmp_path, caplog):
    config = make_config(tmp_path, *DIVERGING)
    first = finished(train_islands(config, tmp_path))
    caplog.clear()

    again = finished(train_islands(config, tmp_path))  # as torchrun does: nothing is well by that
    assert again == first
    said = [record.message for record in caplog.records if "DIVERGED" in record.message]
    assert [message.endswith("Nothing was done this time") for message in said] == [True, True]
    assert len(lines(tmp_path / "island-0", "start")) == 1

    longer = replace(config, train=replace(config.train, steps=25))
    (summary, _) = finished(train_islands(longer, tmp_path))  # who asks for more gets it
    assert (summary.inner_steps, summary.diverged) == (25, True)
    assert len(lines(tmp_path / "island-0", "start")) == 2


@pytest.mark.parametrize(("settings", "code"), [(DIVERGING, 1), ((), 0)], ids=["diverged", "well"])
def test_the_exit_code_of_a_run_that_diverged(tmp_path, capsys, settings, code):
    make_config(tmp_path)
    source = f"data.source={json.dumps(str(tmp_path / 'text'))}"
    overrides = [part for one in (source, "metrics.console=plain", *settings) for part in ("--set", one)]
    got = main(["train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "run"), *overrides])
    assert got == code
    err = capsys.readouterr().err
    assert ("the run has DIVERGED" in err) is bool(code)
    assert ("diverged after" in err) is bool(code)
    assert ("finished after" in err) is not bool(code)


@pytest.mark.parametrize(
    "settings", [("train.steps=1",), ("train.steps=3",), ("shared.inner.lr=0.1",)], ids=str
)
def test_a_short_or_rough_run_has_not_diverged(tmp_path, settings):
    summaries = finished(train_islands(make_config(tmp_path, *settings), tmp_path))
    assert not any(summary.diverged for summary in summaries)


def test_a_resumed_run_is_measured_from_its_beginning(tmp_path):
    config = make_config(tmp_path)
    first = finished(train_islands(config, tmp_path))
    for number in range(2):
        shutil.rmtree(tmp_path / f"island-{number}" / "checkpoints" / "step-000000020")
    again = finished(train_islands(config, tmp_path))
    assert [summary.first_loss for summary in again] == [summary.first_loss for summary in first]
    assert not any(summary.diverged for summary in again)


UNIFORM = math.log(256)


@pytest.mark.parametrize(
    ("first", "last", "evaluated", "steps", "diverged"),
    [
        (5.55, 870.0, 935.0, 300, True),
        (5.55, 7.5, 7.4, 300, True),
        (2.0, 4.5, 4.4, 300, True),  # a model that was trained before
        (5.55, math.nan, math.inf, 300, True),
        (5.55, 900.0, None, 300, True),
        (5.55, 870.0, 935.0, 10, True),
        (5.55, 9.0, 8.9, 10, True),
        (5.55, 5.9, 5.8, 300, False),
        (5.55, 6.8, 6.7, 10, False),
        (5.55, 0.1, 9.0, 300, False),  # it fits its text too well
        (5.55, 9.0, 2.0, 300, False),  # a noisy last batch
        (2.0, 2.6, 2.7, 300, False),
        (None, 9.0, 9.0, 300, False),
        (5.55, None, None, 300, False),
    ],
)
def test_what_counts_as_diverged(first, last, evaluated, steps, diverged):
    found = has_diverged(first=first, last=last, evaluated=evaluated, blank=UNIFORM, inner_steps=steps)
    assert found is diverged


def test_what_was_spent_after_a_checkpoint_stays_spent():
    logged = spent(
        [
            {"kind": "start", "counts": {"bytes_sent": 100}},
            {"kind": "train", "bytes_sent": 300, "compute_s": 2.5},
            {"kind": "round", "bytes_sent": 9_999},
            {"kind": "end", "summary": {"wan_bytes_sent": 320, "wall_s": 9.0}},
            {"kind": "end", "summary": {}},
        ]
    )
    counts = resumed(Counts(bytes_sent=200, compute_s=3.0, rounds_committed=4, first_loss=5.0), logged)
    assert (counts.bytes_sent, counts.compute_s, counts.wall_s) == (320, 3.0, 9.0)
    assert (counts.rounds_committed, counts.first_loss) == (4, 5.0)


def test_islands_that_come_and_go_count_by_the_work_they_shared():
    counts = Counts()
    for participants, tokens in ((2, 100), (2, 100), (4, 100), (1, 100)):
        counts.round(participants, tokens, 0, committed=True)
    counts.round(0, 0, 0, committed=False)
    counts.round(4, 100, 1, committed=True)  # fragment 0 stands for the model
    islands = mean_islands(counts.round_tokens, counts.even_tokens, 1)
    assert 1 - 1 / islands == pytest.approx((0.5 + 0.5 + 0.75 + 0) / 4)
    assert counts.most_islands == 4
    assert mean_islands(0, 0.0, 3) == 3


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("Some L400 of the future", None),
    ],
)
def test_the_peak_of_a_device_is_known_or_not(name, teraflops):
    assert peak_flops(name) == (None if teraflops is None else teraflops * 1e12)


@pytest.mark.parametrize("tied", [False, True])
def test_flops_are_those_that_torch_counts(tied):
    from torch.utils.flop_counter import FlopCounterMode

    shape = GPTShape(
        vocab_size=64, dim=32, layers=2, heads=2, kv_heads=2, ffn_dim=64, context=16, tie_embeddings=tied
    )
    model, ids = GPT(shape), torch.zeros(4, 16, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).backward()
    sizes = [parameter.numel() for parameter in model.parameters()]
    expected = flops_per_token(shape, sum(sizes))
    attention, norms = 12 * 2 * 32 * 16, 6 * sum(size for size in sizes if size == 32)  # which it leaves out
    assert counter.get_total_flops() / ids.numel() == expected - attention - norms
