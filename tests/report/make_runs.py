"""Run folders as the JSON-lines sink writes them, with figures of the size that real runs have."""

import json
import math
from pathlib import Path

from lowcomm.metrics.jsonl import JsonLinesSink

PARAMETERS = 500_000
DIGEST = "ab" * 32


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
    ended: bool = True,
    digest: str = DIGEST,
    late_s: float = 0.0,
) -> None:
    """Append a session from inner step `first` to `last`; `late_s` is how much later the island started."""
    folder.mkdir(parents=True, exist_ok=True)
    sink = JsonLinesSink(folder / "metrics.jsonl")
    peers = [f"12D3KooWpeer{number}aaaa" for number in range(islands)]
    sink.log(
        {
            "kind": "start", "run_id": run_id, "peer": peers[index], "shared_digest": "cd" * 32,
            "config": {"train": {"steps": last}}, "version": "0.1.0", "how": "founded",
            "inner_step": first, "time_s": 0.0,
        }
    )  # fmt: skip
    outer, sent, wait_s = first // inner_steps, 0, 0.0
    for step in range(first + 1, last + 1):
        clock = 1.0 + 0.05 * (step - first) - late_s
        if step % inner_steps == 0:
            good = step not in failed
            outer += good
            sent += 520_000
            wait_s += 0.06
            sink.log(
                {
                    "kind": "round", "outer_step": outer, "fragment": 0, "committed": good,
                    "reason": "" if good else "peer left in the transfer", "attempts": 1,
                    "participants": peers if good else [],
                    "bytes_sent": 520_000, "bytes_received": 520_000, "round_s": 0.08,
                    "wait_s": 0.06, "form_s": 0.02, "transfer_s": 0.04, "tokens": 2560, "round_tokens": 5120,
                    "compression_ratio": 3.94, "pseudo_gradient_norm": 2.0 / math.sqrt(1 + outer),
                    "mean_norm": 1.5 / math.sqrt(1 + outer) if good else None,
                    "cosine": 0.3 + 0.3 * math.exp(-outer / 9) if good else None, "adopted": 0,
                    "digest": digest, "head": "ef" * 32, "inner_step": step, "time_s": clock,
                }
            )  # fmt: skip
        if step % 5 == 0:
            sink.log(
                {
                    "kind": "train", "inner_step": step, "outer_step": outer, "tokens": step * 256,
                    "loss": 1.6 + 4.0 * math.exp(-step / 60) + 0.15 * math.sin(step * (3 + index)),
                    "lr": 1e-3, "tokens_per_s": 5000.0, "peers": islands, "compute_s": 0.045 * (step - first),
                    "wait_s": wait_s, "transfer_s": 0.04 * (step - first) / inner_steps, "bytes_sent": sent,
                    "bytes_received": sent, "time_s": clock,
                }
            )  # fmt: skip
        if step % 100 == 0:
            sink.log(
                {
                    "kind": "eval", "inner_step": step, "outer_step": outer, "tokens": step * 256,
                    "eval_loss": 1.62 + 4.0 * math.exp(-step / 60), "bytes_sent": sent, "time_s": clock,
                }
            )  # fmt: skip
    if ended:
        summary = {
            "run_id": run_id, "peer": peers[index], "islands": islands, "inner_steps": last,
            "outer_steps": outer, "tokens": last * 256, "eval_loss": 1.62 + 4.0 * math.exp(-last / 60),
            "wan_bytes_sent": sent,
            "wan_bytes_received": sent, "digest": digest, "head": "ef" * 32, "wall_s": clock,
            "rounds_committed": outer, "rounds_failed": len(failed), "parameters": PARAMETERS,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
        sink.log({"kind": "end", "reason": "finished", "summary": summary, "time_s": clock + 0.5})
    sink.close()
