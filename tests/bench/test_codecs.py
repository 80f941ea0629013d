"""The codec bench measures every codec on real pseudo-gradients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowcomm import codecs
from lowcomm.bench.codecs import measure_codecs
from lowcomm.bench.settings import CodecBench
from lowcomm.cli.main import main
from lowcomm.config.schema import Config

SMALL = CodecBench(inner_steps=2, rounds=2, payload_mib=0.25, repeats=1)
MOST_BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.3, "int4": 4.3, "e3m0": 4.3, "2bit": 2.2, "topk": 0.165}


def test_every_codec_has_figures_and_stays_below_its_bits() -> None:
    result = measure_codecs(Config(), SMALL).to_dict()
    rows = result["codecs"]
    assert isinstance(rows, list)
    assert {row["name"] for row in rows} == set(codecs.NAMES) == set(MOST_BITS)
    for row in rows:
        assert row["bits_per_parameter"] <= MOST_BITS[row["name"]]
        assert row["encode_gb_s"] > 0
        assert row["decode_gb_s"] > 0
    assert result["copy_gb_s"] > 0
    assert result["hivemind_uniform8_gb_s"] > 0


def test_command_writes_what_scripts_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "codecs.json"
    sizes = ["--payload-mib", "0.25", "--inner-steps", "1", "--rounds", "1", "--repeats", "1"]
    assert main(["bench", "codecs", *sizes, "--json", str(log)]) == 0
    assert "hivemind's uniform 8-bit codec" in capsys.readouterr().out
    written = json.loads(log.read_text(encoding="utf-8"))
    assert {"codecs", "copy_gb_s", "hivemind_uniform8_gb_s", "machine"} <= set(written)
    keys = {"name", "error_feedback", "bits_per_parameter", "encode_gb_s", "decode_gb_s", "relative_error"}
    assert all(keys <= set(row) for row in written["codecs"])
    assert {(row["name"], row["error_feedback"]) for row in written["codecs"]} == {
        (name, feedback) for name in codecs.NAMES for feedback in (False, True)
    } - {("fp32", True)}
