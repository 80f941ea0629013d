"""What islands train on: said at the start, compared when they meet and when they come back."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.config.schema import Config
from lowcomm.data.sources import load_corpus
from lowcomm.errors import CheckpointError, JoinRefusedError, StorageError
from lowcomm.metrics.console import describe
from tests.training.islands import finished, lines, make_config, train_islands


def with_text_of_its_own(folder: Path):
    """Island 1 reads a document that island 0 lacks; neither is told which shard to use."""

    def own(number: int, config: Config) -> Config:
        text = folder / f"text-{number}"
        text.mkdir(exist_ok=True)
        for name in range(6):
            (text / f"{name}.txt").write_text("tide moon shore sand " * 40)
        if number == 1:
            (text / "6.txt").write_text("gull boat " * 80)
        return replace(config, data=replace(config.data, source=str(text), shard=-1))

    return own


def test_islands_with_other_documents_refuse_each_other(tmp_path, caplog):
    config = make_config(tmp_path, "train.steps=5", "exchange.gather_timeout_s=2")
    founder, joiner = train_islands(config, tmp_path, own=with_text_of_its_own(tmp_path))
    assert founder.islands == 1
    assert isinstance(joiner, JoinRefusedError)
    mine, theirs = (load_corpus(str(tmp_path / f"text-{number}")).digest[:12] for number in (1, 0))
    assert f"data.digest: here '{mine}...', there '{theirs}...'; the islands have read other texts" in str(
        joiner
    )
    assert "shared.data.same = false" in str(joiner)
    assert f"data.digest: here '{theirs}...', there '{mine}...'" in caplog.text  # what the founder says


def test_islands_may_have_documents_of_their_own_on_purpose(tmp_path, caplog):
    config = make_config(
        tmp_path,
        "shared.data.same=false",
        "shared.data.shards=1",
        "exchange.expected_peers=2",
        "train.steps=10",
    )
    own = with_text_of_its_own(tmp_path)
    first, second = finished(train_islands(config, tmp_path, own=own))
    assert (first.digest, first.islands) == (second.digest, 2)
    for number in range(2):
        (start,) = lines(tmp_path / f"island-{number}", "start")
        assert start["shard"] == -1
        assert start["epoch_tokens"] == start["all_epoch_tokens"]
        assert start["documents"] == 6 + number
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    longer = replace(config, train=replace(config.train, steps=20))
    assert [s.inner_steps for s in finished(train_islands(longer, tmp_path, own=own))] == [20, 20]


@pytest.mark.parametrize("same", ["true", "false"])
def test_documents_that_changed_between_restarts_are_refused(tmp_path, same):
    config = make_config(tmp_path, "train.steps=10", f"shared.data.same={same}")
    finished(train_islands(config, tmp_path, islands=1))
    longer = replace(config, train=replace(config.train, steps=15))
    added = tmp_path / "text" / "99.txt"
    added.write_text("one more document " * 99)
    (error,) = train_islands(longer, tmp_path, islands=1)
    assert isinstance(error, StorageError)
    assert "island-0: this run has trained on other text (digest " in str(error)
    added.unlink()
    (summary,) = finished(train_islands(longer, tmp_path, islands=1))
    assert summary.inner_steps == 15


def test_the_folder_of_a_version_that_noted_no_digest_is_resumed(tmp_path):
    config = make_config(tmp_path, "train.steps=10")
    finished(train_islands(config, tmp_path, islands=1))
    mark = tmp_path / "island-0" / "run.json"
    noted = json.loads(mark.read_text())
    del noted["data_digest"]
    mark.write_text(json.dumps(noted))
    longer = replace(config, train=replace(config.train, steps=15))
    (tmp_path / "text" / "99.txt").write_text("one more document " * 99)
    (error,) = train_islands(longer, tmp_path, islands=1)
    assert isinstance(error, CheckpointError)
    assert "data.digest: expected" in str(error)
    (tmp_path / "text" / "99.txt").unlink()
    assert finished(train_islands(longer, tmp_path, islands=1))[0].inner_steps == 15
    assert json.loads(mark.read_text())["data_digest"] == load_corpus(str(tmp_path / "text")).digest


def test_the_start_says_what_is_trained_on_what(tmp_path):
    config = make_config(tmp_path, "train.steps=5", "train.grad_accumulation=2")
    (tmp_path / "text" / "99.txt").write_bytes(b"\xff\xfe\xff")
    (summary,) = finished(train_islands(config, tmp_path, islands=1))
    (start,) = lines(tmp_path / "island-0", "start")
    corpus = load_corpus(str(tmp_path / "text"))
    assert (start["documents"], start["text_bytes"], start["left_out_files"]) == (12, len(corpus.text), 1)
    assert start["data_digest"] == corpus.digest
    held_out = start["text_bytes"] - start["all_epoch_tokens"]
    assert 0 < start["epoch_tokens"] < start["all_epoch_tokens"]
    assert held_out >= min(corpus.sizes) - 12
    assert start["parameters"] == summary.parameters
    assert (start["device"], start["precision"], start["engine"], start["ranks"]) == (
        "cpu",
        "fp32",
        "plain",
        1,
    )
    assert start["step_tokens"] == 4 * 16 * 2
    run, data, model = describe(start, 5).splitlines()
    assert run.startswith("run small as ")
    assert data == (
        f"data: 12 documents, {start['text_bytes'] / 1000:.1f} kB (1 file is left out), digest "
        f"{corpus.digest[:12]}; tokens in an epoch: shard 0 has {start['epoch_tokens']:,} of "
        f"{start['all_epoch_tokens']:,}"
    )
    assert model == (
        f"model: {summary.parameters:,} parameters on cpu in fp32, plain with 1 rank; 128 tokens in an inner "
        "step of this island"
    )
