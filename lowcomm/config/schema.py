"""Every setting of a run, as frozen dataclasses; docs/configuration.md is generated from them.

`[shared]`, and what is marked as `run_wide` elsewhere, must be equal on all islands of a run: it is
compared when a peer joins. All the rest is local to one island. Units stand in the names; ranges and
choices stand beside the fields and are checked by `lowcomm.config.load`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lowcomm import codecs, exchanges
from lowcomm.algorithms import aggregation, outer_optimizers
from lowcomm.algorithms.learning_rate import SCHEDULES
from lowcomm.tasks import METHODS as TASKS


def setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    run_wide: bool = False,
    table: bool = False,
) -> Any:
    """A field with its one line of documentation and its inclusive range or choices.

    Args:
        run_wide: all islands of a run must agree on it, although it stands outside of `[shared]`.
        table: may be a table, too, which is kept as its canonical JSON.
    """
    metadata = {
        "doc": doc,
        "low": low,
        "high": high,
        "choices": choices,
        "run_wide": run_wide,
        "table": table,
    }
    if isinstance(default, (list, dict)):
        raise TypeError("use a tuple")
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What is trained."""

    kind: str = setting(
        "gpt",
        f"{', '.join(TASKS.names)}, or module:function, which makes a task of your own and is looked for in "
        "the recipe's folder first",
    )
    model: str = setting(
        "",
        "of hf and peft a table of its settings, a config.json, a folder, or a name on the Hugging Face hub; "
        "of a function of your own a table of what it takes; gpt has [shared.model]",
        table=True,
    )
    adapter: str = setting("", "peft: a table of what peft's LoraConfig takes, such as {r = 8}", table=True)
    dtype: Literal["fp32", "bf16"] = setting(
        "fp32",
        "of hf and peft, type of the model's weights; adapters are fp32; what is exchanged always is",
        choices=("fp32", "bf16"),
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The sizes of the GPT; `dim` divides by `heads` into an even head size, `heads` by `kv_heads`."""

    dim: int = setting(160, "width of the residual stream", low=8, high=65_536)
    layers: int = setting(3, "number of transformer blocks", low=1, high=1_000)
    heads: int = setting(5, "attention heads", low=1, high=1_024)
    kv_heads: int = setting(5, "key/value heads (fewer than heads = grouped queries)", low=1, high=1_024)
    ffn_dim: int = setting(448, "width of the SwiGLU feed-forward layer", low=8, high=1_048_576)
    context: int = setting(128, "tokens in one training window", low=8, high=1_048_576)
    rope_theta: float = setting(10_000.0, "base of the rotary frequencies", low=1.0)
    tie_embeddings: bool = setting(False, "share the embedding with the output layer")


@dataclass(frozen=True, kw_only=True)
class InnerConfig:
    """The inner optimizer and its learning rate, which follows the swarm's global progress."""

    name: Literal["muon", "adamw"] = setting(
        "muon", "muon = Muon for hidden matrices and AdamW for the rest", choices=("muon", "adamw")
    )
    lr: float = setting(2e-3, "peak learning rate (of Muon, or of AdamW if that is all)", low=0.0, high=10.0)
    adamw_lr: float = setting(2e-3, "peak learning rate of AdamW beside Muon", low=0.0, high=10.0)
    muon_momentum: float = setting(0.95, "momentum of Muon", low=0.0, high=0.9999)
    beta1: float = setting(0.9, "AdamW's first moment decay", low=0.0, high=0.9999)
    beta2: float = setting(0.95, "AdamW's second moment decay", low=0.0, high=0.999999)
    weight_decay: float = setting(0.0, "decoupled weight decay", low=0.0, high=10.0)
    warmup_fraction: float = setting(
        0.05, "part of train.steps or train.tokens with rising learning rate", low=0.0, high=1.0
    )
    schedule: str = setting(
        "cosine",
        "from the warm-up to the end of the run; wsd = stays at the peak, then falls as 1 - sqrt",
        choices=SCHEDULES,
    )
    decay_fraction: float = setting(
        0.2, "wsd: last part of train.steps or train.tokens, with falling learning rate", low=0.0, high=1.0
    )
    final_lr_fraction: float = setting(
        0.1, "last learning rate / peak, at the end; constant has none", low=0.0, high=1.0
    )
    clip_norm: float = setting(1.0, "gradient norm is clipped here; 0 = off", low=0.0)


@dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """The outer optimizer that steps on the mean pseudo-gradient; auto = as the chosen one has it by default,
    and the only value of a parameter that it does not have.
    """  # fmt: skip

    name: str = setting("nesterov", "outer optimizer", choices=outer_optimizers.METHODS.names)
    lr: float | Literal["auto"] = setting(
        "auto",
        "outer learning rate; auto = of nesterov from 1 to 0.7 as the momentum grows",
        low=0.0,
        high=10.0,
    )
    momentum: float | Literal["auto"] = setting(
        "auto",
        "outer Nesterov momentum; 0 = plain averaging; auto = from 0 to 0.9, half of it at outer step 51",
        low=0.0,
        high=0.9999,
    )
    beta1: float | Literal["auto"] = setting("auto", "Adam's first moment decay", low=0.0, high=0.9999)
    beta2: float | Literal["auto"] = setting("auto", "Adam's second moment decay", low=0.0, high=0.999999)
    eps: float | Literal["auto"] = setting(
        "auto", "added to the root of Adam's second moment", low=1e-12, high=10.0
    )
    beta: float | Literal["auto"] = setting(
        "auto", "Schedule-Free's weight of the average in the anchor", low=0.0, high=1.0
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """When fragments are exchanged."""

    inner_steps: int = setting(30, "inner steps between two rounds of a fragment (H)", low=1, high=1_000_000)
    num_fragments: int = setting(1, "fragments, exchanged in turn", low=1, high=100_000)
    delay: int | Literal["auto"] = setting(
        0, "inner steps between a round's start and the use of its result (tau); auto = as measured", low=0
    )
    merge_alpha: float = setting(
        0.0, "weight kept on the local parameters when the new anchor is merged", low=0.0, high=1.0
    )
    eager: bool = setting(
        False, "train on from a preview of the outer step while a round is under way; with a delay only"
    )
    fragmenting: Literal["balanced", "strided"] = setting(
        "balanced", "how tensors are put into fragments", choices=("balanced", "strided")
    )
    mode: Literal["fixed", "matched", "timed"] = setting(
        "fixed",
        "an island takes H steps, or what fits into the fastest one's H, or into round_s or round_tokens",
        choices=("fixed", "matched", "timed"),
    )
    round_s: float = setting(
        0.0, "timed: seconds of training between two rounds of a fragment; 0 = round_tokens", low=0.0
    )
    round_tokens: int = setting(
        0, "timed: tokens of all islands between two rounds of a fragment; 0 = round_s", low=0
    )


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """How pseudo-gradients are compressed."""

    name: str = setting("int8", "codec", choices=codecs.NAMES)
    error_feedback: Literal["auto", "on", "off"] = setting(
        "auto",
        "add to the next round what the encoding lost in this one; auto = on for 2bit and topk",
        choices=("auto", "on", "off"),
    )
    error_feedback_decay: float = setting(
        -1.0, "the residual is multiplied by it; -1 = 0.95 for topk, 1 for the others", low=-1.0, high=1.0
    )


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """What a reducer makes of the contributions to its part."""

    name: str = setting(
        "mean",
        "mean = weighted by tokens; norm_preserving for 8 islands and more; the others against liars",
        choices=aggregation.NAMES,
    )
    faulty: int = setting(1, "liars that trimmed_mean and krum tolerate", low=1, high=1_000)
    norm_limit: float = setting(
        20.0, "a contribution of more than so many median norms is rejected; 0 = never", low=0.0
    )
    clip_norm: float = setting(
        0.0, "contributions are scaled down to so many median norms; 0 = never", low=0.0
    )
    max_tokens: int = setting(
        0, "tokens that one island can train between two rounds; more is rejected; 0 = any number", low=0
    )
    max_rejections: int = setting(3, "after so many rejections in a row a peer is out", low=1, high=1_000)
    ban_s: float = setting(
        3_600.0, "so long it is out; twice as long each further time; 0 = until the others restart", low=0.0
    )


@dataclass(frozen=True, kw_only=True)
class RoundConfig:
    """Who must take part, and how long anybody waits."""

    min_participants: int = setting(1, "fewer than this never commit", low=1, high=100_000)
    deadline_s: float = setting(
        60.0,
        "longest wait for peers that are alive but not ready; more than delay inner steps take",
        low=0.1,
        high=86_400,
    )
    partition: Literal["continue", "majority"] = setting(
        "continue",
        "majority: only more than half of the last participants go on; continue: also whoever is left, once "
        "the others were not heard for three leases",
        choices=("continue", "majority"),
    )
    operator: str = setting(
        "",
        "peer id whose key, with majority, says who decides where most participants are lost for good; "
        "`lowcomm recover` makes it; empty = each island's own operator says so for it",
    )


@dataclass(frozen=True, kw_only=True)
class AccessConfig:
    """Who may be in the run."""

    mode: Literal["open", "invite", "allowlist"] = setting(
        "open",
        "open = whoever knows the run; invite = with a token of the owner; allowlist = exchange.allow",
        choices=("open", "invite", "allowlist"),
    )
    owner: str = setting("", "peer id that signs the tokens, as `lowcomm invite` prints it")


@dataclass(frozen=True, kw_only=True)
class SharedDataConfig:
    """How all islands divide the text."""

    same: bool = setting(
        True,
        "all islands hold the same documents, which is checked, and each trains on a shard; false = each has "
        "its own, and trains on all of them unless data.shard is set",
    )
    shards: int = setting(
        8, "parts the documents are dealt into; at most this many islands", low=1, high=1_000_000
    )
    holdout_fraction: float = setting(0.05, "part of the documents kept for evaluation", low=0.0, high=0.9)
    manifest: str = setting(
        "",
        "digest of a corpus's manifest, as `lowcomm data build` prints it: then gpt and hf train on its "
        "tokens, and what it holds out is evaluated; empty = bytes of files",
    )
    unit_samples: int = setting(
        0,
        "samples of a corpus that an island leases at a time, in the order of the data; each is credited "
        "once. 0 = by the number of its samples. With data.shard an island has a fixed part instead",
        low=0,
        high=1 << 30,
    )
    global_batch_tokens: int = setting(
        0,
        "tokens (samples, where these are counted) of an inner step of all islands: each accumulates "
        "an equal part, so more of it where fewer islands are there; 0 = train.grad_accumulation says it",
        low=0,
        high=1 << 40,
    )
    packing: Literal["across", "apart"] = setting(
        "across",
        "attention in a window of a corpus: across the borders of documents, or within each",
        choices=("across", "apart"),
    )


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """What must be equal on all islands of a run."""

    run_id: str = setting("lowcomm", "name of the run, 1 to 64 of A-Z a-z 0-9 . _ -; other runs are refused")
    seed: int = setting(0, "seeds the initial weights and the order of the data", low=0, high=2**31 - 1)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    inner: InnerConfig = field(default_factory=InnerConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    round: RoundConfig = field(default_factory=RoundConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    data: SharedDataConfig = field(default_factory=SharedDataConfig)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The work of one island."""

    steps: int = setting(
        3_000, "inner steps of the run; a late joiner starts at the swarm's step", low=1, run_wide=True
    )
    tokens: int = setting(
        0,
        "tokens of all islands that end the run, in place of steps; the learning rate follows; 0 = off",
        low=0,
        run_wide=True,
    )
    batch_size: int = setting(2, "windows per rank in one forward pass", low=1)
    grad_accumulation: int = setting(1, "forward passes per inner step", low=1)
    micro_batch: int | Literal["auto"] = setting(
        0,
        "cut the same windows otherwise: so many per forward pass; auto = as many as fit into the device's "
        "memory, with activation checkpointing where one doesn't; 0 = as batch_size says",
        low=0,
    )
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto",
        "auto = bf16 autocast on CUDA devices that have it, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    attention: str = setting(
        "auto", "of hf and peft: auto, eager, sdpa, flash_attention_2, or what else transformers has"
    )
    compile: bool = setting(False, "torch.compile for each block of the model, or for all of one without")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    task_folder: str = setting(
        "",
        "folder in which what shared.task names is looked for first; empty = that of the recipe, which is "
        "noted here",
    )
    threads: int = setting(0, "CPU threads of torch; 0 = leave as it is", low=0, high=4_096)
    log_every: int = setting(10, "inner steps between two metric lines", low=1)
    eval_every: int = setting(
        0, "outer steps between two evaluations of the anchor; 0 = at the end only", low=0
    )
    eval_windows: int = setting(512, "windows of held-out text in an evaluation", low=1)
    checkpoint_every: int = setting(10, "outer steps between two checkpoints; 0 = at the end only", low=0)
    keep_checkpoints: int = setting(3, "newest checkpoints that are kept", low=2, high=1_000)
    keep_updates: int = setting(
        0, "encoded updates kept per fragment, for `lowcomm ledger verify` to replay", low=0
    )


@dataclass(frozen=True, kw_only=True)
class IslandConfig:
    """The ranks inside one island, and what it is called."""

    name: str = setting(
        "", "name in status, console, report and wandb, 1 to 64 of A-Z a-z 0-9 . _ -; empty = this host's"
    )
    engine: Literal["auto", "plain", "ddp", "fsdp2", "deepspeed"] = setting(
        "auto",
        "auto = ddp under torchrun with more than one rank, else plain; fsdp2 and deepspeed shard the model",
        choices=("auto", "plain", "ddp", "fsdp2", "deepspeed"),
    )
    replicas: int = setting(1, "fsdp2: copies of the sharded model (HSDP); divides the ranks", low=1)
    activation_checkpointing: bool = setting(
        False, "keep only the inputs of each block, and recompute it in the backward pass"
    )
    offload: Literal["none", "optimizer", "all"] = setting(
        "none",
        "what stays on the host: deepspeed the optimizer's state or also the parameters; fsdp2 none or all",
        choices=("none", "optimizer", "all"),
    )
    zero_stage: int = setting(
        3, "deepspeed: what is sharded; 1 optimizer, 2 and gradients, 3 and parameters", low=1, high=3
    )
    deepspeed_config: str = setting(
        "", "deepspeed: file of a whole ds_config (JSON), which sets the ZeRO stage"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where this island's text comes from."""

    source: str = setting(
        "stdlib",
        "stdlib = Python's own sources; or a folder, file or glob of text or JSON lines, compressed or not; "
        "with shared.data.manifest the corpus, a folder or a URL (https, s3, gs, ...)",
    )
    text_key: str = setting("text", "the key that holds the text in JSON lines")
    cache_gb: float = setting(
        20.0,
        "10^9 bytes kept of a corpus behind a URL, in ~/.cache/lowcomm, for all ranks of a host",
        low=0.0,
    )
    shard: int = setting(-1, "this island's part of the documents; -1 = one that no live peer has", low=-1)


@dataclass(frozen=True, kw_only=True)
class ExchangeConfig:
    """How this island reaches the others."""

    kind: str = setting(
        "swarm", "swarm = hivemind over a WAN; process_group = gloo on a LAN", choices=exchanges.METHODS.names
    )
    initial_peers: tuple[str, ...] = setting((), "addresses to join through (multiaddr or RUN_ID@multiaddr)")
    listen: tuple[str, ...] = setting(
        ("/ip4/127.0.0.1/tcp/0",), "multiaddrs to listen on; port 0 = any free port"
    )
    announce: tuple[str, ...] = setting((), "multiaddrs to tell others instead, where a router maps the port")
    identity: str = setting("", "file of the peer's private key; empty = inside the run folder")
    token_file: str = setting("", "file with this peer's token, where shared.access.mode = invite")
    allow: tuple[str, ...] = setting((), "peer ids that are let in, where shared.access.mode = allowlist")
    streams: int = setting(4, "parallel streams for bulk data to each peer", low=1, high=16)
    chunk_bytes: int = setting(1 << 20, "bytes of one piece of a transfer", low=1_024, high=4 << 20)
    snapshot_mbit_s: float = setting(
        100.0, "upload rate for snapshots handed to joiners, so that training goes on; 0 = unlimited", low=0.0
    )
    relay: bool = setting(False, "reach and be reached through relays where there is no direct way")
    nat_port_map: bool = setting(False, "ask the router to map the port (UPnP)")
    found: bool = setting(
        False, "go on at once where nobody is there, also if this island knew others when it stopped"
    )
    expected_peers: int = setting(1, "islands to wait for before the first step, this one included", low=1)
    gather_timeout_s: float = setting(120.0, "longest wait for them", low=0.0)
    heartbeat_s: float = setting(1.0, "seconds between two signs of life", low=0.05, high=3_600)
    lease_s: float = setting(
        5.0, "a peer that is silent for so long has left the electorate", low=0.2, high=86_400
    )
    group_address: str = setting("", "host:port of rank 0's store, for process_group")
    group_listen: str = setting(
        "",
        "this machine's address that the other ranks reach, for process_group; empty = the one on the way to "
        "group_address",
    )
    group_rank: int = setting(0, "this island's rank, for process_group", low=0)
    group_size: int = setting(1, "number of islands, for process_group", low=1)


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Where the run can be followed. metrics.jsonl in the run folder is always written."""

    wandb: Literal["auto", "online", "offline", "off"] = setting(
        "auto",
        "auto = as WANDB_MODE says, else online after `wandb login`, else offline; WANDB_MODE=disabled and "
        "WANDB_DISABLED=true switch it off whatever stands here",
        choices=("auto", "online", "offline", "off"),
    )
    wandb_project: str = setting("lowcomm", "wandb project")
    wandb_entity: str = setting("", "wandb team or user; empty = the default")
    tensorboard: bool = setting(
        False, "charts for TensorBoard in the run folder; needs the extra lowcomm[tensorboard]"
    )
    console: Literal["auto", "progress", "plain", "off"] = setting(
        "auto",
        "auto = a progress bar on a terminal, else plain lines",
        choices=("auto", "progress", "plain", "off"),
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """One island's whole configuration."""

    out: str = setting("runs/lowcomm", "run folder; a folder that holds this run already is resumed")
    shared: SharedConfig = field(default_factory=SharedConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    island: IslandConfig = field(default_factory=IslandConfig)
    data: DataConfig = field(default_factory=DataConfig)
    exchange: ExchangeConfig = field(default_factory=ExchangeConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
