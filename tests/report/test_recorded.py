"""Figures of real runs that were stopped, killed and resumed, against what their processes sent.

tests/report/record_runs.py recorded them; truth-N.jsonl has each process's own traffic, from its exchange.
"""

import json
from pathlib import Path

import pytest

from lowcomm.metrics.summary import data_parallel_bytes
from lowcomm.report import find_runs, load_run, run_figures
from tests.report.make_runs import write_island

RECORDED = Path(__file__).parent / "recorded"
STORIES = sorted(path.name for path in RECORDED.iterdir())


def sent_and_received(story: str, number: int) -> tuple[int, int]:
    """Over all processes of an island, as their exchanges counted it."""
    of_process: dict[int, tuple[int, int]] = {}
    for line in (RECORDED / story / f"truth-{number}.jsonl").read_text().splitlines():
        process, _, _, sent, received = json.loads(line)
        of_process[process] = sent, received
    return sum(sent for sent, _ in of_process.values()), sum(received for _, received in of_process.values())


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("story", STORIES)
def test_bytes_are_what_the_processes_sent(story):
    figures = run_figures(load_run(RECORDED / story))
    truth = [sent_and_received(story, number) for number in range(2)]
    assert min(sent for sent, _ in truth) > 50_000
    # a process still sends a few hundred bytes, to say goodbye, after it has counted them for the last time
    assert figures.wan_bytes_sent == pytest.approx([sent for sent, _ in truth], rel=0.005)
    assert figures.wan_bytes_received == pytest.approx([received for _, received in truth], rel=0.005)


@pytest.mark.parametrize("story", STORIES)
def test_times_are_those_of_all_sessions(story):
    for island in load_run(RECORDED / story).islands:
        own = dict.fromkeys(("compute_s", "wait_s", "transfer_s"), 0.0)
        sessions: list[list[dict]] = []
        for line in lines_of(island.path):
            if line["kind"] == "start":
                sessions.append([])
            sessions[-1].append(line)
        assert island.sessions == len(sessions)
        assert island.wall_s == pytest.approx(sum(max(line["time_s"] for line in s) for s in sessions))
        for session in sessions:
            trained = [line for line in session if line["kind"] == "train"]
            for key in own:
                own[key] += trained[-1][key] - session[0]["counts"][key] if trained else 0.0
        last = island.train[-1]
        for key in own:  # a session that was stopped has spent a little after its last line
            assert own[key] - 1e-3 <= last[key] <= 1.05 * own[key] + 0.01


@pytest.mark.parametrize("story", STORIES)
def test_summary_and_report_say_the_same(story):
    run = load_run(RECORDED / story)
    figures = run_figures(run)
    for island, sent in zip(run.islands, figures.wan_bytes_sent, strict=True):
        summary = json.loads((island.path / "summary.json").read_text())
        assert (summary["wan_bytes_sent"], summary["inner_steps"]) == (sent, island.train[-1]["inner_step"])
        of_one = run_figures(load_run(island.path))
        assert of_one.data_parallel_bytes == summary["data_parallel_bytes"]
        assert of_one.tokens == summary["swarm_tokens"]
        steps = summary["inner_steps"]
        assert summary["data_parallel_bytes"] == data_parallel_bytes(
            summary["mean_islands"], summary["parameters"], steps
        )


def test_an_island_left_alone_still_had_company():
    run = load_run(RECORDED / "left_alone")
    alone, left = sorted(run.islands, key=lambda island: island.path)
    assert len(alone.rounds[-1]["participants"]) == 1
    assert alone.summary["mean_islands"] == pytest.approx(4 / 3)  # half of its rounds were shared
    assert left.summary["mean_islands"] == 2
    assert alone.summary["islands"] == left.summary["islands"] == 2
    assert run_figures(load_run(alone.path)).data_parallel_bytes > 0
    assert run_figures(load_run(RECORDED / "left_alone")).digests_equal is None  # of other outer steps


@pytest.mark.parametrize("story", STORIES)
def test_the_folders_of_two_islands_are_one_run(story):
    (run,) = find_runs([RECORDED / story / f"island-{number}" for number in range(2)])
    assert (len(run.islands), run.complete) == (2, True)
    others = [other for other in STORIES if other != story]
    assert len(find_runs([RECORDED / story, *(RECORDED / other for other in others)])) == len(STORIES)


def test_islands_of_the_same_name_are_told_apart():
    """Both were called by their host's name."""
    first, second = load_run(RECORDED / "left_alone").islands
    assert first.start["name"] == second.start["name"]
    assert {first.name, second.name} == {f"{first.start['name']} (island-{number})" for number in range(2)}


def test_made_lines_are_like_recorded_ones(tmp_path):
    write_island(tmp_path / "island-0", 0)
    fields = {}
    for folder in (tmp_path / "island-0", RECORDED / "left_alone" / "island-0"):
        kinds = {line["kind"]: line for line in lines_of(folder)}
        fields[folder.name, folder.parent.name] = {
            kind: (sorted(line), sorted(line.get("summary", {})), sorted(line.get("counts", {})))
            for kind, line in kinds.items()
        }
    made, recorded = fields.values()
    assert made == recorded
