"""Runs that are counted in the ledger's tokens: where they end, their learning rate, unlike islands."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowcomm import exchanges
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError
from lowcomm.metrics.summary import Summary
from lowcomm.training.build import build_lr_schedule
from lowcomm.training.trainer import Trainer
from tests.training.islands import TIMEOUT_S, cut_back, finished, lines, losses, make_config, train_islands

STEP_TOKENS = 4 * 16
MATCHED = ("shared.schedule.mode=matched", "shared.schedule.inner_steps=12", "train.log_every=1")


class SteppingClock:
    """Goes on by `tick_s` whenever it is read, so that an island's steps take the same on any machine."""

    def __init__(self, tick_s: float) -> None:
        self._tick_s, self._now_s = tick_s, 0.0

    def monotonic_s(self) -> float:
        self._now_s += self._tick_s
        return self._now_s

    def wall_s(self) -> float:
        return self.monotonic_s()


def train_unlike(config: Config, out: Path, ticks_s: tuple[float, ...]) -> list[Summary]:
    """One island for each tick, in threads."""
    network, results = exchanges.hub(), [None] * len(ticks_s)

    def train(number: int, tick_s: float) -> None:
        own: Any = replace(
            config,
            out=str(out / f"island-{number}"),
            data=replace(config.data, shard=number),
            exchange=replace(config.exchange, expected_peers=len(ticks_s)),
        )
        exchange = exchanges.loopback(
            network, run_id=config.shared.run_id, peer_id=f"island-{number}", founder=number == 0
        )
        try:
            results[number] = Trainer(own, exchange=exchange, clock=SteppingClock(tick_s)).fit()
        except BaseException as error:  # handed to the test, which looks at it
            results[number] = error

    threads = [threading.Thread(target=train, args=pair, daemon=True) for pair in enumerate(ticks_s)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "an island hangs"
    return finished(results)


def test_a_run_ends_with_its_tokens_and_the_learning_rate_follows_them(tmp_path):
    tokens = 2 * 20 * STEP_TOKENS
    config = make_config(tmp_path, f"train.tokens={tokens}", "train.steps=7", "train.log_every=1")
    summaries = finished(train_islands(config, tmp_path))
    assert [(summary.inner_steps, summary.outer_steps) for summary in summaries] == [(20, 4)] * 2
    peak = config.shared.inner.adamw_lr
    for number in range(2):
        folder = tmp_path / f"island-{number}"
        assert [line["total_tokens"] for line in lines(folder, "round")] == [
            outer_step * 2 * 5 * STEP_TOKENS for outer_step in range(1, 5)
        ]
        train = lines(folder, "train")
        # before the first round an island knows of its own tokens only
        done = [line["swarm_tokens"] for line in train]
        assert done[:4] == [step * STEP_TOKENS for step in range(1, 5)]
        assert done[4:] == [step * 2 * STEP_TOKENS for step in range(5, 21)]
        rates = [line["lr"] / peak for line in train]
        schedule = build_lr_schedule(config)
        expected = [schedule.factor(before + STEP_TOKENS - 1, tokens) for before in [0, *done[:-1]]]
        assert rates == pytest.approx(expected)


def test_a_restart_of_a_run_in_tokens_goes_on_bit_for_bit(tmp_path):
    config = make_config(tmp_path, f"train.tokens={2 * 20 * STEP_TOKENS}")
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    expected = finished(train_islands(config, straight))
    cut_back(straight, cut)
    resumed = finished(train_islands(config, cut))
    assert [summary.head for summary in resumed] == [summary.head for summary in expected]
    for number in range(2):
        assert losses(cut / f"island-{number}") == losses(straight / f"island-{number}", after=10)


@pytest.mark.parametrize("fragments", [1, 2])
def test_unlike_islands_are_matched_and_agree(tmp_path, fragments):
    tokens = 8 * (12 + 4) * STEP_TOKENS
    setting = f"shared.schedule.num_fragments={fragments}"
    config = make_config(tmp_path, *MATCHED, setting, f"train.tokens={tokens}")
    summaries = train_unlike(config, tmp_path, (0.001, 0.003))
    assert len({summary.digest for summary in summaries}) == 1
    assert len({summary.head for summary in summaries}) == 1
    assert sum(summary.tokens for summary in summaries) >= tokens
    assert all(summary.tokens == summary.tokens_credited for summary in summaries)
    for number, steps in ((0, 12), (1, 4)):
        rounds = lines(tmp_path / f"island-{number}", "round")
        assert len({line["total_tokens"] for line in rounds}) > 4
        if fragments == 1:  # with two, the loop's real time and this clock decide together
            assert {line["next_inner_steps"] for line in rounds[1:]} <= {steps, steps + 1}
    assert summaries[0].data_parallel_bytes == summaries[1].data_parallel_bytes


def test_unlike_islands_resume_from_the_same_outer_step(tmp_path):
    tokens = 8 * (12 + 4) * STEP_TOKENS
    config = make_config(tmp_path, *MATCHED, f"train.tokens={tokens}", "train.keep_checkpoints=20")
    train_unlike(config, tmp_path, (0.001, 0.003))
    for number in range(2):
        folder = tmp_path / f"island-{number}"
        for checkpoint in (folder / "checkpoints").iterdir():
            if checkpoint.name > "step-000000048":  # of outer step 4
                shutil.rmtree(checkpoint)
        (folder / "metrics.jsonl").unlink()
    resumed = train_unlike(config, tmp_path, (0.001, 0.003))
    assert len({summary.head for summary in resumed}) == 1
    for number, steps in ((0, 12), (1, 4)):
        folder = tmp_path / f"island-{number}"
        (start,) = lines(folder, "start")
        assert (start["resumed_from"], start["outer_steps"]) == (48, [4])
        assert lines(folder, "round")[0]["inner_steps"] == steps  # the interval was saved, too
        # the ledger has what it had: nobody counts anything twice
        assert resumed[number].tokens == resumed[number].tokens_credited


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("shared.schedule.mode=matched",), "train.tokens: expected the tokens of the whole run"),
        (("shared.schedule.mode=timed", "train.tokens=9"), "expected it or round_tokens above 0"),
        (("shared.schedule.round_s=3",), "expected neither it nor round_tokens"),
    ],
    ids=["no-tokens", "no-length", "length-of-fixed"],
)
def test_what_does_not_fit_is_named(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_config(tmp_path, *overrides)
