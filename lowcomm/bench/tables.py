"""The published figures, recomputed from the committed logs.

`python -m lowcomm.bench.tables` rewrites the tables between the markers in README.md and
docs/results/README.md; a test checks that they are what the logs give.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lowcomm.bench.churn_figures import Churn, ChurnBench
from lowcomm.bench.codecs_learning import REFERENCE, costs
from lowcomm.bench.deaths import Death
from lowcomm.bench.donors import DonorBench, Donors
from lowcomm.bench.learning import read_log
from lowcomm.bench.markdown import table
from lowcomm.bench.snapshots import Cut
from lowcomm.bench.wan_tables import wan_tables

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
ROOT = Path(__file__).parents[2]
SHOWN_STEPS = 5
"""The first ones of a trajectory, and then every so many."""
PAGES = (ROOT / "README.md", ROOT / "docs" / "results" / "README.md")


def tables(results: Path) -> str:
    """All tables as Markdown, from the logs in `results`; a log that isn't there has no table."""
    makers: dict[str, Callable[..., str]] = {
        "quickstart.json": _quickstart,
        "learning.jsonl": _learning,
        "few_bytes.jsonl": _few_bytes,
        "adamw_sweep.jsonl": _sweep,
        "muon_sweep.jsonl": _sweep,
        "codecs_learning.jsonl": _codecs_learning,
        "streaming.jsonl": _streaming,
        "round_*.json": _rounds,
        "wan.json": wan_tables,
        "codecs.json": _codecs,
        "overhead_*.json": _overhead,
        "speeds_*.json": _speeds,
        "engines.json": _engines,
        "snapshot.json": _snapshot,
        "deaths.json": _deaths,
        "churn.json": _churn,
        "donors.json": _donors,
        "chaos_*.json": _chaos,
        "fuzz.json": _fuzz,
        "default_runs.jsonl": _default_runs,
    }
    logs = [(make, sorted(results.glob(pattern))) for pattern, make in makers.items()]
    parts = [make(*paths) for make, paths in logs if paths]
    return "\n\n".join(parts)


def with_tables(page: str, text: str) -> str:
    """`page` with `text` between the markers."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def _quickstart(path: Path) -> str:
    figures = json.loads(path.read_text(encoding="utf-8"))
    sent, baseline = max(figures["wan_bytes_sent"]), figures["baseline_eval_loss"]
    gap = f" ({figures['eval_loss'] / baseline - 1:+.1%})" if baseline else ""
    rows = [
        (
            "islands, inner steps, outer steps",
            f"{figures['islands']}, {figures['inner_steps']}, {figures['outer_steps']}",
        ),
        ("tokens, all islands", f"{figures['tokens']:,}"),
        ("loss on held-out text, nats per byte", f"{figures['eval_loss']:.4f}{gap}"),
        ("loss of data-parallel at equal tokens", f"{baseline:.4f}" if baseline else "not run"),
        ("bytes sent per island", f"{sent / 1e6:.1f} MB"),
        ("bytes that data-parallel would have sent", f"{figures['data_parallel_bytes'] / 1e9:.2f} GB"),
        ("times fewer bytes", f"{figures['data_parallel_bytes'] / sent:.0f}"),
        ("outer states equal, bit for bit", "yes" if len(set(figures["digests"])) == 1 else "no"),
        ("wall time", f"{figures['wall_s']:.0f} s"),
    ]
    return "`lowcomm quickstart --baseline` (2 cores, 1 seed):\n\n" + table(("quickstart", ""), rows)


def _learning(path: Path) -> str:
    heading = "Learning, 1M parameters, int8 (`lowcomm bench learning`)"
    return f"{heading}:\n\n" + _runs(path)


def _few_bytes(path: Path) -> str:
    heading = (
        "Thousands of times fewer bytes: 2-bit pseudo-gradients with error feedback, every 150 steps "
        "(`lowcomm bench learning recipes/studies/few_bytes.toml`)"
    )
    return f"{heading}:\n\n" + _runs(path)


def _sweep(path: Path) -> str:
    name = path.stem.removesuffix("_sweep").replace("adamw", "AdamW").replace("muon", "Muon")
    rows = [(str(line["name"]), f"{line['eval_loss']:.4f}") for line in read_log(path)]
    heading = (
        f"How {name} inside was tuned: 1,000 steps, one seed, outer lr and momentum after the word outer "
        f"(`lowcomm bench learning recipes/studies/{path.stem}.toml`)"
    )
    return f"{heading}:\n\n" + table(("run", "eval loss"), rows)


def _runs(path: Path) -> str:
    """Each run of a study over its seeds, against the data-parallel run of the same name."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in read_log(path):
        by_name.setdefault(str(line["name"]), []).append(line)
    rows = []
    for name, lines in sorted(by_name.items()):
        losses = {int(line["seed"]): float(line["eval_loss"]) for line in lines}
        optimizer = name.split(",")[0]
        reference = name.replace(name.split(", ")[1], f"data-parallel of {lines[0]['islands']}", 1)
        gaps = [
            losses[int(line["seed"])] / float(line["eval_loss"]) - 1
            for line in by_name.get(reference, [])
            if int(line["seed"]) in losses and lines[0]["kind"] == "islands"
        ]
        rows.append(
            (
                optimizer,
                name.removeprefix(f"{optimizer}, "),
                ", ".join(f"{loss:.4f}" for _, loss in sorted(losses.items())),
                f"{statistics.fmean(losses.values()):.4f}",
                ", ".join(f"{gap:+.1%}" for gap in gaps) or "-",
                f"{int(lines[0]['tokens']):,}",
                *(
                    (str(lines[0]["outer_steps"]), f"{lines[0]['data_parallel_bytes'] / sent:.0f}")
                    if (sent := max(lines[0].get("bytes_sent", [0])))
                    else ("-", "-")
                ),
            )
        )
    headings = (
        "inner",
        "run",
        "eval loss, by seed",
        "mean",
        "against data-parallel, by seed",
        "tokens",
        "outer steps",
        "times fewer bytes",
    )
    return table(headings, rows)


def _codecs_learning(path: Path) -> str:
    return _costs(
        "What compression costs in loss: AdamW, four islands, 300 outer steps of 5 "
        "(`lowcomm bench learning recipes/studies/codecs.toml`; plot: docs/img/codecs_learning.png)",
        path,
    )


def _streaming(path: Path) -> str:
    return _costs(
        "What overlap costs in loss: Muon, four islands, 50 outer steps of 30, streaming in 4 fragments "
        "(`lowcomm bench learning recipes/studies/streaming.toml`)",
        path,
    )


def _costs(heading: str, path: Path) -> str:
    rows = [
        (
            cost.name,
            ", ".join(f"{loss:.4f}" for _, loss in sorted(cost.losses.items())),
            "-" if cost.name == REFERENCE else ", ".join(f"{gap:+.1%}" for gap in cost.gaps),
            f"{cost.sent_bytes / 1e6:.1f} MB",
        )
        for cost in costs(path)
    ]
    headings = ("exchange", "eval loss, by seed", "against fp32, by seed", "sent by each island")
    return f"{heading}:\n\n" + table(headings, rows)


def _rounds(*paths: Path) -> str:
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
    return "Rounds on loopback (`lowcomm bench round --stock`):\n\n" + table(headings, rows)


def _codecs(path: Path) -> str:
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
    heading = (
        f"Codecs on {log['parameters']:,} real pseudo-gradients, one thread; speeds against `copy_` of "
        f"{copy:.1f} GB/s; hivemind's uniform 8-bit encodes at {log['hivemind_uniform8_gb_s'] / copy:.2f} "
        "(`lowcomm bench codecs`)"
    )
    return f"{heading}:\n\n" + table(headings, rows)


def _overhead(*paths: Path) -> str:
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
    heading = f"Overhead between rounds, {size} (`lowcomm bench overhead`):"
    return f"{heading}\n\n" + table(headings, rows)


def _speeds(*paths: Path) -> str:
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
    heading = (
        f"Islands of unlike speed, H = {bench['inner_steps']}, small GPT, by seed, outer states {equal} on "
        "all (`lowcomm bench speeds`)"
    )
    return f"{heading}:\n\n" + table(("", "fixed", "matched"), rows)


def _engines(path: Path) -> str:
    one = json.loads(path.read_text(encoding="utf-8"))["engines"]
    plain, *others = one["plain_losses"].values()
    apart = zip(one["losses"], plain, one["losses_apart"], one["anchors_apart"], strict=True)
    rows = [
        (str(step), f"{loss:.4f}", f"{alike:.4f}", f"{losses:.1e}", f"{anchors:.1e}")
        for step, (loss, alike, losses, anchors) in enumerate(apart, 1)
        if step <= SHOWN_STEPS or step % SHOWN_STEPS == 0
    ]
    last = ", ".join(f"{losses[-1]:.4f}" for losses in others)
    heading = (
        f"Unlike engines in one run ({', '.join(one['islands'])}) against three plain ones on the same data, "
        f"{one['codec']}, H = {one['bench']['inner_steps']}; outer states equal on all islands after "
        f"{one['equal_digests']} of {len(plain)} outer steps; other seeds of plain islands end with {last} "
        "(`lowcomm bench engines`)"
    )
    headings = ("outer step", "loss", "of plain islands", "losses apart", "anchors apart")
    return f"{heading}:\n\n" + table(headings, rows)


def _snapshot(path: Path) -> str:
    one = json.loads(path.read_text(encoding="utf-8"))["snapshot"]
    cuts = [Cut(**{key: value for key, value in cut.items() if key != "ratio"}) for cut in one["cuts"]]
    heading = f"A snapshot from {one['donors']} donors that is cut (`lowcomm bench snapshot`)"
    return f"{heading}:\n\n" + table(Cut.HEADINGS, [cut.row() for cut in cuts])


def _deaths(path: Path) -> str:
    log = json.loads(path.read_text(encoding="utf-8"))["deaths"]
    heading = (
        "One of three islands stops in the middle of a round; each reduces a third "
        f"(`lowcomm bench deaths`; deadline {log['bench']['deadline_s']:g} s)"
    )
    return f"{heading}:\n\n" + table(Death.HEADINGS, [Death(**one).row() for one in log["deaths"]])


def _churn(path: Path) -> str:
    log = json.loads(path.read_text(encoding="utf-8"))["churn"]
    bench = ChurnBench(**log["bench"])
    churn = Churn(**{**{key: value for key, value in log.items() if key != "within"}, "bench": bench})
    heading = f"At most {bench.islands} islands, {bench.events} joins and leaves (`lowcomm bench churn`)"
    return f"{heading}:\n\n{table(Churn.HEADINGS, churn.rows())}"


def _donors(path: Path) -> str:
    log = json.loads(path.read_text(encoding="utf-8"))["donors"]
    bench = DonorBench(**log["bench"])
    donors = Donors(**{**{key: value for key, value in log.items() if key != "slower"}, "bench": bench})
    heading = "Islands that train while another one takes a snapshot from them (`lowcomm bench donors`)"
    return f"{heading}:\n\n{table(Donors.HEADINGS, [donors.row()])}"


def _chaos(*paths: Path) -> str:
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
    heading = "Four real islands and the network between them, broken in many ways (`lowcomm chaos`)"
    return f"{heading}:\n\n{table(headings, rows)}"


def _fuzz(path: Path) -> str:
    log = json.loads(path.read_text(encoding="utf-8"))
    return (
        "Damaged messages into every decoder of bytes from the network (`python -m tests.fuzz.decoders`): "
        f"{log['inputs']:,} inputs, {len(log['decoders'])} decoders, {log['refused']:,} refused by a named "
        f"error, {log['other_errors']:,} that raised anything else."
    )


def _default_runs(path: Path) -> str:
    runs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    green = sum(run["exit_code"] == 0 for run in runs)
    seconds = sorted(run["seconds"] for run in runs)
    return (
        f"The default test run, {len(runs)} times in a row: {green} green, {runs[0]['passed']:,} tests each, "
        f"{seconds[0]} to {seconds[-1]} s, median {statistics.median(seconds):.0f} s."
    )


def main() -> None:
    """Rewrite the pages."""
    text = tables(ROOT / "docs" / "results")
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
