"""The settings of a chaos run: inner steps of milliseconds, and a round about every second."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowcomm.config.load import load_config, to_toml
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError, StorageError

NEWCOMERS = 4
"""Parts of the text that are kept for islands that join while the run goes on."""
LEAST_ISLANDS = 3
"""With `partition = "majority"` two islands can't spare one."""

RECIPE = "recipe.toml"


@dataclass(frozen=True, kw_only=True)
class ChaosPlan:
    """One chaos run.

    Attributes:
        config: of every island; `recipe` is the file that they read it from.
        islands: how many there are when nothing is wrong.
        out: the folder of the run.
    """

    config: Config
    recipe: Path
    islands: int
    out: Path

    @property
    def batch_tokens(self) -> int:
        """Tokens of one inner step of one island."""
        train = self.config.train
        return train.batch_size * train.grad_accumulation * self.config.shared.model.context

    @property
    def partition(self) -> str:
        """Who may commit: what must hold depends on it."""
        return self.config.shared.round.partition

    @property
    def hang_s(self) -> float:
        """So long, at most, may islands that are well go without a commit: after four deadlines a round
        is given up, and whoever froze in it is heard of a lease later."""
        return 4 * self.config.shared.round.deadline_s + 2 * self.config.exchange.lease_s


def make_plan(
    out: Path, islands: int, seed: int, overrides: Sequence[str] = (), *, partition: str = "majority"
) -> ChaosPlan:
    """Write the recipe of a chaos run into `out`.

    The learning rate is constant, so that a run with faults and one without can be compared at equal
    tokens. int4 with error feedback, so that there is a residual to conserve.

    Raises:
        ConfigError: an override is wrong, or there are too few islands.
        StorageError: `out` can't be written.
    """
    if islands < LEAST_ISLANDS:
        raise ConfigError(
            f"--islands {islands}: expected at least {LEAST_ISLANDS}: a majority of the last participants "
            "commits, and two islands can't spare one"
        )
    settings = [
        f"shared.run_id=chaos-{seed}",
        f"shared.seed={seed}",
        f"shared.data.shards={islands + NEWCOMERS}",
        *(f"shared.model.{key}={value}" for key, value in _MODEL.items()),
        *_SETTINGS,
        f"shared.round.partition={partition}",
        f"data.source={_text()}",
    ]
    config = load_config(None, [*settings, *overrides])
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise StorageError(f"{out}: expected a new or empty folder for a chaos run; choose another --out")
        recipe = out / RECIPE
        recipe.write_text(to_toml(config), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{out}: can't be used: {error.strerror or error}") from error
    return ChaosPlan(config=config, recipe=recipe, islands=islands, out=out)


_MODEL = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "ffn_dim": 64, "context": 64}
_SETTINGS = (
    "shared.inner.warmup_fraction=0",
    "shared.inner.final_lr_fraction=1",
    "shared.schedule.inner_steps=40",
    "shared.codec.name=int4",
    "shared.codec.error_feedback=on",
    "shared.round.deadline_s=10",
    "train.steps=100000000",
    "train.batch_size=4",
    "train.threads=1",
    "train.device=cpu",
    "train.log_every=1",
    "train.eval_every=5",
    "train.eval_windows=64",
    "train.checkpoint_every=1",
    "metrics.wandb=off",
    "metrics.console=off",
)


def _text() -> str:
    """A part of Python's own sources: every start reads it."""
    return str(Path(sysconfig.get_path("stdlib")) / "[a-h]*.py")
