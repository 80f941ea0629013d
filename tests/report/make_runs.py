"""Run folders as the trainer writes them, with figures of the size that real runs have.

tests/report/recorded has real ones; `test_made_lines_are_like_recorded_ones` keeps these like them.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

from lowcomm.metrics.jsonl import JsonLinesSink, read_lines
from lowcomm.metrics.summary import Counts, Summary, data_parallel_bytes
from lowcomm.types import Digest, PeerId, RoundReport

PARAMETERS = 500_000
DIGEST = Digest("ab" * 32)
ROUND_BYTES = 520_000
STEP_TOKENS = 256
OLDER = (
    "kind", "run_id", "peer", "shared_digest", "config", "version", "how", "inner_step", "shard",
    "outer_steps", "tokens", "swarm_tokens", "tokens_credited", "resumed_from", "time_s",
)  # fmt: skip
"""What a start line had in 0.1."""


def peer_of(run: str, index: int) -> PeerId:
    return PeerId(f"12D3KooW{run}{index}aaaa")


def write_island(
    folder: Path,
    index: int,
    *,
    run_id: str = "demo",
    islands: int = 2,
    first: int = 0,
    last: int = 300,
    inner_steps: int = 10,
    failed: tuple[int, ...] = (),
    alone: int = 1_000_000,
    ended: bool = True,
    diverged: bool = False,
    digest: Digest = DIGEST,
    late_s: float = 0.0,
    older: bool = False,
    repeated: str = "",
    name: str = "",
) -> None:
    """Append a session from inner step `first`, the checkpoint it resumes from (0 = none), to `last`.

    Args:
        late_s: how much later the island started.
        alone: from this inner step on only island 0 takes part in rounds.
        older: counters as they first were: from the checkpoint on, and nobody says so.
        repeated: tells runs apart that have the same run id and settings.
        name: of the island; "" = as its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    earlier = [line for line in read_lines(path) if line["kind"] == "train"] if path.exists() else []
    known = [line for line in earlier if line["inner_step"] <= first] if older else earlier
    base = {key: (known[-1][key] if known else 0) for key in ("bytes_sent", "compute_s", "wait_s", "wall_s")}
    sink = JsonLinesSink(path)
    peers = [peer_of(repeated or "peer", number) for number in range(islands)]
    counts = Counts(
        bytes_sent=base["bytes_sent"], bytes_received=base["bytes_sent"], compute_s=base["compute_s"],
        wait_s=base["wait_s"], wall_s=base["wall_s"],
    )  # fmt: skip
    start = {
        "kind": "start", "run_id": run_id, "name": name or folder.name, "peer": peers[index],
        "shared_digest": "cd" * 32, "config": {"train": {"steps": last}}, "version": "0.1.0",
        "how": "aligned" if first else "founded", "inner_step": first, "shard": index,
        "outer_steps": [first // inner_steps], "tokens": first * STEP_TOKENS,
        "swarm_tokens": islands * first * STEP_TOKENS, "tokens_credited": 0, "resumed_from": first or None,
        "peers": peers, "counts": asdict(counts), "documents": 100, "text_bytes": 1_000_000,
        "data_digest": "ab" * 32, "left_out_files": 0, "epoch_tokens": 100_000, "all_epoch_tokens": 800_000,
        "parameters": PARAMETERS, "device": "cpu", "precision": "fp32", "engine": "plain", "ranks": 1,
        "step_tokens": STEP_TOKENS, "time_s": 0.0,
    }  # fmt: skip
    sink.log({key: value for key, value in start.items() if not older or key in OLDER})
    outer, total = first // inner_steps, islands * first * STEP_TOKENS
    sent, wait_s, clock, loss = base["bytes_sent"], base["wait_s"], 0.0, 0.0
    for step in range(first + 1, last + 1):
        clock = 1.0 + 0.05 * (step - first) - late_s
        loss = 1.6 + 4.0 * math.exp(-step / 60) + 0.15 * math.sin(step * (3 + index))
        if step % inner_steps == 0:
            good = step not in failed
            present = peers if step < alone else peers[:1]
            if peers[index] not in present:
                break
            outer += good
            sent += ROUND_BYTES
            wait_s += 0.06
            own = inner_steps * STEP_TOKENS
            total += good * own * len(present)
            report = RoundReport(
                outer_step=outer, fragment=0, committed=good,
                reason="" if good else f"{peers[-1]} left in the transfer",
                participants=tuple(present) if good else (), attempts=1, bytes_sent=ROUND_BYTES,
                bytes_received=ROUND_BYTES, round_s=0.08, wait_s=0.06, form_s=0.02, transfer_s=0.04,
                tokens=own if good else 0, round_tokens=own * len(present) if good else 0,
                compression_ratio=3.94, pseudo_gradient_norm=2.0 / math.sqrt(1 + outer),
                mean_norm=1.5 / math.sqrt(1 + outer) if good else None,
                cosine=0.3 + 0.3 * math.exp(-outer / 9) if good else None, adopted=0, digest=digest,
                head=Digest(f"{repeated:0>32}{outer:032x}"), inner_steps=inner_steps,
                next_inner_steps=inner_steps, total_tokens=total,
            )  # fmt: skip
            record = {**asdict(report), "participants": list(report.participants), "names": {}}
            sink.log({"kind": "round", "inner_step": step, **record, "time_s": clock})
        if step % 5 == 0:
            sink.log(
                {
                    "kind": "train", "inner_step": step, "outer_step": outer, "tokens": step * STEP_TOKENS,
                    "swarm_tokens": islands * step * STEP_TOKENS, "loss": loss, "lr": 1e-3,
                    "grad_norm": 0.9, "grad_norm_max": 1.3, "tokens_per_s": 5000.0, "mfu": None,
                    "host_memory_bytes": 500_000_000, "device_memory_bytes": None, "peers": islands,
                    "compute_s": base["compute_s"] + 0.045 * (step - first), "data_s": 0.0,
                    "wait_s": wait_s,
                    "transfer_s": 0.04 * (step - first) / inner_steps, "bytes_sent": sent,
                    "bytes_received": sent, "wall_s": base["wall_s"] + clock, "time_s": clock,
                }
            )  # fmt: skip
        if step % 100 == 0:
            sink.log(
                {
                    "kind": "eval", "inner_step": step, "outer_step": outer, "tokens": step * STEP_TOKENS,
                    "swarm_tokens": total, "unit": "nats per token",
                    "eval_loss": 1.62 + 4.0 * math.exp(-step / 60), "eval_bits_per_byte": 2.3,
                    "bytes_sent": sent, "time_s": clock,
                }
            )  # fmt: skip
    if ended:
        summary = Summary(
            run_id=run_id, name=name or folder.name, peer=peers[index], islands=islands,
            mean_islands=float(islands), inner_steps=last, outer_steps=outer, tokens=last * STEP_TOKENS,
            swarm_tokens=total, eval_loss=1.62 + 4.0 * math.exp(-last / 60), first_loss=5.6, last_loss=loss,
            wan_bytes_sent=sent, wan_bytes_received=sent,
            data_parallel_bytes=data_parallel_bytes(islands, PARAMETERS, last), digest=digest,
            head="ef" * 32, wall_s=base["wall_s"] + clock, rounds_committed=outer, rounds_failed=len(failed),
            tokens_credited=last * STEP_TOKENS, tokens_dropped=0, parameters=PARAMETERS, interrupted=False,
            diverged=diverged, eval_metrics={"bits_per_byte": 2.3},
        ).to_dict()  # fmt: skip
        if older:
            newer = ("mean_islands", "swarm_tokens", "name", "diverged", "eval_metrics", "data_wait_share")
            for key in newer:
                summary.pop(key)
        (folder / "summary.json").write_text(json.dumps(summary))
        reason = "diverged" if diverged else "finished"
        sink.log({"kind": "end", "reason": reason, "summary": summary, "time_s": clock + 0.5})
    sink.close()
