"""One contract for all codecs; a new codec is one row in `CODECS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowcomm import codecs
from lowcomm.codecs.base import Codec
from lowcomm.config.fields import settings as config_settings
from lowcomm.errors import CodecError, ConfigError, NonFiniteError

FP32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Case:
    codec: Codec
    bits_per_parameter: float
    largest_error: Callable[[Tensor], Tensor]  # per number, of one tensor of whole blocks or shorter
    exact_size: bool = True  # max_payload_bytes is what any payload has


def int8_error(values: Tensor) -> Tensor:
    """Half a step of each block; a whole one where the scale is cut, all of it where it would be denormal."""
    errors = torch.empty_like(values, dtype=torch.float64)
    for start in range(0, values.numel(), 256):
        peak = float(values[start : start + 256].abs().max())
        step = peak / 127
        errors[start : start + 256] = peak if step < 2.0**-126 else step if peak > 3.37e38 else 0.5001 * step
    return errors


def bf16_error(values: Tensor) -> Tensor:
    return values.double().abs() * 2.0**-8 + 2.0**-134


def int4_error(values: Tensor) -> Tensor:
    errors = torch.empty_like(values, dtype=torch.float64)
    for start in range(0, values.numel(), 128):
        peak = float(values[start : start + 128].abs().max())
        step = peak / 7
        errors[start : start + 128] = peak if step < 2.0**-126 else step if peak > 2.97e38 else 0.5001 * step
    return errors


def e3m0_error(values: Tensor) -> Tensor:
    """A third of the number, or half of the smallest level; all of it in a block that is too small."""
    errors = torch.empty_like(values, dtype=torch.float64)
    for start in range(0, values.numel(), 128):
        block = values[start : start + 128].double().abs()
        peak = block.max()
        errors[start : start + 128] = block if peak < 2.0**-119 else (block / 2.9999).clamp(min=peak / 128)
    return errors


def below_the_peak(values: Tensor) -> Tensor:
    """Levels are means of magnitudes: no error exceeds the largest number, but for bfloat16's rounding."""
    peak = values.double().abs().max() if values.numel() else torch.zeros(())
    return torch.full_like(values, 1.004 * float(peak), dtype=torch.float64)


CODECS = {
    "fp32": Case(codecs.fp32(), 32, lambda values: torch.zeros_like(values, dtype=torch.float64)),
    "bf16": Case(codecs.bf16(), 16, bf16_error),
    "int8": Case(codecs.int8(), 8.3, int8_error),
    "int4": Case(codecs.int4(), 4.3, int4_error),
    "e3m0": Case(codecs.e3m0(), 4.3, e3m0_error),
    "2bit": Case(codecs.two_bit(), 2.2, below_the_peak),
    "topk": Case(codecs.topk(), 0.165, below_the_peak, exact_size=False),
}

TENSORS = {
    "empty": torch.zeros(0),
    "one": torch.tensor([-3.25]),
    "zeros": torch.zeros(700),
    "constant": torch.full((513,), 0.3),
    "tiny": torch.randn(300, generator=torch.Generator().manual_seed(1)) * 1e-30,
    "denormal": torch.linspace(-1e-38, 1e-38, 1025),
    "smallest denormal": torch.full((257,), 1e-45),
    "huge": torch.linspace(-1e38, 1e38, 1000),
    "largest": torch.tensor([FP32_MAX, -FP32_MAX, 1.0, -0.0] * 100),
    "mixed scales": torch.randn(2048, generator=torch.Generator().manual_seed(2)) ** 9,
    "one short of a block": torch.randn(255, generator=torch.Generator().manual_seed(3)),
    "one over a piece": torch.randn((1 << 16) + 1, generator=torch.Generator().manual_seed(4)),
    "odd and long": torch.randn(200_003, generator=torch.Generator().manual_seed(5)) * 1e-3,
}


@pytest.fixture(params=CODECS, ids=list(CODECS))
def case(request: pytest.FixtureRequest) -> Case:
    return CODECS[request.param]


@pytest.mark.parametrize("values", TENSORS.values(), ids=list(TENSORS))
def test_decoding_stays_within_the_bound(case: Case, values: Tensor) -> None:
    before = values.clone()
    payload = case.codec.encode(values)
    decoded = case.codec.decode(payload, values.numel())
    assert torch.equal(values, before)
    assert decoded.shape == values.shape
    assert decoded.dtype == torch.float32
    assert decoded.isfinite().all()
    assert bool(((decoded.double() - values.double()).abs() <= case.largest_error(values)).all())


@pytest.mark.parametrize("elements", [0, 1, 2, 127, 255, 256, 257, 512, 65_535, 65_536, 65_537, 100_001])
def test_payload_has_the_announced_size(case: Case, elements: int) -> None:
    payload = case.codec.encode(torch.ones(elements))
    assert len(payload) == memoryview(payload).nbytes <= case.codec.max_payload_bytes(elements)
    assert len(payload) == case.codec.max_payload_bytes(elements) or not case.exact_size


def test_bits_per_parameter(case: Case) -> None:
    assert case.codec.max_payload_bytes(1 << 20) * 8 / (1 << 20) <= case.bits_per_parameter


def test_encoding_is_deterministic_and_decoding_ignores_the_buffer(case: Case) -> None:
    values = TENSORS["odd and long"]
    payload = bytes(case.codec.encode(values))
    assert bytes(case.codec.encode(values.clone())) == payload
    unaligned = memoryview(bytearray(b"x" + payload))[1:]
    expected = case.codec.decode(payload, values.numel())
    for buffer in (bytearray(payload), memoryview(payload), unaligned):
        assert torch.equal(case.codec.decode(buffer, values.numel()), expected)


@pytest.mark.parametrize("values", TENSORS.values(), ids=list(TENSORS))
def test_what_is_lost_and_what_is_decoded_make_the_values(case: Case, values: Tensor) -> None:
    plain = bytes(case.codec.encode(values))
    lost, own = torch.full_like(values, math.nan), values.clone()
    assert bytes(case.codec.encode(values, lost)) == plain
    assert torch.equal(lost, values - case.codec.decode(plain, values.numel()))
    assert bytes(case.codec.encode(own, own)) == plain
    assert torch.equal(own, lost)


@pytest.mark.parametrize("values", TENSORS.values(), ids=list(TENSORS))
@pytest.mark.parametrize("weight", [1.0, 1 / 3, 0.1])
def test_weighted_sum_multiplies_and_adds_apart(case: Case, values: Tensor, weight: float) -> None:
    payload = case.codec.encode(values)
    decoded = case.codec.decode(payload, values.numel()).numpy()
    total = torch.linspace(-1, 1, values.numel())
    expected = total.numpy() + np.float32(weight) * decoded
    case.codec.decode_add(payload, weight, total)
    assert total.numpy().tobytes() == expected.tobytes()


def test_decoding_into_a_given_tensor(case: Case) -> None:
    values = TENSORS["odd and long"]
    payload = case.codec.encode(values)
    out = torch.full_like(values, math.nan)
    assert case.codec.decode(payload, values.numel(), out).data_ptr() == out.data_ptr()
    assert torch.equal(out, case.codec.decode(payload, values.numel()))


def test_bad_payload_leaves_the_sum_as_it_was(case: Case) -> None:
    total = torch.linspace(-1, 1, 70_000)
    payload = bytes(case.codec.encode(torch.randn(70_000)))
    for bad in (payload[:-1], payload + b"\0", b"\xff" * len(payload)):
        before = total.clone()
        try:
            case.codec.decode_add(bad, 1.0, total)
        except CodecError:
            assert torch.equal(total, before)


@pytest.mark.parametrize(
    "out",
    [torch.zeros(9), torch.zeros(20)[::2], torch.zeros(10, dtype=torch.float64), torch.zeros(2, 5)],
    ids=["size", "strided", "fp64", "2-D"],
)
def test_unfit_tensors_for_the_result_are_refused(case: Case, out: Tensor) -> None:
    values = torch.ones(10)
    payload = case.codec.encode(values)
    with pytest.raises(CodecError, match="expected out"):
        case.codec.decode(payload, 10, out)
    with pytest.raises(CodecError, match="expected lost"):
        case.codec.encode(values, out)


def test_decoded_tensor_owns_its_memory(case: Case) -> None:
    payload = bytearray(case.codec.encode(torch.ones(10)))
    expected = case.codec.decode(payload, 10).clone()
    assert expected[0] == 1
    case.codec.decode(payload, 10).zero_()
    assert torch.equal(case.codec.decode(payload, 10), expected)


def test_decoding_is_the_same_where_denormals_are_flushed(case: Case) -> None:
    values = torch.cat(list(TENSORS.values()))
    payload = bytes(case.codec.encode(values))
    expected = case.codec.decode(payload, values.numel()).numpy().tobytes()
    supported = torch.set_flush_denormal(True)
    try:
        flushed = case.codec.decode(payload, values.numel()).numpy().tobytes()
    finally:
        torch.set_flush_denormal(False)
    assert supported
    assert flushed == expected


@given(cut=st.integers(0, 300), elements=st.integers(0, 70_000), seed=st.integers(0, 9))
@settings(max_examples=40)
@pytest.mark.parametrize("name", CODECS)
def test_cut_at_blocks_gives_the_same_values(name: str, cut: int, elements: int, seed: int) -> None:
    codec = CODECS[name].codec
    values = torch.randn(elements, generator=torch.Generator().manual_seed(seed)) ** 5
    at = min(cut * codec.block_elements, elements)
    whole = codec.decode(codec.encode(values), elements)
    pieces = [codec.decode(codec.encode(piece), piece.numel()) for piece in (values[:at], values[at:])]
    assert torch.equal(torch.cat(pieces), whole)


def test_strided_and_grad_tensors_are_taken(case: Case) -> None:
    values = torch.randn(1000, requires_grad=True)
    decoded = case.codec.decode(case.codec.encode(values[::3]), 334)
    assert torch.equal(decoded, case.codec.decode(case.codec.encode(values.detach()[::3].clone()), 334))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("index", [0, 300, 65_536, 70_000])
def test_non_finite_values_are_refused(case: Case, bad: float, index: int) -> None:
    values = torch.randn(70_001)
    values[index] = bad
    with pytest.raises(NonFiniteError, match=f"got {bad} at index {index}"):
        case.codec.encode(values)


@pytest.mark.parametrize(
    "values",
    [torch.zeros(2, 2), torch.zeros(4, dtype=torch.float64), torch.zeros(()), torch.zeros(4, device="meta")],
    ids=["2-D", "fp64", "0-D", "not on the host"],
)
def test_other_tensors_are_refused(case: Case, values: Tensor) -> None:
    with pytest.raises(CodecError, match="expected a 1-D float32 tensor on the host or a CUDA device"):
        case.codec.encode(values)


@pytest.mark.parametrize("elements", [0, 1, 256, 1000])
def test_payload_of_the_wrong_size_is_refused(case: Case, elements: int) -> None:
    payload = bytes(case.codec.encode(torch.ones(elements)))
    for wrong in {payload + b"\0", payload[:-1]} - {payload}:
        with pytest.raises(CodecError, match=f"expected {len(payload)} bytes" if case.exact_size else None):
            case.codec.decode(wrong, elements)
    with pytest.raises(CodecError):
        case.codec.decode(payload, 1 << 50)  # were it allocated, this would be a MemoryError
    with pytest.raises(CodecError):
        case.codec.decode(payload, -1)


@given(payload=st.binary(max_size=3000), elements=st.integers(0, 3000), fit=st.booleans())
@settings(max_examples=200)
@pytest.mark.parametrize("name", CODECS)
def test_any_bytes_give_finite_numbers_or_a_codec_error(
    name: str, payload: bytes, elements: int, fit: bool
) -> None:
    codec = CODECS[name].codec
    if fit:
        size = codec.max_payload_bytes(elements)
        payload = (payload * (size // max(len(payload), 1) + 1))[:size]
    try:
        decoded = codec.decode(payload, elements)
    except CodecError:
        return
    assert decoded.shape == (elements,)
    assert decoded.isfinite().all()


@given(data=st.data(), elements=st.integers(1, 9000), seed=st.integers(0, 99))
@settings(max_examples=60)
@pytest.mark.parametrize("name", CODECS)
def test_damaged_payloads_give_finite_numbers_or_a_codec_error(
    name: str, data: st.DataObject, elements: int, seed: int
) -> None:
    codec = CODECS[name].codec
    values = torch.randn(elements, generator=torch.Generator().manual_seed(seed))
    payload = bytearray(codec.encode(values))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    total = torch.ones(elements)
    try:
        codec.decode_add(payload, 0.5, total)
    except CodecError:
        assert torch.equal(total, torch.ones(elements))
        return
    assert codec.decode(payload, elements).isfinite().all()


@pytest.mark.parametrize("sender", ["int8", "int4", "e3m0", "2bit", "topk"])
@pytest.mark.parametrize("elements", [1, 300, 5000])
def test_payload_of_another_codec_is_refused(case: Case, sender: str, elements: int) -> None:
    if sender == case.codec.name:
        return
    payload = CODECS[sender].codec.encode(torch.randn(elements))
    with pytest.raises(CodecError, match=f"{case.codec.name}: expected"):
        case.codec.decode(payload, elements)


@pytest.mark.parametrize("name", ["int8", "int4", "e3m0", "2bit", "topk"])
def test_payload_of_another_version_is_refused(name: str) -> None:
    codec = CODECS[name].codec
    payload = bytearray(codec.encode(torch.ones(100)))
    payload[-1] += 1
    with pytest.raises(CodecError, match="another codec or version"):
        codec.decode(payload, 100)


def test_error_feedback_sends_everything_in_the_end(case: Case) -> None:
    """The mean of what was sent tends to the values: nothing is lost for good."""
    values = torch.randn(8192, generator=torch.Generator().manual_seed(7))
    residual, total, rounds = torch.zeros(8192), torch.zeros(8192), 400
    for _ in range(rounds):
        residual += values
        case.codec.decode_add(case.codec.encode(residual, residual), 1 / rounds, total)
    assert float((total - values).norm() / values.norm()) < 0.15


def test_by_name_knows_every_codec() -> None:
    for name in codecs.NAMES:
        codec = codecs.by_name(name)
        assert codec.name == name
        assert codec.error_feedback == (name in ("2bit", "topk"))
        assert codec.decay == (0.95 if name == "topk" else 1)
    assert codecs.by_name("int8", error_feedback=True, decay=0.9).error_feedback
    assert codecs.by_name("topk", decay=0.5).decay == 0.5
    assert set(codecs.NAMES) == set(CODECS)
    assert config_settings()["shared.codec.name"].choices == codecs.NAMES


@pytest.mark.parametrize("name", ["2bit", "topk"])
def test_few_bits_without_error_feedback_warn(name: str) -> None:
    with pytest.warns(UserWarning, match=f"codec {name} without error feedback"):
        codecs.by_name(name, error_feedback=False)


def test_by_name_refuses_what_makes_no_sense() -> None:
    with pytest.raises(
        ConfigError, match=r"shared\.codec\.name: expected one of fp32, bf16, int8, int4, .*, got 'int9'"
    ):
        codecs.by_name("int9")
    with pytest.raises(ConfigError, match="error_feedback"):
        codecs.by_name("fp32", error_feedback=True)
    with pytest.raises(ConfigError, match="error_feedback_decay: expected a number from 0 to 1, got 2"):
        codecs.by_name("int8", decay=2)
