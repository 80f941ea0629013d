"""`codecs.auto`: the most faithful codec that a link has time for, with its reason."""

from __future__ import annotations

import pytest

from lowcomm import codecs
from lowcomm.codecs.choice import ORDER, SHARE, transfer_s
from lowcomm.errors import ConfigError

ELEMENTS, ROUND_S = 10_000_000, 10.0


@pytest.mark.parametrize(
    ("link_mbit_s", "expected"),
    [(1000, "int8"), (17, "int8"), (16, "int4"), (8, "2bit"), (4, "topk"), (0.01, "topk")],
)
def test_slower_links_get_smaller_codecs(link_mbit_s: float, expected: str) -> None:
    choice = codecs.auto(link_mbit_s, elements=ELEMENTS, round_s=ROUND_S)
    assert choice.codec.name == expected
    assert choice.reason.startswith(expected)
    assert f"at {link_mbit_s:g} Mbit/s among 2 islands" in choice.reason


@pytest.mark.parametrize("islands", [2, 4, 16])
@pytest.mark.parametrize("link_mbit_s", [1, 5, 10, 20, 50, 100])
def test_what_is_chosen_fits_and_what_is_better_does_not(islands: int, link_mbit_s: float) -> None:
    name = codecs.auto(link_mbit_s, elements=ELEMENTS, round_s=ROUND_S, islands=islands).codec.name
    fits = [transfer_s(one, link_mbit_s, ELEMENTS, islands) <= SHARE * ROUND_S for one in ORDER]
    at = ORDER.index(name)
    assert not any(fits[:at])
    assert fits[at] or at == len(ORDER) - 1


def test_a_link_that_is_too_slow_for_all_is_told_what_to_do() -> None:
    reason = codecs.auto(0.01, elements=ELEMENTS, round_s=ROUND_S).reason
    assert "too slow even so; raise inner_steps 31 times" in reason


@pytest.mark.parametrize("name", ORDER)
def test_sizes_are_those_of_the_codecs(name: str) -> None:
    elements = 1 << 22
    most = codecs.by_name(name).max_payload_bytes(elements) * 8 / 1e6
    assert 0.95 * most <= transfer_s(name, 1.0, elements, 2) <= most * 1.001


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"link_mbit_s": 0}, "link_mbit_s: expected a number above 0, got 0"),
        ({"link_mbit_s": float("nan")}, "link_mbit_s: expected a number above 0, got nan"),
        ({"round_s": -1}, "round_s: expected a number above 0, got -1"),
        ({"elements": 0}, "elements: expected a whole number of at least 1, got 0"),
        ({"islands": 1}, "islands: expected a whole number of at least 2, got 1"),
    ],
    ids=["no link", "nan", "time", "elements", "alone"],
)
def test_wrong_figures_are_refused(figures: dict[str, float], message: str) -> None:
    given = {"link_mbit_s": 100, "elements": ELEMENTS, "round_s": ROUND_S, **figures}
    with pytest.raises(ConfigError, match=message):
        codecs.auto(**given)
