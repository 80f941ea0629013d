"""Tiny models of transformers in the tables that a recipe takes, and recipes of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lowcomm import exchanges
from lowcomm.clock import SystemClock
from lowcomm.config.load import load_config
from lowcomm.config.schema import Config
from lowcomm.errors import JoinRefusedError
from lowcomm.outer.loop import OuterLoop
from lowcomm.storage.checkpoint import Checkpoints, saved_fragments
from lowcomm.training.build import build_island, build_model, build_outer_loop, build_task
from lowcomm.training.opening import agreement
from lowcomm.types import PeerId
from tests.training.islands import make_config

LLAMA = (
    "{model_type='llama', vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2, "
    "num_attention_heads=2, max_position_embeddings=16, tie_word_embeddings=false}"
)
GPT2 = (
    "{model_type='gpt2', vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=16}"  # tied, dropout 0.1
)
QWEN2 = LLAMA.replace("'llama'", "'qwen2', num_key_value_heads=1")
QWEN3 = LLAMA.replace("'llama'", "'qwen3', num_key_value_heads=1, head_dim=12").replace("=false", "=true")
MODELS = {"llama": LLAMA, "gpt2": GPT2, "qwen2": QWEN2, "qwen3": QWEN3}

LORA = (LLAMA, "shared.task.kind=peft", "shared.task.adapter={r=2, lora_dropout=0.1}")
MODELS_AND_LORA = {
    **{name: (model,) for name, model in MODELS.items()},
    "lora": LORA,
    "lora, bf16": (*LORA, "shared.task.dtype=bf16"),
}
"""The overrides of a recipe."""


def recipe(folder: Path, model: str, *overrides: str) -> Config:
    """Two islands' small recipe of a model, in two fragments."""
    kind = ("shared.task.kind=hf", f"shared.task.model={model}", "shared.inner.name=adamw")
    return make_config(folder, *kind, "shared.schedule.num_fragments=2", *overrides)


def anchor_of(run: Path) -> dict[str, Tensor]:
    """What the newest checkpoint has of it."""
    checkpoints, anchor = Checkpoints(run / "checkpoints", keep=4), {}
    fragments = load_config(run / "config.toml").shared.schedule.num_fragments
    for saved in saved_fragments(checkpoints, checkpoints.steps()[-1], fragments):
        anchor.update(saved["tensors"])
    return anchor


def made(config: Config) -> nn.Module:
    """The model that a recipe begins with."""
    return build_model(config, build_task(config))


def refusal(founder: Config, joiner: Config) -> str:
    """What an island is told that joins the other one's run; empty if it may."""
    hub = exchanges.hub()

    def loop(config: Config, name: str) -> OuterLoop:
        task, model = build_task(config), made(config)
        agreed = agreement(task.facts, model)
        island = build_island(config, model, torch.device("cpu"))
        run_id = config.shared.run_id
        exchange = exchanges.loopback(hub, run_id=run_id, peer_id=PeerId(name), founder=name == "founder")
        return build_outer_loop(config, island, exchange, folder=None, clock=SystemClock(), agreed=agreed)

    with loop(founder, "founder"):
        try:
            with loop(joiner, "joiner"):
                return ""
        except JoinRefusedError as error:
            return str(error)
