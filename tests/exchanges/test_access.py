"""Tokens and passes: who is admitted, and what a thief can do with what it reads."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.cli.main import main
from lowcomm.errors import ConfigError
from lowcomm.exchanges.swarm.access import MAX_PASS, Gate, make_token
from lowcomm.exchanges.swarm.identity import Identity, IdentityFile
from tests.clocks import HandClock

OWNER, MEMBER, OTHER = (Identity.generate() for _ in range(3))
NOW_S = 1_000_000.0


def gate(token: str = "", run_id: str = "run") -> Gate:
    return Gate(run_id, owner=OWNER.peer_id, token=token, clock=HandClock(NOW_S))


def token(*, bearer: bool, owner: Identity = OWNER, run_id: str = "run", for_s: int = 60) -> str:
    peer = None if bearer else MEMBER.peer_id
    return make_token(owner, run_id, peer=peer, expires_s=int(NOW_S) + for_s)


@pytest.mark.parametrize("bearer", [False, True], ids=["for-a-peer", "bearer"])
def test_a_token_admits_its_peer_and_its_pass_nobody_else(bearer: bool) -> None:
    shown = gate(token(bearer=bearer)).show(MEMBER)
    assert len(shown) <= MAX_PASS
    assert gate().admits(MEMBER.peer_id, shown)
    assert not gate().admits(OTHER.peer_id, shown)
    assert not gate().admits(OTHER.peer_id, shown.partition(".")[0])


def test_a_bearer_token_admits_whoever_holds_it_and_is_never_shown() -> None:
    text = token(bearer=True)
    for identity in (MEMBER, OTHER):
        shown = gate(text).show(identity)
        assert gate().admits(identity.peer_id, shown)
        assert text.partition(".")[2] not in shown


@pytest.mark.parametrize("bearer", [False, True])
def test_expired_foreign_and_forged_tokens_are_refused(bearer: bool) -> None:
    def shown(text: str) -> str:
        return Gate("run", token=text).show(MEMBER)  # a gate without owner checks nothing

    assert not gate().admits(MEMBER.peer_id, shown(token(bearer=bearer, for_s=0)))
    assert not gate().admits(MEMBER.peer_id, shown(token(bearer=bearer, run_id="other")))
    assert not gate().admits(MEMBER.peer_id, shown(token(bearer=bearer, owner=OTHER)))
    for nothing in (None, "", 5, "x" * 10_000, "é"):
        assert not gate().admits(MEMBER.peer_id, nothing)
    assert gate().admits(OWNER.peer_id, "")


@given(text=st.text(max_size=700), cut=st.integers(0, 400))
def test_any_text_is_refused_without_an_error(text: str, cut: int) -> None:
    good = gate(token(bearer=True)).show(MEMBER)
    assert not gate().admits(MEMBER.peer_id, text)
    assert not gate().admits(OTHER.peer_id, good[:cut] + text + good[cut:])


def test_an_allowlist() -> None:
    listed = Gate("run", allow=(MEMBER.peer_id,))
    assert listed.admits(MEMBER.peer_id, "")
    assert not listed.admits(OTHER.peer_id, "")
    with pytest.raises(ConfigError, match="12D3"):
        Gate("run", allow=("somebody",))


def test_a_token_of_another_owner_is_named_at_the_start() -> None:
    with pytest.raises(ConfigError, match="lowcomm invite"):
        gate(token(bearer=True, owner=OTHER))
    with pytest.raises(ConfigError, match="secret half"):
        gate(token(bearer=True)[:-1]).show(MEMBER)


@pytest.mark.parametrize("peer", [None, MEMBER.peer_id], ids=["bearer", "for-a-peer"])
def test_invite_prints_a_token_that_works(
    peer: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "owner.key"
    code = main(["invite", "--run-id", "run", "--identity", str(key), *(["--peer", peer] if peer else [])])
    out, err = capsys.readouterr()
    file = IdentityFile(key)
    file.close()
    assert code == 0
    assert file.identity.peer_id in err
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = Gate("run", owner=file.identity.peer_id, token=out)
    assert made.admits(MEMBER.peer_id, made.show(MEMBER))


def test_invite_for_no_peer_id_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["invite", "--run-id", "run", "--identity", str(tmp_path / "key"), "--peer", "me"]
    assert main(arguments) == 2
    assert "12D3KooW" in capsys.readouterr().err
