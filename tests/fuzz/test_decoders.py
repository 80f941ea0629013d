"""Whatever comes from the network, only the named error comes out; the long run is in decoders.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.decoders import DECODERS, REFUSALS, run


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_valid_input_is_read(name: str) -> None:
    decode, valid = DECODERS[name]
    if name != "record":  # an envelope around what `addresses` reads
        decode(valid)


@pytest.mark.parametrize("name", sorted(DECODERS))
@given(data=st.binary(max_size=300))
def test_noise_raises_only_named_errors(name: str, data: bytes) -> None:
    try:
        DECODERS[name][0](data)
    except REFUSALS:
        pass


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_messages_raise_only_named_errors(seed: int) -> None:
    figures = run(5_000, seed)
    decoders = figures["decoders"]
    assert isinstance(decoders, dict)
    assert sum(found["inputs"] for found in decoders.values()) == 5_000  # type: ignore[index, call-overload, misc]
