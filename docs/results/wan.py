"""The figures of `launch/wan/figures.sh`: `python docs/results/wan.py OUT` gathers and draws them.

Writes docs/results/wan.json, which the published table is made of, and docs/img/wan_sweep.png. Runs in it
that OUT doesn't have stay as they are.

Bounds: a round of n islands moves 2 (n - 1) / n of the payload S up each link of rate B, and takes three
round trips besides: 2 (n - 1) / n * S / B + 3 RTT. No schedule trains without waiting on less than the
floor: the encoded payload of a round over the time between two rounds, H * T.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lowcomm import codecs

ROOT = Path(__file__).parents[2]
LOG = ROOT / "docs" / "results" / "wan.json"
PLOT = ROOT / "docs" / "img" / "wan_sweep.png"
CURVES = {
    "blocking": "fp32, blocking",
    "four": "int4, 4 fragments, delay auto",
    "many": "int4, 24 fragments, delay 5",
}
ROUND_TRIPS = 3
_MIB = 2**20


def gather(folder: Path) -> dict[str, Any]:
    """All runs in a folder: name -> `setup` and each island's figures; `stock-N` -> the bench's result."""
    runs: dict[str, Any] = {}
    for setup in sorted(folder.glob("*/setup.json")):
        islands = [_read(path) for path in sorted(setup.parent.glob("[0-9]*.json"))]
        if islands:
            sent = re.findall(r"sent (\d+)", (setup.parent / "interfaces.txt").read_text(encoding="utf-8"))
            runs[setup.parent.name] = {
                "setup": _read(setup),
                "islands": islands,
                "interface_sent_bytes": [int(count) for count in sent],
            }
    for path in sorted(folder.glob("stock-*.json")):
        runs[path.stem] = _read(path)
    return runs


def option(run: Mapping[str, Any], name: str) -> str:
    """The value of one of the bench's options, as it was given."""
    found = re.search(rf"--{name} (\S+)", run["setup"]["options"])
    return found[1] if found else ""


def bound_s(run: Mapping[str, Any]) -> float:
    """Seconds that a round takes at least."""
    setup = run["setup"]
    count, bits = int(setup["islands"]), float(option(run, "payload-mib")) * _MIB * 8
    round_trip_s = 2 * float(setup["one_way_ms"]) / 1e3
    return 2 * (count - 1) / count * bits / (float(setup["mbit_s"]) * 1e6) + ROUND_TRIPS * round_trip_s


def floor_mbit_s(run: Mapping[str, Any]) -> float:
    """Mbit/s of one link that the encoded payloads need, sent without a pause."""
    count, elements = int(run["setup"]["islands"]), int(float(option(run, "payload-mib")) * _MIB) // 4
    encoded = len(
        codecs.by_name(option(run, "codec")).encode(torch.zeros(elements, dtype=torch.float32, device="cpu"))
    )
    seconds = float(option(run, "step-s")) * int(option(run, "inner-steps"))
    return 2 * (count - 1) / count * encoded * 8 / 1e6 / seconds


def heartbeat_row(run: Mapping[str, Any]) -> dict[str, float]:
    """Round trips of heartbeats during the rounds of a run, and how many take three of the link's or more."""
    seconds = [trip for island in run["islands"] for trip in island["heartbeat_round_trips_s"]]
    most_s = ROUND_TRIPS * 2 * float(run["setup"]["one_way_ms"]) / 1e3
    return {
        "median_s": statistics.median(seconds),
        "slowest_s": max(seconds),
        "late": sum(trip >= most_s for trip in seconds),
        "heartbeats": len(seconds),
    }


def utilisation(run: Mapping[str, Any]) -> float:
    """Of the island that waited most."""
    return min(float(island["utilisation"]) for island in run["islands"])


def round_row(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the rounds of a run took against the bound, on the island that took longest."""
    seconds = [max(times) for times in zip(*_each(run, "seconds"), strict=True)]
    digests = zip(*_each(run, "digest"), strict=True)
    return {
        "bound_s": bound_s(run),
        "cold_s": seconds[0],
        "warm_s": statistics.median(seconds[1:]),
        "slowest_s": max(seconds[1:]),
        "committed": sum(all(done) for done in zip(*_each(run, "committed"), strict=True)),
        "equal": sum(len(set(found)) == 1 for found in digests),
        "rounds": len(seconds),
    }


def _each(run: Mapping[str, Any], key: str) -> list[list[Any]]:
    return [[one[key] for one in island["rounds"]] for island in run["islands"]]


def sweep_plot(runs: Mapping[str, Any]) -> bytes:
    """Utilisation against bandwidth, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for prefix, label in CURVES.items():
        points = sorted(
            (run["setup"]["mbit_s"], 100 * utilisation(run)) for run in named(runs, prefix).values()
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    floor = statistics.fmean(floor_mbit_s(run) for run in named(runs, "many").values())
    axes.axvline(floor, color="#888888", linestyle=":", label="floor: payload / (H T)")
    axes.axhline(99, color="#bbbbbb", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("bandwidth of each island's link, Mbit/s")
    axes.set_ylabel("time spent training, %")
    axes.set_title("Utilisation of two islands, 100 ms round trip")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def named(runs: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The runs of one curve: `PREFIX-RATE`."""
    return {name: run for name, run in runs.items() if re.fullmatch(rf"{prefix}-[\d.]+", name)}


def _curve(name: str) -> str:
    """The curve that a run is a point of, else the run itself: a curve is replaced as a whole."""
    prefix = re.sub(r"-[\d.]+$", "", name)
    return prefix if prefix in CURVES else name


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Put the runs of a folder in the place of earlier ones, and draw where there is a sweep."""
    parser = argparse.ArgumentParser(prog="python docs/results/wan.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="what launch/wan/figures.sh has written")
    folder = parser.parse_args(arguments).folder
    found = gather(folder)
    if not found:
        parser.error(f"{folder} has no runs; expected folders with setup.json, made by launch/wan/figures.sh")
    runs = {name: run for name, run in _read(LOG).items() if _curve(name) not in map(_curve, found)} | found
    LOG.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    if all(named(runs, prefix) for prefix in CURVES):
        PLOT.write_bytes(sweep_plot(runs))


if __name__ == "__main__":
    main()
