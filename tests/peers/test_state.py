"""What a heartbeat leaves out, and what is kept of it."""

from dataclasses import replace

import pytest

from lowcomm.errors import ProtocolError
from lowcomm.exchanges.fields import Fields
from lowcomm.peers.peer import Chains, State, parse_state
from lowcomm.types import Digest, PeerId

TOLD = State(
    phase="training",
    inner_step=5,
    chains=Chains((3, 4), (Digest("a" * 64), Digest("b" * 64)), (30, 40)),
    founders=tuple(PeerId(f"p{number}") for number in range(64)),
)


@pytest.mark.parametrize("chains", [True, False])
@pytest.mark.parametrize("founders", [True, False])
def test_what_is_left_out_is_what_was_told_before(chains: bool, founders: bool) -> None:
    later = replace(TOLD, inner_step=6)
    body = later.to_json(chains=chains, founders=founders)
    assert parse_state(Fields("state", body), TOLD) == later


def test_who_has_told_nothing_before_leaves_nothing_out() -> None:
    with pytest.raises(ProtocolError, match=r"founders: expected a list"):
        parse_state(Fields("state", TOLD.to_json(founders=False)))


def test_one_elsewhere_is_the_same_but_for_its_place() -> None:
    there = TOLD.chains.moved(1, 5, Digest("c" * 64), 50)
    assert TOLD.at(there) == replace(TOLD, chains=there)
    assert TOLD.at(there).at(TOLD.chains) == TOLD
