"""The published figures of the emulated WAN, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowcomm.bench import wan
from lowcomm.bench.markdown import table

_TIMES = ("cold_s", "warm_s", "slowest_s")


def _counted(runs: Mapping[str, Any]) -> str:
    """What crossed the interfaces of the runs that were trained on the emulated WAN, a paragraph each."""
    names = {"bytes": "The quickstart's run", "few-bytes": "The first seed of `few_bytes.toml`"}
    text = ""
    for name in (name for name in names if name in runs):
        islands, sent = runs[name]["islands"], max(runs[name]["interface_sent_bytes"])
        whole = islands[0]["data_parallel_bytes"]
        text += (
            f"{names[name]} with an island in each of two namespaces: {sent / 1e6:.1f} MB left each network "
            f"interface, all headers included; data-parallel would have sent {whole / 1e9:.2f} GB, "
            f"{whole / sent:.0f} times as much. Loss {islands[0]['eval_loss']:.4f}.\n\n"
        )
    return text


def wan_tables(path: Path) -> str:
    """All of them, from `wan.json`."""
    runs = json.loads(path.read_text(encoding="utf-8"))
    rounds = []
    for name, run in sorted(runs.items()):
        if name.startswith("round-"):
            one = wan.round_row(run)
            against = {key: f"{one[key]:.2f} s ({one[key] / one['bound_s']:.2f}x)" for key in _TIMES}
            committed = f"{one['committed']} and {one['equal']} of {one['rounds']}"
            label = f"lowcomm, {run['setup']['islands']} islands, {run['setup']['mbit_s']:g} Mbit/s"
            rounds.append((label, f"{one['bound_s']:.2f} s", *against.values(), committed))
        elif name.startswith("stock-"):
            for who in run["rounds"]:
                seconds = who["seconds"]
                rounds.append(
                    (
                        f"{who['who']} beside it, {who['peers']} peers, 100 Mbit/s",
                        "",
                        f"{seconds[0]:.2f} s",
                        f"{statistics.median(seconds):.2f} s",
                        f"{max(seconds):.2f} s",
                        f"- and {who['bit_identical']} of {len(seconds)}",
                    )
                )
            rounds += [(reason.replace("|", "/"), *[""] * 4, "-") for reason in run.get("failed", [])]

    def order(item: tuple[str, Mapping[str, Any]]) -> tuple[Any, ...]:
        """Rows of one schedule together, by bandwidth."""
        kind, run = item
        setup = run["setup"]
        step_s = float(wan.option(run, "step-s"))
        return kind == "many", kind != "blocking", step_s, setup["islands"], setup["mbit_s"]

    timed = [
        (kind, run)
        for name, run in runs.items()
        if (kind := name.split("-")[0]) in ("blocking", "streaming", "four", "many")
    ]
    used = [
        (
            wan.CURVES["four" if kind == "streaming" else kind],
            str(run["setup"]["islands"]),
            f"{wan.option(run, 'payload-mib')} MiB",
            f"{run['setup']['mbit_s']:g} Mbit/s",
            f"{wan.floor_mbit_s(run):.1f} Mbit/s",
            f"{wan.utilisation(run):.1%}",
        )
        for kind, run in sorted(timed, key=order)
    ]
    first = (
        "25 MiB of fp32, 100 ms",
        "bound",
        "cold",
        "warm, median",
        "slowest",
        "committed and equal",
    )
    second = ("exchange", "islands", "fp32 parameters", "bandwidth", "floor", "time spent training")
    return _counted(runs) + (
        "Rounds on an emulated WAN, times against the bound (`launch/wan/figures.sh`):\n\n"
        + table(first, rounds)
        + _heartbeats(runs)
        + "\n\nUtilisation on it, of the island that waits most:\n\n"
        + table(second, used)
    )


def _heartbeats(runs: Mapping[str, Any]) -> str:
    rows = []
    for name, run in runs.items():
        if name.split("-")[0] not in ("heartbeat", "round"):
            continue
        one, setup = wan.heartbeat_row(run), run["setup"]
        rows.append(
            (
                f"{setup['islands']} islands, {setup['mbit_s']:g} Mbit/s",
                "QUIC" if name == "heartbeat-udp" else "TCP",
                f"{one['median_s']:.3f} s",
                f"{one['slowest_s']:.3f} s",
                f"{one['late']} of {one['heartbeats']}",
                f"{wan.round_row(run)['warm_s']:.2f} s",
            )
        )
    if not rows:
        return ""
    columns = ("run", "transport", "median", "slowest", "3 round trips or more", "warm round")
    heading = "\n\nHeartbeats there and back while such rounds fill the links:\n\n"
    return heading + table(columns, sorted(rows))
