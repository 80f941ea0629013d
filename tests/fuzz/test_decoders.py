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
    assert (figures["inputs"], figures["other_errors"]) == (5_000, 0)


def test_another_error_is_counted_and_its_input_printed(monkeypatch, capsys) -> None:
    def broken(data: bytes) -> None:
        raise KeyError("peer")

    monkeypatch.setitem(DECODERS, "vote", (broken, DECODERS["vote"][1]))
    inputs = 2 * len(DECODERS)
    figures = run(inputs, 1)
    assert (figures["inputs"], figures["other_errors"]) == (inputs, 2)
    assert "vote, seed 1, input" in capsys.readouterr().err
