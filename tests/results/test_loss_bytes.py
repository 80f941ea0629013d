"""The picture of the front page is of the committed logs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from loss_bytes import PICTURES, RESULTS, pairs, picture, stamp

LOGS = ("quickstart.json", "learning.jsonl", "few_bytes.jsonl")


@pytest.mark.parametrize("theme", PICTURES)
def test_the_picture_is_current(theme: str) -> None:
    assert stamp(pairs(RESULTS)) in PICTURES[theme].read_text(), "run: python docs/results/loss_bytes.py"


def test_each_pair_compares_like_with_like() -> None:
    lines = [json.loads(line) for line in (RESULTS / "few_bytes.jsonl").read_text().splitlines()]
    found = min(pairs(RESULTS), key=lambda pair: pair.sent_bytes)
    assert (found.islands, found.codec, found.interval) == (2, "2bit", 150)
    for kind, losses in (("islands", found.losses), ("data-parallel", found.parallel_losses)):
        assert sorted(losses) == sorted(line["eval_loss"] for line in lines if line["kind"] == kind)
    assert len({line["tokens"] for line in lines}) == 1


def test_other_figures_are_another_picture(tmp_path: Path) -> None:
    for log in LOGS:
        shutil.copy(RESULTS / log, tmp_path)
    quickstart = json.loads((tmp_path / "quickstart.json").read_text())
    (tmp_path / "quickstart.json").write_text(json.dumps({**quickstart, "eval_loss": 1.4}))
    assert stamp(pairs(tmp_path)) != stamp(pairs(RESULTS))


def test_drawing_twice_gives_the_same_bytes() -> None:
    drawn = pairs(RESULTS)
    first = picture(drawn, "light")
    assert first == picture(drawn, "light")
    assert first != picture(drawn, "dark")
