"""The published figures, recomputed from the committed logs.

`python docs/results/tables.py` rewrites what stands between the markers in README.md (a picture and a few
rows) and in docs/results/README.md (all tables, by question); a test checks that both are what the logs give.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import corpus_tables
import front_page
import learning_tables
import long_tables
import wan_tables
from lowcomm.bench.churn_figures import Churn, Units
from lowcomm.bench.deaths import Death
from lowcomm.bench.donors import Donors
from lowcomm.bench.settings import ChurnBench, DonorBench
from lowcomm.bench.snapshots import Cut
from parts import Part, anchor, table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
SHOWN_STEPS = 5
"""The first ones of a trajectory, and then every so many."""


def tables(results: Path) -> str:
    """All tables as Markdown, from the logs in `results`, by question; a log that isn't there has "
    "no table."""
    questions, asked = [], []
    for question, makers in _questions().items():
        found = []
        for pattern, make in makers:
            paths = sorted(results.glob(pattern))
            part = make(*paths) if paths else None
            if part is not None:
                found.append(part.text(paths))
        if found:
            asked.append(f"- [{question}](#{anchor(question)})")
            questions.append("\n\n".join([f"## {question}", *found]))
    return "\n\n".join(["\n".join(asked), *questions])


def _questions() -> dict[str, list[tuple[str, Callable[..., Part | None]]]]:
    """Question -> the logs that answer it, and what makes a table of each."""
    learning, wan = learning_tables, wan_tables
    return {
        "Does it learn as well as data-parallel training?": [
            ("quickstart.json", learning.quickstart),
            ("learning.jsonl", learning.learning),
            ("words.jsonl", learning.words),
            ("short_runs.jsonl", learning.short_runs),
            ("adamw_sweep.jsonl", learning.sweep),
            ("muon_sweep.jsonl", learning.sweep),
        ],
        "How few bytes will do?": [
            ("few_bytes.jsonl", learning.few_bytes),
            ("codecs_learning.jsonl", learning.codecs_learning),
            ("wan.json", wan.counted),
        ],
        "How fast is a round?": [
            ("round_*.json", _rounds),
            ("torchft.json", front_page.torchft),
            ("wan.json", wan.rounds),
            ("wan.json", wan.heartbeats),
        ],
        "Does training stand still?": [
            ("wan.json", wan.utilisation),
            ("streaming.jsonl", learning.streaming),
            ("overhead_*.json", _overhead),
            ("speeds_*.json", _speeds),
            ("checkpoint.json", _checkpoint),
        ],
        "What happens when islands die, come and go?": [
            ("deaths.json", _deaths),
            ("churn.json", _churn),
            ("snapshot.json", _snapshot),
            ("donors.json", _donors),
            ("chaos_*.json", _chaos),
            ("gate_*.json", long_tables.gates),
        ],
        "What does a large swarm cost?": [("scale_*.json", long_tables.scales)],
        "May islands be unlike?": [("engines.json", _engines)],
        "How fast are codecs?": [("codecs.json", _codecs)],
        "How fast is a corpus made, and read?": [
            ("corpus_making.json", corpus_tables.making),
            ("reading.json", corpus_tables.reading),
        ],
        "How does it begin?": [("first_hour.json", _first_hour)],
        "How well is it tested?": [
            ("model_checker.json", _model_checker),
            ("search.jsonl", long_tables.searches),
            ("soak_*.json", long_tables.soaks),
            ("before_after.jsonl", long_tables.versions),
            ("fuzz.json", _fuzz),
            ("default_runs.jsonl", _default_runs),
        ],
    }


def with_tables(page: str, text: str) -> str:
    """`page` with `text` between the markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def _rounds(*paths: Path) -> Part:
    rows = [
        (
            one["who"],
            str(one["peers"]),
            f"{one['payload_mb']:g} MB",
            f"{one['median_s']:.3f} s",
            f"{one['fastest_s']:.3f} .. {one['slowest_s']:.3f} s",
            f"{one['bit_identical']} of {one['rounds']}",
        )
        for path in paths
        for one in json.loads(path.read_text(encoding="utf-8"))["rounds"]
    ]
    headings = ("who", "peers", "fp32 payload", "median round", "fastest .. slowest", "bit-identical rounds")
    return Part(
        "Rounds on loopback",
        "Rounds form several times faster than those of stock hivemind, and all peers end with the "
        "same bits; with "
        "a large payload the processors are the limit, for both.",
        "One machine, stock hivemind in the same minutes (`lowcomm bench round --stock`)",
        table(headings, rows),
    )


def _codecs(path: Path) -> Part:
    log = json.loads(path.read_text(encoding="utf-8"))
    copy = float(log["copy_gb_s"])
    rows = [
        (
            one["name"],
            "on" if one["error_feedback"] else "off",
            f"{one['bits_per_parameter']:.3f}",
            f"{one['relative_error']:.4f}",
            f"{one['encode_gb_s'] / copy:.2f}",
            f"{one['decode_gb_s'] / copy:.2f}",
        )
        for one in log["codecs"]
    ]
    headings = ("codec", "error feedback", "bits per parameter", "relative error", "encode", "decode")
    slowest = min(min(one["encode_gb_s"], one["decode_gb_s"]) for one in log["codecs"])
    return Part(
        "Speed and error of codecs",
        f"The slowest one works at {slowest:.1f} GB/s of fp32 numbers in one thread, more than a WAN "
        "carries.",
        f"{log['parameters']:,} real pseudo-gradients, one thread; speeds against `copy_` of "
        f"{copy:.1f} GB/s; "
        f"hivemind's uniform 8-bit encodes at {log['hivemind_uniform8_gb_s'] / copy:.2f} (`lowcomm "
        "bench codecs`)",
        table(headings, rows),
    )


def _overhead(*paths: Path) -> Part:
    runs = [json.loads(path.read_text(encoding="utf-8"))["overhead"] for path in paths]
    rows = []
    for run in runs:
        low, high = run["difference_interval_percent"]
        near_low, near_high = run["neighbours_interval_percent"]
        rows.append(
            (
                run["engine"],
                str(run["ranks"]),
                f"{run['step_s'] * 1e3:.0f} ms",
                f"{run['difference_percent']:+.1f} % ({low:+.1f} .. {high:+.1f} %)",
                f"{run['neighbours_percent']:+.2f} % ({near_low:+.2f} .. {near_high:+.2f} %)",
                f"{run['call_s'] * 1e6:.0f} us = {run['call_percent']:.2f} %",
                f"{run['threads_s'] * 1e6:.0f} us = {run['threads_percent']:.2f} %",
            )
        )
    headings = (
        "engine",
        "ranks",
        "inner step",
        "step with `OuterLoop` against bare, median of pairs (95 % interval)",
        "one step with the call against its neighbour without",
        "counted: the call",
        "counted: processor time of its threads",
    )
    size = f"{runs[0]['parameters']:,} parameters, AdamW, a thread per rank"
    return Part(
        "Overhead between rounds",
        "Between rounds the loop costs a fraction of a percent of a step.",
        f"{size} (`lowcomm bench overhead`)",
        table(headings, rows),
    )


def _checkpoint(path: Path) -> Part:
    run = json.loads(path.read_text(encoding="utf-8"))["checkpoint"]
    headings = (
        "checkpoint",
        "inner step",
        "training stands still (longest)",
        "whole after",
        "inner step meanwhile (longest)",
        "where training waits for the disk",
    )
    row = (
        f"{run['checkpoint_bytes'] / 1e6:.0f} MB",
        f"{run['step_s']:.2f} s",
        f"{run['stall_s']:.2f} s ({run['stall_longest_s']:.2f} s)",
        f"{run['written_s']:.2f} s",
        f"{run['beside_s']:.2f} s ({run['beside_longest_s']:.2f} s)",
        f"{run['waiting_s']:.2f} s",
    )
    threads = f"{run['threads']} thread{'s' if run['threads'] > 1 else ''}"
    return Part(
        "Checkpoints",
        "A checkpoint is copied and written beside the next steps.",
        f"{run['parameters']:,} parameters, AdamW, {threads}, {run['saves']} saves each way "
        "(`lowcomm bench checkpoint`)",
        table(headings, [row]),
    )


def _speeds(*paths: Path) -> Part:
    runs = [json.loads(path.read_text(encoding="utf-8"))["speeds"] for path in paths]
    bench, modes = runs[0]["bench"], ("fixed", "matched")

    def by_seed(texts: Iterable[str]) -> str:
        return ", ".join(texts)

    def losses(kind: str) -> tuple[str, str]:
        pairs = [run[kind]["loss"] for run in runs]
        fixed, matched = (by_seed(f"{pair[mode]:.4f}" for pair in pairs) for mode in modes)
        changes = by_seed(f"{pair['matched'] / pair['fixed'] - 1:+.1%}" for pair in pairs)
        return fixed, f"{matched} ({changes})"

    rows = [
        (
            f"idle share of the island with {1e3 * step_s:.0f} ms steps",
            *(by_seed(f"{run['idle_share'][mode][island]:.1%}" for run in runs) for mode in modes),
        )
        for island, step_s in enumerate(bench["steps_s"])
    ]
    rows += [
        (
            "inner steps between rounds, by island",
            *(
                ", ".join(f"{statistics.median(steps):g}" for steps in runs[0]["intervals"][mode])
                for mode in modes
            ),
        ),
        (
            "loss after " + by_seed(f"{run['equal_time']['seconds']:.0f} s" for run in runs),
            *losses("equal_time"),
        ),
        (
            f"loss after {runs[0]['equal_tokens']['tokens']:,} tokens of all islands",
            *losses("equal_tokens"),
        ),
        (
            f"rounds until an island that slows down {bench['slow_by']:g} times is followed",
            "not run",
            by_seed(str(run["followed_after_rounds"]) for run in runs),
        ),
    ]
    equal = "equal" if all(all(run["equal_digests"].values()) for run in runs) else "NOT equal"
    return Part(
        "Islands of unlike speed",
        "With `matched` intervals fast islands train on where they would wait for slow ones, and the "
        "loss after "
        "equal time is lower.",
        f"H = {bench['inner_steps']}, small GPT, by seed, outer states {equal} on all (`lowcomm bench "
        "speeds`)",
        table(("", "fixed", "matched"), rows),
    )


def _engines(path: Path) -> Part:
    one = json.loads(path.read_text(encoding="utf-8"))["engines"]
    plain, *others = one["plain_losses"].values()
    apart = zip(one["losses"], plain, one["losses_apart"], one["anchors_apart"], strict=True)
    rows = [
        (str(step), f"{loss:.4f}", f"{alike:.4f}", f"{losses:.1e}", f"{anchors:.1e}")
        for step, (loss, alike, losses, anchors) in enumerate(apart, 1)
        if step <= SHOWN_STEPS or step % SHOWN_STEPS == 0
    ]
    last = ", ".join(f"{losses[-1]:.4f}" for losses in others)
    headings = ("outer step", "loss", "of plain islands", "losses apart", "anchors apart")
    return Part(
        "Unlike engines in one run",
        "Sharded and plain islands train one model as plain ones do, up to rounding that grows as any small "
        "difference does.",
        f"{', '.join(one['islands'])}, against three plain ones on the same data, {one['codec']}, H = "
        f"{one['bench']['inner_steps']}; outer states equal on all islands after {one['equal_digests']} of "
        f"{len(plain)} outer steps; other seeds of plain islands end with {last} (`lowcomm bench engines`)",
        table(headings, rows),
    )


def _snapshot(path: Path) -> Part:
    one = json.loads(path.read_text(encoding="utf-8"))["snapshot"]
    cuts = [Cut(**{key: value for key, value in cut.items() if key != "ratio"}) for cut in one["cuts"]]
    return Part(
        "A snapshot that is cut",
        "A joiner that dies in the middle of a download, or whose donor does, goes on with what it has.",
        f"{one['donors']} donors (`lowcomm bench snapshot`)",
        table(Cut.HEADINGS, [cut.row() for cut in cuts]),
    )


def _deaths(path: Path) -> Part:
    log = json.loads(path.read_text(encoding="utf-8"))["deaths"]
    return Part(
        "An island dies in a round",
        "The others commit without it, whichever part it had, and lose no inner step.",
        "One of three islands stops when it has sent a part, each reduces a third "
        f"(`lowcomm bench deaths`; deadline {log['bench']['deadline_s']:g} s)",
        table(Death.HEADINGS, [Death(**one).row() for one in log["deaths"]]),
    )


def _churn(path: Path) -> Part:
    log = json.loads(path.read_text(encoding="utf-8"))["churn"]
    bench = ChurnBench(**log["bench"])
    told = {**log, "bench": bench, "units": Units(**log["units"])}
    churn = Churn(**{key: value for key, value in told.items() if key != "within"})
    return Part(
        "Joins and leaves",
        "Who is alive takes part, and who comes is in by its third round; each sample is credited once.",
        f"At most {bench.islands} islands, {bench.events} joins and leaves (`lowcomm bench churn`)",
        table(Churn.HEADINGS, churn.rows()),
    )


def _donors(path: Path) -> Part:
    log = json.loads(path.read_text(encoding="utf-8"))["donors"]
    bench = DonorBench(**log["bench"])
    donors = Donors(**{**{key: value for key, value in log.items() if key != "slower"}, "bench": bench})
    return Part(
        "Donors train on",
        "Islands that hand their state to a newcomer hardly slow down.",
        "Islands that train while another one takes a snapshot from them (`lowcomm bench donors`)",
        table(Donors.HEADINGS, [donors.row()]),
    )


def _chaos(*paths: Path) -> Part:
    rows = []
    for path in paths:
        log = json.loads(path.read_text(encoding="utf-8"))
        held = sum(verdict is True for verdict in log["invariants"].values())
        rows.append(
            (
                path.stem.rpartition("_seed")[2],
                str(len(log["faults"])),
                f"{held} of {len(log['invariants'])}",
                f"{log['rounds_committed']:,}",
                f"{log['participation']:.1%}",
                f"{log['tokens_credited']:,} + {log['tokens_dropped']:,} = {log['tokens_trained']:,}",
                f"{log['eval_loss']:.4f}",
                f"{log['eval_loss'] / log['fault_free_eval_loss'] - 1:+.2%}",
            )
        )
    headings = (
        "seed", "faults", "invariants that held", "rounds", "live islands in a round",
        "tokens credited + dropped = trained", "eval loss", "against fault-free, equal tokens",
    )  # fmt: skip
    return Part(
        "Chaos",
        "Under faults of processes and of the network every invariant holds, every token is "
        "accounted for, and the "
        "loss is about that of a run without faults.",
        "Four real islands and the network between them, broken in many ways (`lowcomm chaos`)",
        table(headings, rows),
    )


def _first_hour(path: Path) -> Part:
    log = json.loads(path.read_text(encoding="utf-8"))
    shown = [look["console"] for look in log["seconds"]]
    still = longest = 1
    for before, after in pairwise(shown):
        still = still + 1 if before == after else 1
        longest = max(longest, still)
    every_s = log["seconds"][0]["s"]
    rows = [
        ("typed", "; ".join(f"`{command}`" for command in log["commands"])),
        ("minutes until the first committed round", f"{log['first_round_s'] / 60:.1f}"),
        ("minutes until the report", f"{log['ended_s'] / 60:.1f}, exit code {log['exit_code']}"),
        ("longest time in which the console shows nothing new", f"under {longest * every_s} s"),
    ]
    return Part(
        "From a fresh clone",
        f"One command does all; the log has the last lines of the console at every {every_s} s.",
        f"{log['machine']}, empty pip cache, load {log['load_before']} before it began (`python3 "
        f"docs/results/first_hour.py`, version {log['commit']})",
        table(("first hour", ""), rows),
    )


def _model_checker(path: Path) -> Part:
    runs = json.loads(path.read_text(encoding="utf-8"))
    budgets = ("losses", "crashes", "rollbacks", "cuts", "slow", "deadlines")
    rows = [
        (
            f"{run['islands']}, {run['outer_steps']}, {run['partition']}",
            ", ".join(f"{run[name]} {name}" for name in budgets if run[name]),
            "any" if run["delays"] is None else f"{run['delays']} delays",
            f"{run['walks']:,} random walks" if run["walks"] else "all" if run["whole"] else "the nearest",
            f"{run['states']:,}",
            str(run["depth"]),
            f"{run['settled']:,}",
            str(len(run["broken"])),
        )
        for run in runs
    ]
    states = sum(run["states"] for run in runs)
    return Part(
        "The round machine under all orders of events",
        "No order of deliveries, losses, crashes and restarts within these budgets breaks a promise; with "
        "three islands and more, and several faults, only a part of all orders was visited.",
        f"{states:,} states of the machine that ships; a fair schedule was tried from every so many "
        "(`python -m lowcomm.sim.checker --published`)",
        table(
            (
                "islands, outer steps, mode", "faults", "order", "visited", "states", "events deep",
                "fair schedules", "broken promises",
            ),
            rows,
        ),
    )  # fmt: skip


def _fuzz(path: Path) -> Part:
    log = json.loads(path.read_text(encoding="utf-8"))
    return Part(
        "Damaged messages",
        "Every decoder of bytes from the network refuses what is damaged by a named error, and does "
        "nothing else.",
        f"{log['inputs']:,} inputs, {len(log['decoders'])} decoders, {log['refused']:,} refused by a "
        "named error, "
        f"{log['other_errors']:,} that raised anything else (`python -m tests.fuzz.decoders`)",
        "",
    )


def _default_runs(path: Path) -> Part:
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    green = sum(run["exit_code"] == 0 for run in runs)
    seconds = sorted(run["seconds"] for run in runs)
    return Part(
        "The default test run",
        "The tests give the same answer each time.",
        f"{len(runs)} times in a row: {green} green, {runs[0]['passed']:,} tests each, {seconds[0]} to "
        f"{seconds[-1]} s, median {statistics.median(seconds):.0f} s",
        "",
    )


PAGES: dict[Path, Callable[[Path], str]] = {
    ROOT / "README.md": front_page.front_page,
    RESULTS / "README.md": tables,
}
"""Page -> what makes its part between the markers from the logs."""


def main() -> None:
    """Rewrite the pages that are not what the logs give."""
    for page, make in PAGES.items():
        text = page.read_text(encoding="utf-8")
        if (current := with_tables(text, make(RESULTS))) != text:
            page.write_text(current, encoding="utf-8")


if __name__ == "__main__":
    main()
