"""The fast paths equal their readable references bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowcomm import codecs
from lowcomm.codecs.blockwise import decode_reference, encode_reference
from lowcomm.codecs.dense import bf16_reference
from lowcomm.errors import CodecError

MAGNITUDES = [1e-45, 1e-40, 1.4e-36, 1e-30, 1e-3, 1.0, 1e30, 3.4e38]


@pytest.mark.parametrize("magnitude", MAGNITUDES, ids=lambda m: f"{m:g}")
@pytest.mark.parametrize("elements", [1, 255, 256, 1027])
def test_int8(magnitude: float, elements: int) -> None:
    codec = codecs.int8()
    values = (
        torch.rand(elements, dtype=torch.float64, generator=torch.Generator().manual_seed(elements)) * 2 - 1
    )
    values = (values * magnitude).float()
    payload = codec.encode(values)
    assert bytes(payload) == encode_reference(values)
    assert codec.decode(payload, elements).tolist() == decode_reference(bytes(payload), elements)


@pytest.mark.parametrize("magnitude", MAGNITUDES, ids=lambda m: f"{m:g}")
def test_bf16(magnitude: float) -> None:
    codec = codecs.bf16()
    values = torch.rand(999, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    values = (values * magnitude).float()
    values[:4] = torch.tensor(
        [1.00390625, 1.01171875, -1.00390625, 3.4028234663852886e38]
    )  # ties, and the largest
    bits = np.frombuffer(codec.encode(values), np.uint16)
    assert bits.tolist() == [bf16_reference(value) for value in values.tolist()]
    decoded = codec.decode(bits.tobytes(), 999)
    assert decoded.numpy().view(np.uint32).tolist() == [int(b) << 16 for b in bits]


@pytest.mark.parametrize(
    "scale",
    [np.nan, np.inf, -1.0, -0.0, 1e-40, 3e36],
    ids=["nan", "inf", "negative", "negative zero", "denormal", "too large"],
)
def test_int8_scales_are_checked(scale: float) -> None:
    payload = np.array([1.0, scale], "<f4").tobytes() + bytes(512)
    with pytest.raises(CodecError, match="for block 1"):
        codecs.int8().decode(payload, 512)


def test_int8_lowest_level_with_the_largest_scale_is_finite() -> None:
    payload = np.array([0x7BFFFFFF], "<u4").tobytes() + b"\x80" * 256
    assert codecs.int8().decode(payload, 256).isfinite().all()
