"""A chaos run in which nothing was broken, as its files would tell it; tests break it."""

from lowcomm.chaos.records import Commit, IslandLog, Life, Story

STEPS = range(1, 6)
BATCH, PERIOD = 10, 40


def entry(outer_step: int, peers=("a", "b"), tokens=PERIOD):
    return {
        "fragment": 0, "outer_step": outer_step, "hash": f"head-{outer_step}",
        "previous": f"head-{outer_step - 1}", "total_tokens": outer_step * tokens * len(peers),
        "state_digest": f"state-{outer_step}", "participants": [[peer, tokens] for peer in peers],
        "contributions": [[(outer_step - 1) * tokens, f"sum-{outer_step}-{peer}"] for peer in peers],
    }  # fmt: skip


def round_line(outer_step: int, committed=True, before=1.0, after=1.0):
    return {
        "kind": "round", "fragment": 0, "outer_step": outer_step, "committed": committed, "adopted": 0,
        "digest": f"state-{outer_step}", "residual_before": before, "residual_norm": after,
    }  # fmt: skip


def train_line(tokens: int, loss: float):
    return {"kind": "train", "tokens": tokens, "loss": loss}


def sound_life(peer: str) -> Life:
    start = {
        "kind": "start", "peer": peer, "how": "founded", "outer_steps": [0], "tokens": 0,
        "tokens_credited": 0,
    }  # fmt: skip
    lines = []
    for step in STEPS:
        lines += [train_line(step * PERIOD, 4.0 / step), round_line(step)]
    trained, credited = STEPS[-1] * PERIOD + BATCH, STEPS[-1] * PERIOD
    lines.append(train_line(trained, 0.7))
    summary = {
        "tokens": trained, "tokens_credited": credited, "tokens_dropped": BATCH, "outer_steps": STEPS[-1],
    }  # fmt: skip
    lines.append({"kind": "eval", "outer_step": STEPS[-1], "eval_loss": 0.8})
    lines.append({"kind": "end", "summary": summary})
    return Life(start=start, lines=lines, ended="left")


def sound_story() -> Story:
    """Two islands, five outer steps, everybody leaves in order."""
    return Story(
        islands=[
            IslandLog(name=f"island-{peer}", lives=[sound_life(peer)], ledger=[entry(step) for step in STEPS])
            for peer in ("a", "b")
        ],
        commits=[
            Commit(at_s=step, fragment=0, outer_step=step, participants=("a", "b"), live=("a", "b"))
            for step in STEPS
        ],
        batch_tokens=BATCH,
    )
