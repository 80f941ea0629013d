import base64
import json
import re
import shutil
import warnings

import numpy as np
import pytest

from lowcomm.errors import StorageError
from lowcomm.report import find_runs, load_run, run_figures, write_page
from lowcomm.report.page import render_page
from lowcomm.report.series import loss_over_tokens, smooth, tokens_of_all
from lowcomm.report.table import figure_rows
from tests.report.make_runs import DIGEST, PARAMETERS, ROUND_BYTES, peer_of, write_island


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
    write_island(folder / "island-2", 2, islands=3, failed=(50,), digest="0" * 64)
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
    assert (figures.digests, figures.inner_steps) == ((None,), 40)
    assert figures.data_parallel_bytes == 4 * PARAMETERS * 40
    assert "running, or killed" in render_page([run])


def test_a_run_before_its_first_step_can_be_drawn(tmp_path):
    write_island(tmp_path / "island-0", 0, ended=False, last=0)
    page = render_page([load_run(tmp_path)])
    assert page.count("data:image/png") == 7


def test_an_island_alone_that_sent_nothing_is_drawn_without_a_warning(tmp_path):
    write_island(tmp_path, 0, islands=1, last=40)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(re.sub(r'"bytes_sent": \d+', '"bytes_sent": 0', metrics.read_text()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert render_page([load_run(tmp_path)]).count("data:image/png") == 7


@pytest.mark.parametrize("older", [False, True], ids=["", "of-an-older-version"])
def test_resumed_steps_stand_once_and_bytes_add_up(tmp_path, older):
    write_island(tmp_path, 0, last=100, ended=False, older=older)
    write_island(tmp_path, 0, first=60, last=90, ended=False, older=older)
    write_island(tmp_path, 0, first=80, last=200, older=older)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "inner_st')
    (island,) = load_run(tmp_path).islands
    assert [line["inner_step"] for line in island.train] == list(range(5, 201, 5))
    assert island.sessions == 3
    rounds = 10 + 3 + 12
    assert island.train[-1]["bytes_sent"] == rounds * ROUND_BYTES
    assert island.train[-1]["compute_s"] == pytest.approx(0.045 * (100 + 30 + 120))
    assert island.train[-1]["wait_s"] == pytest.approx(0.06 * rounds)
    figures = run_figures(load_run(tmp_path))
    assert figures.wan_bytes_sent == figures.wan_bytes_received == (rounds * ROUND_BYTES,)
    for key in ("time_s", "bytes_sent", "bytes_received", "compute_s"):
        values = [line[key] for line in island.train]
        assert values == sorted(values)


@pytest.mark.parametrize("older", [False, True], ids=["", "of-an-older-version"])
def test_a_run_that_began_again_counts_both_beginnings(tmp_path, older):
    write_island(tmp_path, 0, last=50, ended=False, older=older)
    write_island(tmp_path, 0, last=200, older=older)
    assert run_figures(load_run(tmp_path)).wan_bytes_sent == ((5 + 20) * ROUND_BYTES,)


def test_a_stopped_run_that_goes_on_is_not_judged_by_its_old_summary(tmp_path):
    write_island(tmp_path, 0, last=100)
    write_island(tmp_path, 0, first=100, last=200, ended=False)
    figures = run_figures(load_run(tmp_path))
    assert (figures.inner_steps, figures.outer_steps, figures.digests) == (200, 20, (None,))
    assert figures.wan_bytes_sent == (20 * ROUND_BYTES,)


def test_folders_of_islands_of_one_run_are_one_run(folder, tmp_path):
    separate = [tmp_path / name for name in ("A", "B")]
    for index, path in enumerate(separate):
        write_island(path, index)
    (run,) = find_runs(separate)
    figures, together = run_figures(run), run_figures(load_run(folder))
    assert [island.name for island in run.islands] == ["A", "B"]
    assert (figures.islands, figures.tokens, figures.tokens_from) == (2, 2 * 300 * 256, "islands")
    assert figures.data_parallel_bytes == together.data_parallel_bytes
    assert figures.digests_equal is True
    (again,) = find_runs([*separate, separate[0], folder / "island-0" / ".." / ".." / "A"])
    assert len(again.islands) == 2


def test_the_same_run_repeated_is_another_one(tmp_path):
    for repeated in ("first", "second"):
        for index in range(2):
            write_island(tmp_path / repeated / f"island-{index}", index, repeated=repeated)
    runs = find_runs([tmp_path / "first", tmp_path / "second"])
    assert [len(run.islands) for run in runs] == [2, 2]
    mixed = [tmp_path / name / f"island-{index}" for index in range(2) for name in ("first", "second")]
    found = find_runs(mixed)
    assert [[island.path.parent.name for island in run.islands] for run in found] == [
        ["first", "first"],
        ["second", "second"],
    ]


def test_a_copy_of_a_folder_is_not_another_island(folder):
    shutil.copytree(folder / "island-0", folder / "copy")
    assert [len(run.islands) for run in find_runs([folder / "island-0", folder / "copy"])] == [1, 1]


@pytest.mark.parametrize("older", [False, True], ids=["", "of-an-older-version"])
def test_one_folder_tells_what_the_ledger_credits_to_all(tmp_path, older):
    write_island(tmp_path / "A", 0, islands=3, older=older)
    run = load_run(tmp_path / "A")
    figures = run_figures(run)
    assert (figures.islands, figures.tokens, figures.tokens_from) == (3, 3 * 300 * 256, "ledger")
    assert ("islands", "3 (1 with a folder here)") in figure_rows(figures)
    assert ("tokens, all islands, in committed rounds", f"{3 * 300 * 256:,}") in figure_rows(figures)
    assert loss_over_tokens(run)[0].x[-1] == 3 * 300 * 256


def test_a_last_round_alone_does_not_make_data_parallel_free(tmp_path):
    for index in range(2):
        write_island(tmp_path / f"island-{index}", index, alone=290, older=True, ended=index == 0)
    figures = run_figures(load_run(tmp_path))
    together, alone = 28 + 28, 2  # rounds of either island
    share = (together * 0.5) / (together + alone)
    assert figures.mean_islands == pytest.approx(1 / (1 - share))
    assert figures.data_parallel_bytes == pytest.approx(8 * PARAMETERS * 300 * share, abs=1)


def test_a_run_that_diverged_is_marked(tmp_path):
    write_island(tmp_path, 0, diverged=True)
    run = load_run(tmp_path)
    assert figure_rows(run_figures(run))[0][0] == "DIVERGED"
    assert "DIVERGED" in render_page([run])
    write_island(tmp_path / "well", 0)
    assert "DIVERGED" not in render_page([load_run(tmp_path / "well")])


def test_figures_of_the_steps_are_there(folder):
    rows = dict(figure_rows(run_figures(load_run(folder))))
    assert rows["tokens per second"] == "10,000"
    assert rows["gradient norm, last / highest"] == "0.9 / 1.3"
    assert rows["memory of one process, host / device"] == "500.0 MB / -"
    assert not any("MFU" in what for what in rows)


def test_failures_name_the_islands(folder):
    page = render_page([load_run(folder)])
    assert "island-1 left in the transfer" in page
    assert "12D3KooWpeer1aaaa left" not in page


def test_ballots_that_came_to_nothing_are_counted_and_the_last_is_told(folder):
    slow, late = peer_of("peer", 1), "12D3KooWelsewhere"
    ends = [
        {"reason": {"kind": "stalled", "peers": [slow], "seconds": 5.1, "text": "nothing came"}},
        {"reason": {"kind": "votes", "peers": [late], "seconds": 3.0, "text": "no vote"}, "committed": True},
    ]
    for index, count in ((0, 2), (1, 1)):
        path = folder / f"island-{index}" / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        rounds = [line for line in lines if line["kind"] == "round" and line["committed"]]
        for line in rounds[-count:]:
            line["ballots"] = ends[:1]
        rounds[0]["ballots"] = ends[1:]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(folder)
    figures = run_figures(run)
    assert figures.ballots_failed == (("stalled", "island-1", 2),)
    told = "island-1 withheld its part for 5.1 s; formed again with it (outer step 29 of fragment 0, told by "
    assert figures.last_failure.startswith(told)
    rows = dict(figure_rows(figures))
    assert rows["ballots that came to nothing"] == "2 part withheld (island-1)"
    assert rows["the last of these"] == figures.last_failure
    assert json.loads(json.dumps(figures.to_dict()))["ballots_failed"] == [["stalled", "island-1", 2]]
    assert "island-1 withheld its part for 5.1 s" in render_page([run])


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
    assert len(find_runs([folder, tmp_path / "other"])) == 2
    page = render_page([load_run(folder), load_run(tmp_path / "other")])
    assert "2 runs compared" in page
    assert page.count("data:image/png") == 4 + 2 * 7


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


def test_smooth_keeps_a_constant_and_the_length():
    assert smooth(np.full(50, 2.5), 7) == pytest.approx(np.full(50, 2.5))
