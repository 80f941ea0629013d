"""A run by invitation on the real swarm: members meet, an outsider gets no link and no record."""

import asyncio
import json
from pathlib import Path

import pytest

from lowcomm import exchanges
from lowcomm.cli.main import main
from lowcomm.clock import SystemClock
from lowcomm.errors import ExchangeError, JoinRefusedError
from lowcomm.exchanges.swarm.access import Gate, make_token
from lowcomm.exchanges.swarm.exchange import SwarmExchange
from lowcomm.exchanges.swarm.identity import Identity
from lowcomm.peers.observer import run_seed
from tests.exchanges.networks import RUN, Recorder

OWNER = Identity.generate()


def invited(token: str, *initial: str) -> SwarmExchange:
    gate = Gate(RUN, owner=OWNER.peer_id, token=token)
    return exchanges.swarm(run_id=RUN, initial_peers=initial, gate=gate)


def test_only_who_was_invited_gets_a_link_or_a_record() -> None:
    token = make_token(OWNER, RUN, peer=None, expires_s=int(SystemClock().wall_s()) + 600)

    async def scenario() -> None:
        first, heard = invited(token), Recorder()
        await first.start(heard)
        second = invited(token, first.join_string)
        outsiders = [
            exchanges.swarm(run_id=RUN, initial_peers=[first.join_string]),
            invited("", first.join_string),
        ]
        try:
            await second.start(Recorder())
            await heard.until(lambda: first.connected() == {second.peer_id})
            for outsider in outsiders:
                with pytest.raises(JoinRefusedError, match="did not admit"):
                    await outsider.start(Recorder())
            assert heard.links == [("up", second.peer_id)]
            await second.publish(b"record", 60.0)
            assert dict(await first.discover()) == {second.peer_id: b"record"}
        finally:
            await asyncio.gather(*(exchange.close() for exchange in (first, second, *outsiders)))

    asyncio.run(scenario())


def test_a_member_refuses_an_initial_peer_that_is_none() -> None:
    token = make_token(OWNER, RUN, peer=None, expires_s=int(SystemClock().wall_s()) + 600)

    async def scenario() -> None:
        imposter, heard = exchanges.swarm(run_id=RUN), Recorder()
        await imposter.start(heard)
        gate = Gate(RUN, owner=OWNER.peer_id, token=token)
        member = exchanges.swarm(
            run_id=RUN, initial_peers=[imposter.join_string], gate=gate, connect_timeout_s=3.0
        )
        member_heard = Recorder()
        try:
            with pytest.raises(ExchangeError):
                await member.start(member_heard)
            assert member_heard.links == []
        finally:
            await asyncio.gather(imposter.close(), member.close())

    asyncio.run(scenario())


def test_status_of_a_closed_run_needs_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = make_token(OWNER, RUN, peer=None, expires_s=int(SystemClock().wall_s()) + 600)
    (tmp_path / "token").write_text(token)

    async def scenario() -> tuple[int, int]:
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        seed = asyncio.ensure_future(run_seed(invited(token), address.set_result))
        try:
            status = ["status", await address, "--json", str(tmp_path / "status.json")]
            member = ["--owner", OWNER.peer_id, "--token", str(tmp_path / "token")]
            return await asyncio.to_thread(main, status), await asyncio.to_thread(main, [*status, *member])
        finally:
            seed.cancel()
            await asyncio.gather(seed, return_exceptions=True)

    assert asyncio.run(scenario()) == (1, 0)
    assert "did not admit" in capsys.readouterr().err
    (peer,) = json.loads((tmp_path / "status.json").read_text())["peers"]
    assert peer["role"] == "seed"
