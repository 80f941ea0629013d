"""Islands of unlike engines and sharding in one run: torchrun, Gloo and the real swarm."""

import json
import os
import subprocess
import sys

import pytest

from lowcomm.cli.main import main
from lowcomm.tasks.weights import WEIGHTS
from lowcomm.training.export import export
from tests.e2e.runs import DEADLINE_S, ROOT, SMALL, lines
from tests.e2e.test_deaths import wait_for

STEPS = 40
COMMON = (
    f"train.steps={STEPS}", "train.threads=1", "train.device=cpu", "shared.inner.name=adamw",
    "shared.inner.lr=0.003", "shared.round.min_participants=2", "exchange.gather_timeout_s=90",
    "exchange.lease_s=30", "metrics.console=off", "shared.run_id=engines",
)  # fmt: skip
HERE = [sys.executable, "-m"]
TORCHRUN = [*HERE, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


@pytest.fixture
def island(source, tmp_path, logged):
    """Start one island of an engine."""

    def start(name, engine, *overrides, join=None):
        recipe = ROOT / "recipes" / "quickstart.toml"
        command = [*(HERE if engine == "plain" else TORCHRUN), "lowcomm", "train", str(recipe)]
        command += ["--out", str(tmp_path / name), *(("--join", join) if join else ())]
        for override in (*SMALL, *COMMON, f"data.source={source}", f"island.engine={engine}", *overrides):
            command += ["--set", override]
        return logged(name, command)

    return start


def train(island, tmp_path, engines, *overrides):
    """All islands to their end; the first one's shared string is what the others join through."""
    count = f"exchange.expected_peers={len(engines)}"
    names = [f"{number}-{engine}" for number, engine in enumerate(engines)]
    first = island(names[0], engines[0], count, *overrides)
    address = tmp_path / names[0] / "address"

    def known():
        assert first.poll() is None, (tmp_path / f"{names[0]}.log").read_text()
        return address.exists() and address.read_text().strip()

    join = wait_for(known, "the first island's address")
    others = [
        island(name, engine, count, *overrides, join=join)
        for name, engine in zip(names[1:], engines[1:], strict=True)
    ]
    for name, process in zip(names, [first, *others], strict=True):
        assert process.wait(DEADLINE_S) == 0, (tmp_path / f"{name}.log").read_text()
    return [tmp_path / name for name in names]


def check(folders):
    """One anchor on all islands at every commit, and in what each has written down."""
    islands = len(folders)
    logs = [
        [x for x in lines(folder / "metrics.jsonl") if x["kind"] == "round" and x["committed"]]
        for folder in folders
    ]
    for rounds in zip(*logs, strict=True):
        assert len({line["digest"] for line in rounds}) == 1
        assert all(len(line["participants"]) == islands for line in rounds)
    assert len(logs[0]) == STEPS // 10
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert len({summary["digest"] for summary in summaries}) == 1
    # each evaluates the same anchor with its own engine
    assert max(s["eval_loss"] for s in summaries) - min(s["eval_loss"] for s in summaries) < 1e-4
    for folder in folders:
        losses = [line["loss"] for line in lines(folder / "metrics.jsonl") if line["kind"] == "train"]
        assert losses[-1] < losses[0] - 0.5
        assert main(["ledger", "verify", str(folder)]) == 0
        export(folder, folder / "export")
    assert len({(folder / "export" / WEIGHTS).read_bytes() for folder in folders}) == 1


LLAMA = (
    "shared.task.kind=hf",
    "shared.task.model={model_type='llama', vocab_size=256, hidden_size=32, intermediate_size=64, "
    "num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32}",
)


@pytest.mark.processes
@pytest.mark.parametrize("overrides", [(), LLAMA], ids=["gpt", "llama of transformers"])
def test_plain_fsdp2_and_zero3_train_one_model(island, tmp_path, overrides) -> None:
    check(train(island, tmp_path, ("plain", "fsdp2", "deepspeed"), *overrides))
    assert "is deprecated" not in (tmp_path / "2-deepspeed.log").read_text()  # else several times a step


@pytest.mark.processes
def test_two_ranks_are_matched_with_one(island, tmp_path) -> None:
    """Only the lead's clock counts, and all ranks take the same steps; both end with the same tokens."""
    tokens = 30_000
    matched = ("shared.schedule.mode=matched", "shared.schedule.num_fragments=2", f"train.tokens={tokens}")
    folders = train(island, tmp_path, ("plain", "ddp"), *matched)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert len({summary["head"] for summary in summaries}) == 1
    assert sum(summary["tokens_credited"] for summary in summaries) >= tokens
    for folder in folders:
        rounds = [x for x in lines(folder / "metrics.jsonl") if x["kind"] == "round" and x["committed"]]
        assert {line["fragment"] for line in rounds} == {0, 1}
        assert [x for x in rounds if x["fragment"] == 0][-1]["total_tokens"] >= tokens


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "deepspeed"])
def test_two_islands_of_two_ranks_and_one_string(island, tmp_path, engine) -> None:
    check(train(island, tmp_path, (engine, engine)))


@pytest.mark.processes
def test_the_cost_between_rounds_is_measured_per_engine(tmp_path) -> None:
    figures = tmp_path / "overhead.json"
    options = ("bench", "overhead", "--engine", "fsdp2", "--blocks", "1", "--steps", "2", "--pairs", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "lowcomm", *options, "--json", str(figures)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=DEADLINE_S)
    found = json.loads(figures.read_text())["overhead"]
    assert (found["engine"], found["ranks"], found["blocks"]) == ("fsdp2", 2, 1)
    assert found["call_s"] > 0
    # The loop's threads may sleep through so few short steps; tests/test_clock.py has them counted.
    assert 0 <= found["threads_s"] < found["cpu_s"]
