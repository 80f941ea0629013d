"""What wandb and TensorBoard chart, under which names: `island/...` and `swarm/...`."""

from __future__ import annotations

from lowcomm.metrics.base import Record
from lowcomm.types import Json

ISLAND_KEYS = (
    "loss", "lr", "grad_norm", "grad_norm_max", "tokens", "tokens_per_s", "mfu", "host_memory_bytes",
    "device_memory_bytes", "peers", "compute_s", "data_s", "wait_s", "transfer_s", "bytes_sent",
    "bytes_received", "wall_s",
)  # fmt: skip
SWARM_KEYS = (
    "outer_step", "fragment", "committed", "bytes_sent", "bytes_received", "compression_ratio", "round_s",
    "form_s", "transfer_s", "wait_s", "round_tokens", "total_tokens",
    "pseudo_gradient_norm", "mean_norm", "cosine", "digest",
)  # fmt: skip


def charted(record: Record) -> dict[str, Json]:
    """What of a record is charted, by its name there; `inner_step` is the abscissa. May be empty."""
    kind = record.get("kind")
    if kind == "train":
        values = {f"island/{key}": record[key] for key in ISLAND_KEYS if record.get(key) is not None}
        values["swarm/outer_step"] = record.get("outer_step")
        if "swarm_tokens" in record:
            values["swarm/tokens"] = record["swarm_tokens"]
    elif kind == "round":
        values = {f"swarm/{key}": record[key] for key in SWARM_KEYS if record.get(key) is not None}
        participants = record.get("participants")
        values["swarm/participants"] = len(participants) if isinstance(participants, (list, tuple)) else 0
    elif kind == "eval":
        values = {f"swarm/{key}": value for key, value in record.items() if key.startswith("eval_")}
        values["island/tokens"] = record.get("tokens")
    else:
        return {}
    values["inner_step"] = record.get("inner_step")
    return values
