"""What codecs cost in loss, from the log of a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from codecs_learning import costs, plot
from tables import tables


def log(folder: Path) -> Path:
    lines = [
        {"name": name, "seed": seed, "eval_loss": loss, "bytes_sent": [sent, sent + 2_000_000]}
        for name, seed, loss, sent in (
            ("fp32", 0, 1.5, 99e6), ("int4", 0, 1.53, 12e6), ("fp32", 1, 1.6, 99e6), ("int4", 1, 1.6, 12e6),
            ("topk", 0, 1.8, 1e6),
        )
    ]  # fmt: skip
    path = folder / "codecs_learning.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_each_run_stands_against_fp32_of_the_same_seed(tmp_path: Path) -> None:
    found = {cost.name: cost for cost in costs(log(tmp_path))}
    assert found["int4"].gaps == pytest.approx([0.02, 0.0])
    assert found["topk"].gaps == pytest.approx([0.2])
    assert found["int4"].sent_bytes == pytest.approx(13e6)
    assert plot(list(found.values())).startswith(b"\x89PNG")
    assert "| int4 | 1.5300, 1.6000 | +2.0%, +0.0% | 13.0 MB |" in tables(tmp_path)
