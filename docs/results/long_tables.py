"""Tables of faults that strike again and again, of long runs, and of searches for schedules."""

from __future__ import annotations

import json
from pathlib import Path

from lowcomm.bench.scale import HEADINGS, ScaleFigures
from lowcomm.bench.soak_figures import rows
from parts import Part, table


def gates(*paths: Path) -> Part:
    """The same fault again and again, on real islands."""
    lines = []
    for path in paths:
        log = json.loads(path.read_text(encoding="utf-8"))
        broken = [name for name, held in log["invariants"].items() if held is not True]
        kinds = {fault["kind"] for fault in log["faults"]}
        away = max(fault["away_s"] for fault in log["faults"])
        lines.append(
            (
                f"`{'`, `'.join(sorted(kinds))}`, up to {away:g} s",
                str(len(log["faults"])),
                f"{log['rounds_committed']:,}",
                f"{log['outer_steps_forked']:,}",
                f"{log['tokens_credited']:,} of {log['tokens_trained']:,}",
                f"{log['tokens_lost']:,}",
                ", ".join(f"{seconds} s" for seconds in log["slowest_return_s"].values()) or "-",
                f"{len(log['invariants']) - len(broken)} of {len(log['invariants'])}"
                + (f" (not `{'`, `'.join(broken)}`)" if broken else ""),
            )
        )
    headings = (
        "fault", "times", "rounds", "outer steps forked", "tokens credited of trained", "tokens lost",
        "slowest return", "invariants that held",
    )  # fmt: skip
    return Part(
        "The same fault again and again",
        "In the default mode one history comes out, nothing is credited twice, and no work of an island that "
        "lives is lost; after a quarter of an hour in two halves the islands are together within a minute.",
        "Three or four real islands (`lowcomm chaos --partition continue --only FAULT`)",
        table(headings, lines),
    )


def versions(path: Path) -> Part:
    """Loopback rounds and the steps between them, of one version and the next by turns."""
    logs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = []
    for version, turn in dict.fromkeys((log["version"], log["turn"]) for log in logs):
        of = {log["bench"]: log["log"] for log in logs if (log["version"], log["turn"]) == (version, turn)}
        seconds = {(row["peers"], row["payload_mb"]): row["median_s"] for row in of["round"]["rounds"]}
        cells = (f"{seconds[size]:.3f}" for size in sorted(seconds))
        lines.append((version, str(turn), *cells, f"{1e6 * of['overhead']['overhead']['call_s']:.0f}"))
    sizes = [f"{peers} peers, {payload:g} MB" for peers, payload in sorted(seconds)]
    return Part(
        "One version after the other",
        "Rounds of small payloads are some milliseconds longer than before promises were synced and votes "
        "went by the leader. Medians in seconds; of `OuterLoop.step` in microseconds.",
        "`lowcomm bench round --peers 2,4 --payload-mb 0,20 --rounds 10`, `lowcomm bench overhead`, by turns",
        table(("version", "turn", *sizes, "step between rounds, us"), lines),
    )


def scales(*paths: Path) -> Part:
    """What control costs as a swarm grows."""
    found = [ScaleFigures(**row) for path in paths for row in json.loads(path.read_text("utf-8"))["scale"]]
    found.sort(key=lambda figures: (figures.fragments, figures.islands))
    return Part(
        "Control as a swarm grows",
        "Messages hardly grow with the islands; bytes and processor time do, by the members that rosters and "
        "certificates list. Of an island, a round of all fragments every 2 s; without what ed25519 costs.",
        "All islands in one process, on a virtual clock (`lowcomm bench scale --islands 4,8,16,32,64`)",
        table(HEADINGS, [figures.row for figures in found]),
    )


def soaks(*paths: Path) -> Part:
    """What rounds cost late against early."""
    lines = []
    for path in paths:
        soak = json.loads(path.read_text(encoding="utf-8"))["soak"]
        what = f"{soak['rounds']:,}, {'virtual clock' if soak['virtual'] else 'real islands'}"
        lines += [(what, *row) for row in rows(soak["measures"])]
    return Part(
        "Long runs",
        "Memory, threads, open files and files stay what they are. The machine was shared, and times are "
        "those of its load, at least in part.",
        "Two islands with a tiny model, each measure in the second and in the last tenth of the rounds "
        "(`lowcomm bench soak`)",
        table(("rounds", "measure", "second tenth", "last tenth", "growth"), lines),
    )


def searches(path: Path) -> Part:
    """Schedules that were searched for."""
    runs = sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda run: run["seed"])
    lines = [
        (
            str(run["seed"]),
            f"{run['seconds'] / 60:.1f}",
            f"{run['schedules']:,}",
            f"{run['few']:,}",
            f"{run['rivals']:,}",
            str(len(run["violations"])),
        )
        for run in runs
    ]
    return Part(
        "Schedules that were searched for",
        "Searches led to where few have voted find schedules that break something; they are in the log, "
        "and what they are below, under what falls short.",
        f"{sum(run['schedules'] for run in runs):,} schedules (`python -m lowcomm.sim.search --seed N`)",
        table(
            ("seed", "minutes", "schedules", "updates with few votes", "steps with rivals", "violations"),
            lines,
        ),
    )
