"""The bits of runs are those on record, whatever was rewritten since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.golden.cases import CASES, run
from tests.golden.record import GOLDEN, SHARDED, sharded

RECORDED = {
    name: {key: value for key, value in case.items() if key != "since"}
    for name, case in json.loads(GOLDEN.read_text())["cases"].items()
}


def test_every_case_is_on_record() -> None:
    assert set(RECORDED) == {*CASES, *SHARDED}
    ends = [case["state"] for case in RECORDED.values()]
    assert len(set(ends)) == len(ends)  # each shows something of its own


@pytest.mark.parametrize("name", CASES)
def test_a_run_ends_with_the_bits_on_record(name: str) -> None:
    assert run(CASES[name]) == RECORDED[name]


@pytest.mark.processes
def test_ranks_that_share_the_outer_state_end_with_the_bits_on_record(tmp_path: Path) -> None:
    assert sharded(tmp_path) == {name: RECORDED[name] for name in SHARDED}
