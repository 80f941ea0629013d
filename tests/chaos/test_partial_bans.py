"""A liar that all have put out but the leader doesn't hold up the others. On a virtual clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

from lowcomm.exchanges.base import Message
from lowcomm.rounds.policy import RoundPolicy
from lowcomm.sim.island import IslandSettings, toy_schedule
from lowcomm.sim.swarm import SimSwarm, name
from lowcomm.sim.tapes import Tape
from lowcomm.sim.virtual_time import run_virtually
from lowcomm.types import PeerId

LIAR, HONEST = 4, range(4)
PUT_OUT_AT_S, QUIET_S = 15.0, 40.0
DEADLINE_S = 20.0


def test_who_has_not_put_the_liar_out_goes_on_with_the_others() -> None:
    """The liar goes on with the one that still hears it, by a policy of its own, as if two were enough."""
    settings = IslandSettings(
        policy=RoundPolicy(min_participants=3, deadline_s=DEADLINE_S),
        schedule=toy_schedule(num_fragments=1, delay=0),
    )
    swarm = SimSwarm(5, Tape(1, (), (), quiet_s=QUIET_S), settings)
    rosters_of_the_liar = 0
    commits_s: dict[PeerId, dict[int, float]] = {}

    def watch(sender: PeerId, receiver: PeerId, message: Message) -> bool:
        nonlocal rosters_of_the_liar
        now_s = asyncio.get_running_loop().time()
        liar = swarm._lives[LIAR][0].node
        machine = liar.rounds[0].machine
        if now_s > PUT_OUT_AT_S and machine.rules.policy.min_participants != 1:
            lax = replace(machine.rules.policy, min_participants=1)
            liar.context.policy = lax
            machine.rules = machine.assembly.rules = replace(machine.rules, policy=lax)
            for number in HONEST[1:]:
                swarm._lives[number][0].node.peers.ban(name(LIAR), "it lies")
        if message.kind == "state" and message.body.get("outer_steps"):
            (step,) = message.body.get("outer_steps")
            commits_s.setdefault(sender, {}).setdefault(int(step), now_s)
        rosters_of_the_liar += message.kind == "roster" and sender == name(LIAR) and now_s > PUT_OUT_AT_S
        return True

    swarm._hub.filter = watch
    outcome = run_virtually(swarm.run(), 200.0)
    assert rosters_of_the_liar > 0
    assert len({outcome.final_heads[number] for number in HONEST}) == 1
    for number in HONEST:
        found = [at_s for _, at_s in sorted(commits_s[name(number)].items())]
        assert found[-1] > QUIET_S
        assert max(late - early for early, late in pairwise(found)) < DEADLINE_S / 4
