import base64
import json
import re

import numpy as np
import pytest

from lowcomm.errors import StorageError
from lowcomm.report import load_run, run_figures, write_page
from lowcomm.report.figures import ring_bytes
from lowcomm.report.page import render_page
from lowcomm.report.series import smooth, tokens_of_all
from tests.report.make_runs import DIGEST, PARAMETERS, write_island


@pytest.fixture
def folder(tmp_path):
    for index in range(2):
        write_island(tmp_path / "run" / f"island-{index}", index, late_s=0.7 * index, failed=(50,))
    return tmp_path / "run"


def test_figures_of_a_finished_run(folder):
    figures = run_figures(load_run(folder))
    assert (figures.islands, figures.inner_steps, figures.outer_steps) == (2, 300, 29)
    assert figures.tokens == 2 * 300 * 256
    assert figures.wan_bytes_sent == (30 * 520_000, 30 * 520_000)
    assert figures.data_parallel_bytes == PARAMETERS * 4 * 300
    assert figures.ratio == pytest.approx(PARAMETERS * 4 * 300 / (30 * 520_000))
    assert figures.digests == (DIGEST, DIGEST)
    assert figures.digests_equal is True
    assert (figures.rounds_committed, figures.rounds_failed) == ((29, 29), (1, 1))
    assert figures.baseline_eval_loss is None
    json.dumps(figures.to_dict(), allow_nan=False)


def test_islands_are_put_on_one_clock(folder):
    first, second = load_run(folder).islands
    assert [line["time_s"] for line in first.rounds] == pytest.approx(
        [line["time_s"] for line in second.rounds]
    )


def test_differing_digests_are_said(folder):
    write_island(folder / "island-2", 2, islands=3, digest="0" * 64)
    run = load_run(folder)
    assert run_figures(run).digests_equal is False
    assert ">NO<" in render_page([run])


def test_an_island_alone_needs_no_parent(folder):
    run = load_run(folder / "island-1")
    assert [island.name for island in run.islands] == ["island-1"]
    assert run_figures(run).digests_equal is None


def test_a_run_in_progress_has_no_digest_yet(tmp_path):
    write_island(tmp_path / "island-0", 0, ended=False, last=40)
    run = load_run(tmp_path)
    figures = run_figures(run)
    assert (figures.digests, figures.data_parallel_bytes, figures.inner_steps) == ((None,), None, 40)
    assert "running, or killed" in render_page([run])


def test_a_run_before_its_first_step_can_be_drawn(tmp_path):
    write_island(tmp_path / "island-0", 0, ended=False, last=0)
    page = render_page([load_run(tmp_path)])
    assert page.count("data:image/png") == 4


def test_resumed_steps_stand_once_and_bytes_add_up(tmp_path):
    write_island(tmp_path, 0, last=100, ended=False)
    write_island(tmp_path, 0, first=60, last=200)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "inner_st')
    (island,) = load_run(tmp_path).islands
    assert [line["inner_step"] for line in island.train] == list(range(5, 201, 5))
    assert island.sessions == 2
    assert island.train[-1]["bytes_sent"] == (10 + 14) * 520_000
    times = [line["time_s"] for line in island.train]
    assert times == sorted(times)


def test_tokens_of_all_counts_every_island(folder):
    run = load_run(folder)
    assert tokens_of_all(run, np.array([100.0])) == pytest.approx([2 * 100 * 256])


def test_page_stands_alone(folder):
    (folder / "baseline.json").write_text(
        json.dumps({"eval_loss": 1.6, "tokens": 153_600, "train": [[1000, 5.0], [150_000, 1.6]]})
    )
    write_page([load_run(folder)], folder / "report.html")
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "against data-parallel" in page
    for data in re.findall(r"data:image/png;base64,([^\"]+)", page):
        assert base64.b64decode(data).startswith(b"\x89PNG")


def test_page_escapes_what_it_was_given(tmp_path):
    write_island(tmp_path, 0, run_id="<script>alert(1)</script>")
    assert "<script" not in render_page([load_run(tmp_path)])


def test_several_runs_are_compared(folder, tmp_path):
    write_island(tmp_path / "other", 0, run_id="other")
    page = render_page([load_run(folder), load_run(tmp_path / "other")])
    assert "2 runs compared" in page
    assert page.count("data:image/png") == 2 + 2 * 4


def no_folder(path):
    return path / "missing"


def a_file(path):
    (path / "file").write_text("")
    return path / "file"


def empty(path):
    return path


def not_begun(path):
    (path / "metrics.jsonl").write_text("")
    return path


def two_runs(path):
    write_island(path / "island-0", 0, run_id="one", last=20)
    write_island(path / "island-1", 1, run_id="two", last=20)
    return path


def bad_summary(path):
    write_island(path, 0, last=20)
    (path / "summary.json").write_text("[1")
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_folder, "there is nothing"),
        (a_file, "it is a file"),
        (empty, "expected a run folder with metrics.jsonl"),
        (not_begun, "hasn't begun"),
        (two_runs, "expected the islands of one run, got those of one, two"),
        (bad_summary, "expected a JSON object"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders_that_are_no_runs(tmp_path, make, words):
    with pytest.raises(StorageError, match=re.escape(words)) as caught:
        load_run(make(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("islands", "expected"), [(1, 0), (2, 4000), (4, 6000)], ids=str)
def test_ring_bytes(islands, expected):
    assert ring_bytes(islands, 100, 10) == expected


def test_smooth_keeps_a_constant_and_the_length():
    assert smooth(np.full(50, 2.5), 7) == pytest.approx(np.full(50, 2.5))
