"""The codec bench measures every codec on real pseudo-gradients."""

from __future__ import annotations

from lowcomm import codecs
from lowcomm.bench.codecs import measure_codecs
from lowcomm.config.schema import Config

MOST_BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.3, "int4": 4.3, "e3m0": 4.3, "2bit": 2.2, "topk": 0.165}


def test_every_codec_has_figures_and_stays_below_its_bits() -> None:
    result = measure_codecs(Config(), inner_steps=2, rounds=2, payload_mib=0.25, repeats=1).to_dict()
    rows = result["codecs"]
    assert isinstance(rows, list)
    assert {row["name"] for row in rows} == set(codecs.NAMES) == set(MOST_BITS)
    for row in rows:
        assert row["bits_per_parameter"] <= MOST_BITS[row["name"]]
        assert row["encode_gb_s"] > 0
        assert row["decode_gb_s"] > 0
    assert result["copy_gb_s"] > 0
    assert result["hivemind_uniform8_gb_s"] > 0
