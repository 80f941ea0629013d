import errno
import io
import json
from pathlib import Path

import pytest

from lowcomm.config.schema import MetricsConfig
from lowcomm.errors import StorageError
from lowcomm.metrics import Fanout, open_sinks
from lowcomm.metrics.charts import charted
from lowcomm.metrics.console import console_sink, describe, human_bytes
from lowcomm.metrics.jsonl import JsonLinesSink

TRAIN = {
    "kind": "train", "inner_step": 20, "outer_step": 2, "tokens": 5120, "loss": 3.25, "lr": 1e-3,
    "tokens_per_s": 1234.5, "peers": 2, "compute_s": 3.0, "data_s": 0.25, "wait_s": 0.75, "transfer_s": 0.0,
    "bytes_sent": 2_500_000, "bytes_received": 2_400_000, "time_s": 4.2,
}  # fmt: skip
ROUND = {
    "kind": "round", "outer_step": 2, "fragment": 0, "committed": True, "reason": "",
    "participants": ["a", "b"], "attempts": 1, "bytes_sent": 1000, "bytes_received": 1000,
    "round_s": 0.1, "wait_s": 0.1, "form_s": 0.02, "transfer_s": 0.05, "tokens": 2560,
    "round_tokens": 5120, "compression_ratio": 3.9, "pseudo_gradient_norm": 1.5, "mean_norm": 1.0,
    "cosine": 0.4, "adopted": 0, "digest": "d" * 64, "head": "e" * 64, "inner_step": 20, "time_s": 4.3,
}  # fmt: skip


class Broken:
    """Fails at the n-th record."""

    def __init__(self, working: int) -> None:
        self.working, self.logged, self.closed = working, 0, 0

    def log(self, record):
        if self.logged == self.working:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.logged += 1

    def close(self) -> None:
        self.closed += 1
        raise RuntimeError("close fails, too")


class Keeping:
    def __init__(self) -> None:
        self.records: list[dict] = []

    def log(self, record):
        self.records.append(dict(record))

    def close(self) -> None: ...


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_failing_sink_is_dropped_and_reported_once():
    errors, broken, keeping = io.StringIO(), Broken(working=1), Keeping()
    fanout = Fanout([("tracker", broken), ("memory", keeping)], errors)
    for step in range(4):
        fanout.log({"kind": "train", "inner_step": step})
    fanout.close()
    assert [record["inner_step"] for record in keeping.records] == [0, 1, 2, 3]
    assert (broken.logged, broken.closed, fanout.names) == (1, 1, ())
    assert errors.getvalue().count("tracker failed") == 1
    assert "No space left on device" in errors.getvalue()


def test_failing_close_does_not_keep_the_others_from_closing(tmp_path):
    errors = io.StringIO()
    fanout = Fanout([("tracker", Broken(9)), ("file", JsonLinesSink(tmp_path / "metrics.jsonl"))], errors)
    fanout.log(TRAIN)
    fanout.close()
    fanout.close()
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
    assert errors.getvalue().count("close fails, too") == 1


def test_json_lines_go_on_after_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLinesSink(path)
    first.log({"kind": "train", "inner_step": 1})
    first.close()
    with path.open("a") as file:
        file.write('{"kind": "train", "inner_s')
    second = JsonLinesSink(path)
    second.log({"kind": "train", "inner_step": 2})
    second.close()
    whole = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["inner_step"] for line in whole] == [1, 2]


def test_json_lines_are_readable_while_the_run_goes_on(tmp_path):
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    sink.log(ROUND)
    assert lines(tmp_path / "metrics.jsonl") == [ROUND]
    sink.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_json_lines_stay_valid_json(tmp_path, value):
    sink = JsonLinesSink(tmp_path / "metrics.jsonl")
    sink.log({"kind": "train", "loss": value, "nested": {"list": [value]}})
    sink.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["loss"] == str(value)


def test_full_disk_is_named_and_training_goes_on():
    errors = io.StringIO()
    fanout = Fanout([("metrics.jsonl", JsonLinesSink(Path("/dev/full")))], errors)
    fanout.log(TRAIN)
    fanout.log(TRAIN)
    fanout.close()
    assert errors.getvalue().count("its lines are kept in memory") == 1
    assert "the disk is full: /dev/full" in errors.getvalue()
    assert "2 lines are lost" in errors.getvalue()


def test_json_lines_in_a_missing_folder_is_an_error_at_once(tmp_path):
    with pytest.raises(StorageError, match="can't write"):
        JsonLinesSink(tmp_path / "missing" / "metrics.jsonl")


@pytest.mark.parametrize("mode", ["auto", "plain", "progress"])
def test_console_without_a_terminal(mode):
    out = io.StringIO()
    sink = console_sink(mode, 100, out)
    assert sink is not None
    records = [
        {"kind": "start", "run_id": "r", "peer": "p", "inner_step": 0, "how": "founded"},
        TRAIN,
        ROUND,
        {**ROUND, "committed": False, "reason": "peer b left", "cosine": None},
        {"kind": "eval", "inner_step": 20, "tokens": 5120, "eval_loss": 2.5},
        {"kind": "end", "reason": "finished", "time_s": 5.0},
        {"kind": "unknown"},
        {},
    ]
    for record in records:
        sink.log(record)
    sink.close()
    text = out.getvalue()
    assert "outer step 2 of fragment 0: 2 islands" in text
    assert "peer b left" in text
    assert "loss 2.5000" in text
    assert "3.250" in text
    assert "2.5 MB" in text


@pytest.mark.parametrize(
    ("how", "words"),
    [("founded", "(resumed from step 20, at"), ("replayed", "(resumed from step 20, replayed, at")],
)
def test_the_console_tells_a_resume_from_a_beginning(how, words):
    out = io.StringIO()
    sink = console_sink("plain", 100, out)
    assert sink is not None
    sink.log({"kind": "start", "run_id": "r", "peer": "p", "inner_step": 20, "how": how, "resumed_from": 20})
    assert words in out.getvalue()


def test_the_console_calls_islands_by_their_names():
    out = io.StringIO()
    sink = console_sink("plain", 100, out)
    assert sink is not None
    ids = ["12D3KooWaaaa1111", "12D3KooWbbbb2222"]
    names = {ids[0]: "north", ids[1]: "south"}
    sink.log({"kind": "start", "run_id": "r", "name": "north", "peer": ids[0], "how": "founded"})
    sink.log({**ROUND, "participants": ids, "names": names})
    sink.log({**ROUND, "participants": ids[:1], "names": names})
    sink.log({**ROUND, "participants": [*ids, "12D3KooWcccc3333"], "names": names})
    sink.log({**ROUND, "participants": ids * 10, "names": names})
    sink.log({**ROUND, "committed": False, "reason": f"{ids[1]} left", "names": names})
    start, both, one, three, many, failed = out.getvalue().splitlines()
    assert start.startswith("run r as north, peer …aaaa1111")
    assert "2 islands (north, south)," in both
    assert "1 island (north)," in one
    assert "3 islands (north, south, …cccc3333)," in three
    assert "20 islands," in many
    assert "outer step stays 2: south left;" in failed


def test_an_evaluation_is_told_with_all_that_its_task_tells():
    line = {"kind": "eval", "inner_step": 9, "tokens": 70, "eval_loss": 0.5, "eval_accuracy": 0.75}
    told = describe({**line, "unit": "nats"}, 100)
    assert told == "eval at step 9: loss 0.5000 nats, accuracy 0.7500 after 70 tokens of this island"
    assert describe({**line, "unit": ""}, 100).startswith("eval at step 9: loss 0.5000, accuracy")
    assert charted({**line, "unit": "nats"}) == {
        "swarm/eval_loss": 0.5, "swarm/eval_accuracy": 0.75, "island/tokens": 70, "inner_step": 9,
    }  # fmt: skip


def test_plain_console_is_one_line_per_record():
    out = io.StringIO()
    sink = console_sink("plain", 100, out)
    assert sink is not None
    for _ in range(3):
        sink.log(TRAIN)
    assert len(out.getvalue().splitlines()) == 3
    assert "compute/wait/transfer 75/25/0 %" in out.getvalue()


def test_console_off_is_no_sink():
    assert console_sink("off", 100) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (23_400_000, "23.4 MB"), (7e12, "7.0 TB")],
    ids=lambda value: str(value),
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_open_sinks_always_writes_metrics(tmp_path):
    settings = MetricsConfig(wandb="off", console="off")
    fanout = open_sinks(settings, tmp_path, "run", "island", {"train": {"steps": 10}}, "")
    fanout.log(TRAIN)
    fanout.close()
    assert lines(tmp_path / "metrics.jsonl") == [TRAIN]
