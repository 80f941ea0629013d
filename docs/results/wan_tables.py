"""The published figures of the emulated WAN, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wan
from parts import Part, table

_TIMES = ("cold_s", "warm_s", "slowest_s")


def counted(path: Path) -> Part | None:
    """What crossed the interfaces of the runs that were trained on the emulated WAN, a sentence each."""
    runs = _read(path)
    names = {"bytes": "The quickstart's run", "few-bytes": "The first seed of `few_bytes.toml`"}
    texts = []
    for name in (name for name in names if name in runs):
        islands, sent = runs[name]["islands"], max(runs[name]["interface_sent_bytes"])
        whole = islands[0]["data_parallel_bytes"]
        texts.append(
            f"{names[name]} with an island in each of two namespaces: {sent / 1e6:.1f} MB left each network "
            f"interface, all headers included; data-parallel would have sent {whole / 1e9:.2f} GB, "
            f"{whole / sent:.0f} times as much. Loss {islands[0]['eval_loss']:.4f}."
        )
    if not texts:
        return None
    says = "What the operating system counts is little more than what islands say they have sent."
    return Part("Bytes counted by the network", f"{says} {' '.join(texts)}", "`launch/wan/figures.sh`", "")


def rounds(path: Path) -> Part | None:
    """Rounds against their bound, and stock hivemind beside them."""
    runs = _read(path)
    rows: list[tuple[str, ...]] = []
    for name, run in sorted(runs.items()):
        if name.startswith("round-"):
            one = wan.round_row(run)
            against = {key: f"{one[key]:.2f} s ({one[key] / one['bound_s']:.2f}x)" for key in _TIMES}
            committed = f"{one['committed']} and {one['equal']} of {one['rounds']}"
            label = f"lowcomm, {run['setup']['islands']} islands, {run['setup']['mbit_s']:g} Mbit/s"
            rows.append((label, f"{one['bound_s']:.2f} s", *against.values(), committed))
        elif name.startswith("stock-"):
            for who in run["rounds"]:
                seconds = who["seconds"]
                rows.append(
                    (
                        f"{who['who']} beside it, {who['peers']} peers, 100 Mbit/s",
                        "",
                        f"{seconds[0]:.2f} s",
                        f"{statistics.median(seconds):.2f} s",
                        f"{max(seconds):.2f} s",
                        f"- and {who['bit_identical']} of {len(seconds)}",
                    )
                )
            rows += [(reason.replace("|", "/"), *[""] * 4, "-") for reason in run.get("failed", [])]
    headings = ("25 MiB of fp32, 100 ms", "bound", "cold", "warm, median", "slowest", "committed and equal")
    if not rows:
        return None
    return Part(
        "Rounds on an emulated WAN",
        "A round takes little more than the link needs for its bytes, and less than one of stock "
        "hivemind, whose "
        "peers don't end with the same bits.",
        "Times against the bound (`launch/wan/figures.sh`)",
        table(headings, rows),
    )


def utilisation(path: Path) -> Part | None:
    """How much of the time is spent training."""
    runs = _read(path)

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
    headings = ("exchange", "islands", "fp32 parameters", "bandwidth", "floor", "time spent training")
    if not used:
        return None
    return Part(
        "Utilisation of a slow link",
        "Streamed fragments hide the network: islands train nearly all of the time, down to links that carry "
        "little more than the bytes themselves (the floor).",
        "Of the island that waits most (`launch/wan/figures.sh`)",
        table(headings, used),
    )


def heartbeats(path: Path) -> Part | None:
    """How long heartbeats take beside bulk data."""
    runs = _read(path)
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
    columns = ("run", "transport", "median", "slowest", "3 round trips or more", "warm round")
    if not rows:
        return None
    return Part(
        "Heartbeats beside bulk data",
        "Rounds that fill the links hold up hardly a heartbeat, so no live island is taken for dead.",
        "There and back, 100 ms without load (`launch/wan/figures.sh`)",
        table(columns, sorted(rows)),
    )


def _read(path: Path) -> Mapping[str, Any]:
    runs: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return runs
