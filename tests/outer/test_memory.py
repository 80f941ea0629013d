"""What rounds take on the host beside model, gradients and inner optimizer, as the kernel counts it.

At rest: anchor and slots (of nesterov one, the momentum), and with error feedback what the means lost that
are reduced here. A round under way adds, for its fragment only: the pseudo-gradient, the anchor and the slots
after it (staged, or those from before it until the result is merged), the encoded mean, with error feedback
what encodings lose in it, and in eager mode what the preview has added. Chunks under way and updates that are
still being written come on top.

Held to that is the middle one of the peaks of five cycles, in which each fragment has a round. A single one
may hold one state more: once on a busy machine it did, for a moment and for a reason that was not found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import Any

import pytest

from lowcomm import outer_optimizers
from lowcomm.algorithms.outer_optimizers import slot_names
from tests.outer.weighed import CYCLE, FRAGMENTS, MALLOC, STEPS

FP32 = 4.0
"""Bytes of one number; the rest is in bytes per parameter of the model, too."""
INT8 = 1.1
ISLANDS = 2


def island(settings: dict[str, Any], *peers: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.outer.weighed", json.dumps(settings), *peers]
    return subprocess.Popen(command, env={**os.environ, **MALLOC}, stdout=subprocess.PIPE, text=True)


BLOCKING: dict[str, Any] = {"num_fragments": 1}
STREAMING: dict[str, Any] = {"num_fragments": FRAGMENTS, "delay": 3}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("schedule", "error_feedback", "optimizer"),
    [
        pytest.param(BLOCKING, False, "nesterov", id="blocking", marks=pytest.mark.slow),
        pytest.param(BLOCKING, True, "nesterov", id="blocking-feedback", marks=pytest.mark.slow),
        pytest.param(STREAMING, False, "nesterov", id="streaming", marks=pytest.mark.slow),
        pytest.param(STREAMING, True, "nesterov", id="streaming-feedback", marks=pytest.mark.slow),
        pytest.param(STREAMING, False, "sgd", id="no-slots", marks=pytest.mark.slow),
        pytest.param(STREAMING, False, "adam", id="two-slots", marks=pytest.mark.slow),
        pytest.param({**STREAMING, "eager": True}, False, "nesterov", id="eager"),
    ],
)
def test_a_round_holds_no_copy_too_many(
    schedule: dict[str, Any], error_feedback: bool, optimizer: str
) -> None:
    under_way = min(1.0, 2 / schedule["num_fragments"])
    settings = {
        "schedule": schedule, "codec": "int8", "error_feedback": error_feedback, "optimizer": optimizer
    }  # fmt: skip
    found = []
    with island(settings) as founder:
        assert founder.stdout is not None
        founder.stdout.readline()  # of the warm-up
        with island(settings, founder.stdout.readline().strip()) as joiner:
            for process in (founder, joiner):
                out, _ = process.communicate(timeout=120)
                assert process.returncode == 0
                found.append(json.loads(out.splitlines()[-1]))
    residual = FP32 / ISLANDS if error_feedback else 0.0
    lost = FP32 + residual if error_feedback else 0.0
    rest = (1 + len(slot_names(outer_optimizers.by_name(optimizer)))) * FP32
    fragment = FP32 + rest + INT8 + lost + (FP32 if schedule.get("eager") else 0.0)
    allowance = 1.5 * FP32 / FRAGMENTS
    most = rest + residual + under_way * fragment + allowance
    for weighed in found:
        assert weighed["rest"] < rest + allowance
        assert len(weighed["peaks"]) == STEPS // CYCLE
        assert median(weighed["peaks"]) < most
        assert max(weighed["peaks"]) < most + rest / FRAGMENTS
