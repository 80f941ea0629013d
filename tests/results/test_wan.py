"""The figures of the emulated WAN, from the files that its script leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import wan
from tables import tables


def write(folder: Path, setup: dict[str, Any], *islands: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "setup.json").write_text(json.dumps({"one_way_ms": 50, **setup}))
    (folder / "interfaces.txt").write_text(
        "".join(f"lcw{n} wan0 sent {n + 7}0\n" for n in range(len(islands)))
    )
    for number, island in enumerate(islands):
        (folder / f"{number}.json").write_text(json.dumps(island))


def one_round(seconds: float, digest: str = "a", committed: bool = True) -> dict[str, Any]:
    return {"seconds": seconds, "digest": digest, "committed": committed}


def some_runs(folder: Path) -> None:
    first = [one_round(4.0), one_round(2.5), one_round(2.6), one_round(2.9)]
    second = [one_round(4.1), one_round(2.6), one_round(2.6, "b"), one_round(2.8, committed=False)]
    options = "--payload-mib 25 --rounds 4 --codec fp32"
    setup = {"islands": 2, "mbit_s": 100, "options": options}
    beats = {"rounds": first, "heartbeat_round_trips_s": [0.11, 0.12, 0.3]}
    write(folder / "round-2", setup, beats, {"rounds": second, "heartbeat_round_trips_s": [0.4]})
    write(folder / "heartbeat-udp", setup, beats, {**beats, "heartbeat_round_trips_s": [0.1, 0.29]})
    for name, mbit_s, used in (("many-5.7", 5.7, 0.991), ("blocking-100", 100, 0.5), ("four-20", 20, 0.97)):
        options = "--step-s 0.2 --inner-steps 30 --payload-mib 25 --steps 150 --codec int4"
        setup = {"islands": 2, "mbit_s": mbit_s, "options": options}
        write(folder / name, setup, {"utilisation": used}, {"utilisation": used + 0.005})


def test_bytes_are_those_of_the_interfaces(tmp_path: Path) -> None:
    figures = {"data_parallel_bytes": 8_000, "eval_loss": 1.25}
    for name in ("bytes", "few-bytes"):
        write(tmp_path / name, {"islands": 2, "mbit_s": 100, "options": ""}, figures, figures)
    runs = wan.gather(tmp_path)
    assert runs["bytes"]["interface_sent_bytes"] == [70, 80]
    (tmp_path / "wan.json").write_text(json.dumps(runs))
    assert tables(tmp_path).count("100 times as much. Loss 1.2500.") == 2


def test_rounds_are_held_against_the_bound_and_each_other(tmp_path: Path) -> None:
    some_runs(tmp_path)
    row = wan.round_row(wan.gather(tmp_path)["round-2"])
    assert row["bound_s"] == pytest.approx(25 * 2**20 * 8 / 100e6 + 0.3)
    assert (row["cold_s"], row["warm_s"], row["slowest_s"]) == (4.1, 2.6, 2.9)
    assert (row["committed"], row["equal"], row["rounds"]) == (3, 3, 4)


def test_the_floor_is_the_encoded_payload_without_a_pause(tmp_path: Path) -> None:
    some_runs(tmp_path)
    floor = wan.floor_mbit_s(wan.gather(tmp_path)["many-5.7"])
    assert floor == pytest.approx(25 * 2**20 / 4 * 4.25 / 1e6 / 6.0, rel=0.001)


def test_a_sweep_is_drawn_and_stands_in_the_tables(tmp_path: Path) -> None:
    some_runs(tmp_path)
    runs = wan.gather(tmp_path)
    assert wan.sweep_plot(runs).startswith(b"\x89PNG")
    (tmp_path / "wan.json").write_text(json.dumps(runs))
    text = tables(tmp_path)
    assert "| lowcomm, 2 islands, 100 Mbit/s | 2.40 s | 4.10 s (1.71x) | 2.60 s (1.08x) |" in text
    assert "| 2 islands, 100 Mbit/s | QUIC | 0.120 s | 0.300 s | 1 of 5 | 2.60 s |" in text
    assert "| 2 islands, 100 Mbit/s | TCP | 0.210 s | 0.400 s | 2 of 4 | 2.60 s |" in text
    assert "| int4, 24 fragments, delay 5 | 2 | 25 MiB | 5.7 Mbit/s | 4.6 Mbit/s | 99.1% |" in text


def test_runs_replace_those_of_the_same_name_or_curve_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "wan.json"
    log.write_text(json.dumps({"bytes": "kept", "round-2": "replaced", "many-9": "replaced, too"}))
    monkeypatch.setattr(wan, "LOG", log)
    monkeypatch.setattr(wan, "PLOT", tmp_path / "sweep.png")
    some_runs(tmp_path)
    wan.main([str(tmp_path)])
    assert json.loads(log.read_text()) == {"bytes": "kept", **wan.gather(tmp_path)}
    assert (tmp_path / "sweep.png").exists()


def test_a_peer_under_test_that_failed_has_a_row(tmp_path: Path) -> None:
    reason = "hivemind, 2 peers, 26.2144 MB: peer 1 gave no 'round' within 240 s; its last message: a | b"
    ours = {"who": "lowcomm", "peers": 2, "seconds": [2.7, 2.8], "bit_identical": 2}
    (tmp_path / "wan.json").write_text(json.dumps({"stock-2": {"rounds": [ours], "failed": [reason]}}))
    table = tables(tmp_path)
    assert "lowcomm beside it, 2 peers" in table
    assert f"| {reason.replace('|', '/')} |" in table
