"""The combined view of several islands follows their metrics files."""

import io
from pathlib import Path

from rich.console import Console

from lowcomm.cli.watch import IslandView, LineView, LiveView, island_table
from lowcomm.metrics.jsonl import JsonLinesSink
from tests.clocks import HandClock
from tests.report.make_runs import write_island


def test_only_what_is_added_counts(tmp_path):
    write_island(tmp_path / "island-0", 0, last=50, failed=(20,), ended=False)
    view = IslandView(tmp_path / "island-0")
    assert view.refresh() is False
    assert (view.state, view.line, view.failed) == ("starting", {}, 0)
    write_island(tmp_path / "island-0", 0, first=50, last=100, failed=(60, 70))
    assert view.refresh() is True
    assert (view.state, view.line["inner_step"], view.failed) == ("training", 100, 2)


def test_a_torn_line_of_an_earlier_session_is_passed_over(tmp_path):
    folder = tmp_path / "island-0"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "in')
    view = IslandView(folder)
    sink = JsonLinesSink(folder / "metrics.jsonl")
    sink.log({"kind": "start", "run_id": "r"})
    sink.close()
    view.refresh()
    assert view.state == "training"


def test_line_view_says_states_and_figures(tmp_path):
    out, clock = io.StringIO(), HandClock(100.0)
    views = [IslandView(tmp_path / f"island-{index}") for index in range(2)]
    shown = LineView(100, clock, out)
    shown.show(views)
    for index, view in enumerate(views):
        write_island(tmp_path / f"island-{index}", index, last=100)
        view.refresh()
    clock.now_s += 10
    shown.show(views)
    shown.show(views)
    views[1].ended(-9)
    shown.show(views)
    lines = out.getvalue().splitlines()
    assert [line.split("] ")[1] for line in lines[:2]] == ["island-0: starting", "island-1: starting"]
    assert sum("island-1 step 100/100" in line for line in lines) == 1
    assert "island-1: failed (-9)" in lines[-1]


def test_live_view_draws_a_table(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=140)
    write_island(tmp_path / "island-0", 0, last=10)
    view = IslandView(tmp_path / "missing")
    full = IslandView(tmp_path / "island-0")
    full.state = "training"
    write_island(tmp_path / "island-0", 0, first=10, last=100)
    full.refresh()
    live = LiveView(100, HandClock(100.0), console)
    live.show([view, full])
    live.close()
    assert "100/100" in out.getvalue()
    assert "starting" in out.getvalue()


def test_the_table_fits_a_terminal_of_80_columns():
    view = IslandView(Path("island-0"))
    view.state = "training"
    view.line = {
        "inner_step": 2330, "outer_step": 77, "loss": 1.021, "tokens_per_s": 12_279.0, "peers": 2,
        "bytes_sent": 81_400_000, "compute_s": 97.0, "wait_s": 3.0, "transfer_s": 1.0,
    }  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=80).print(island_table([view], 2400))
    assert all(figure in out.getvalue() for figure in ("island-0", "2,330/2,400", "12,279", "81.4 MB", "1 %"))


def test_an_island_that_diverged_is_shown_so(tmp_path):
    view = IslandView(tmp_path / "island-0")
    write_island(tmp_path / "island-0", 0, last=20, diverged=True, name="north")
    view.refresh()
    view.ended(1)
    assert (view.name, view.state) == ("north", "DIVERGED")
    write_island(tmp_path / "island-0", 0, first=20, last=40, ended=False)
    view.refresh()
    view.ended(1)
    assert view.state == "failed (1)"


def test_an_island_that_starts_says_what_it_does(tmp_path):
    folder = tmp_path / "island-0"
    folder.mkdir()
    view = IslandView(folder)
    view.refresh()
    assert view.state == "starting"
    (folder / "phase").write_text("reading the text\n")
    view.refresh()
    assert view.state == "reading the text"
    write_island(folder, 0, last=10)
    view.refresh()
    assert view.state == "training"
    view.refresh()
    assert view.state == "training"
