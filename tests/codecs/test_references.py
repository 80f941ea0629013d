"""The fast paths equal their readable references bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowcomm import codecs
from lowcomm.codecs import blockwise_e3m0, blockwise_int4, blockwise_int8, rice, sparse, statistical
from lowcomm.codecs.bf16_rounded import bf16_reference
from lowcomm.codecs.blockwise import Blockwise, Format, decode_eager, encode_eager
from lowcomm.errors import CodecError

MAGNITUDES = [1e-45, 1e-40, 1.4e-36, 1e-30, 1e-3, 1.0, 1e30, 3.4e38]
FORMATS = [module.FORMAT for module in (blockwise_int8, blockwise_int4, blockwise_e3m0, statistical)]


def numbers(elements: int, magnitude: float, kind: str = "even") -> Tensor:
    """Evenly spread up to `magnitude`; or heavy-tailed, as pseudo-gradients are; or all of one size."""
    generator = torch.Generator().manual_seed(elements)
    values = torch.rand(elements, dtype=torch.float64, generator=generator) * 2 - 1
    if kind == "heavy":
        values = values**9
    if kind == "equal":
        values = values.sign()
    return (values * magnitude).float()


@pytest.mark.parametrize("made", FORMATS, ids=lambda made: made.name)
@pytest.mark.parametrize("magnitude", MAGNITUDES, ids=lambda m: f"{m:g}")
@pytest.mark.parametrize("kind", ["even", "heavy", "equal"])
def test_blockwise_kernels_do_what_plain_torch_does(made: Format, magnitude: float, kind: str) -> None:
    codec = Blockwise(made)
    for elements in (1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1027):
        values = numbers(elements, magnitude, kind)
        headers, codes = encode_eager(made, values)
        payload = codec.encode(values)
        assert bytes(payload) == headers.tobytes() + codes.tobytes() + bytes([made.tag])
        expected = decode_eager(made, headers, codes, elements)
        assert codec.decode(payload, elements).numpy().tobytes() == expected.numpy().tobytes()


@given(payload=st.binary(min_size=200, max_size=200), exponent=st.integers(-60, 60))
@settings(max_examples=50)
@pytest.mark.parametrize("made", FORMATS, ids=lambda made: made.name)
def test_any_codes_decode_as_in_plain_torch(made: Format, payload: bytes, exponent: int) -> None:
    scale = np.full(made.blocks(200), 2.0**exponent, np.float32).view(np.uint32)
    headers = scale | scale >> 16 if made.name == "2bit" else scale
    codes = np.frombuffer(payload, np.uint8)[: made.code_bytes(200)]
    expected = decode_eager(made, headers, codes, 200)
    decoded = Blockwise(made).decode(headers.tobytes() + codes.tobytes() + bytes([made.tag]), 200)
    assert decoded.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("magnitude", MAGNITUDES, ids=lambda m: f"{m:g}")
@pytest.mark.parametrize("kind", ["even", "heavy", "equal"])
def test_topk_kernels_do_what_plain_torch_does(magnitude: float, kind: str) -> None:
    codec = codecs.topk()
    for elements in (1, 64, 65, 4095, 4096, 4097, 9000):
        values = numbers(elements, magnitude, kind)
        headers, fields, indices = sparse.select_eager(values)
        stream = rice.write_reference(indices.tolist())
        parts = (headers.tobytes(), sparse.pack(fields).tobytes(), stream, bytes([sparse.TAG]))
        payload = codec.encode(values)
        assert bytes(payload) == b"".join(parts)
        places, kept = sparse.levels_eager(headers, fields, indices)
        expected = torch.zeros(elements)
        expected[places] = kept
        assert torch.equal(codec.decode(payload, elements), expected)


@given(
    elements=st.integers(1, 9000),
    spread=st.sampled_from([1, 7, 64, 4096]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_indices_come_back_and_take_at_most_8_bits(elements: int, spread: int, seed: int) -> None:
    """Wherever they lie: `spread` apart at most, or all at the end of their chunk."""
    generator = np.random.default_rng(seed)
    indices = []
    for start in range(0, elements, rice.CHUNK):
        width = min(rice.CHUNK, elements - start)
        count = rice.kept(width)
        among = max(count, min(width, count * spread))
        chosen = generator.choice(among, count, replace=False) + (width - among)
        indices += sorted(chosen.tolist())
    stream = np.zeros(rice.most_bytes(elements), np.uint8)
    used = -(-rice.write_indices(np.array(indices, np.uint16), stream) // 8)
    assert rice.least_bytes(elements) <= used <= rice.most_bytes(elements)
    assert stream[:used].tobytes() == rice.write_reference(indices)
    read = np.empty(len(indices), np.uint16)
    assert rice.read_indices(stream[:used], elements, read) == 0
    assert read.tolist() == indices


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda stream: stream[:-1], "they end too early"),
        (lambda stream: stream + b"\0", "something is left over"),
        (lambda stream: bytes([0b111]) + b"\xff" * (len(stream) - 1), "one is beyond its chunk"),
    ],
    ids=["short", "long", "beyond"],
)
def test_indices_are_checked(damage, reason: str) -> None:
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    payload = bytes(codecs.topk().encode(values))
    fixed = 4 + 16
    with pytest.raises(CodecError, match=f"expected 64 indices, but {reason}"):
        codecs.topk().decode(payload[:fixed] + damage(payload[fixed:-1]) + payload[-1:], 4096)


@pytest.mark.parametrize("word", [0x7F80, 0xFFC0, 0x8000, 0x3F80 | 0x8000, 0x0001, 0x1F7F])
def test_topk_means_are_checked(word: int) -> None:
    payload = bytearray(codecs.topk().encode(torch.randn(4096)))
    payload[2:4] = word.to_bytes(2, "little")
    with pytest.raises(CodecError, match="for chunk 0"):
        codecs.topk().decode(payload, 4096)


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


BAD = {"nan": np.nan, "inf": np.inf, "negative": -1.0, "negative zero": -0.0, "denormal": 1e-40}


@pytest.mark.parametrize("made", FORMATS, ids=lambda made: made.name)
@pytest.mark.parametrize("scale", BAD.values(), ids=list(BAD))
def test_scales_are_checked(made: Format, scale: float) -> None:
    headers = np.array([1.0, scale], np.float32)
    codes = bytes(made.code_bytes(2 * made.block_elements))
    payload = headers.tobytes() + codes + bytes([made.tag])
    with pytest.raises(CodecError, match="for block 1"):
        Blockwise(made).decode(payload, 2 * made.block_elements)


@pytest.mark.parametrize("made", FORMATS, ids=lambda made: made.name)
def test_any_code_with_the_largest_scale_is_finite(made: Format) -> None:
    largest = {"int8": 0x7BFFFFFF, "int4": 0x7DFFFFFF, "e3m0": 0x7F7FFFFF, "2bit": 0x7F7F7F7F}[made.name]
    for code in (0x00, 0x80, 0x88, 0xFF):
        codes = bytes([code]) * made.row_bytes
        payload = largest.to_bytes(4, "little") + codes + bytes([made.tag])
        assert Blockwise(made).decode(payload, made.block_elements).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", codecs.NAMES)
def test_cuda_gives_the_same_bytes_and_numbers(name: str) -> None:
    codec = codecs.by_name(name)
    values = numbers(100_003, 1.0, "heavy")
    lost, on_device = torch.empty_like(values), torch.empty_like(values, device="cuda")
    payload = codec.encode(values, lost)
    assert bytes(codec.encode(values.cuda(), on_device)) == bytes(payload)
    assert torch.equal(on_device.cpu(), lost)
    out, total = torch.empty_like(on_device), torch.ones_like(on_device)
    codec.decode(payload, values.numel(), out)
    codec.decode_add(payload, 0.3, total)
    expected = torch.ones_like(values)
    codec.decode_add(payload, 0.3, expected)
    assert torch.equal(out.cpu(), codec.decode(payload, values.numel()))
    assert torch.equal(total.cpu(), expected)
