"""Any causal language model of transformers, on the bytes of text: a token is one byte, 0 between documents.

`shared.task.model` is a table of what the model's configuration has, `model_type` among it; or a
`config.json`, or a folder of one with or without weights, named as seen from the recipe's folder. Weights
that are there are trained on; else they are drawn by `shared.seed`. Windows are of `shared.model.context`
tokens; the rest of `[shared.model]` is the GPT's. The only module that imports transformers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowcomm.arguments import show
from lowcomm.data.samples import Batch
from lowcomm.data.shards import VOCAB_SIZE, load_text
from lowcomm.errors import ConfigError
from lowcomm.methods import Spec
from lowcomm.tasks.base import Facts
from lowcomm.tasks.gpt import TextData, readme
from lowcomm.tasks.weights import check_shapes

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SETTING = "shared.task.model"
CONFIG = "config.json"


class HFTask:
    """A `Task`; `hf` below makes it.

    Args:
        config: of the model.
        weights: the folder that they are in; None = they are drawn.
        context: tokens in a window.
    """

    def __init__(
        self, config: PretrainedConfig, weights: Path | None, *, context: int, seed: int, **text: Any
    ) -> None:
        self._config, self._weights = config, weights
        self._context, self._seed, self._text = context, seed, text

    @functools.cached_property
    def facts(self) -> Facts:
        with torch.device("meta"):
            model = _drawn(self._config)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        tied = model.get_input_embeddings() is None or self._config.tie_word_embeddings
        looked_up = 0 if tied else model.get_input_embeddings().weight.numel()
        attention = 12.0 * self._config.num_hidden_layers * self._config.hidden_size * self._context
        return Facts(
            sample="window",
            sample_tokens=self._context,
            parameters=parameters,
            token_flops=6.0 * (parameters - looked_up) + attention,
            blank_loss=math.log(self._config.vocab_size),
            loss_unit="nats per token",
        )

    def make_model(self) -> nn.Module:
        if self._weights is None:
            return cast(nn.Module, _drawn(self._config))
        from transformers import AutoModelForCausalLM

        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                self._weights,
                config=self._config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # of many classes, safetensors' own among them
            raise ConfigError(f"{SETTING}: {self._weights}: {_first_line(error)}") from error
        if report["missing_keys"]:
            raise ConfigError(
                f"{SETTING}: {self._weights}: expected all weights of the model, got none for "
                f"{min(report['missing_keys'])}"
            )
        model.train()
        return cast(nn.Module, model)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        logits: Tensor = model(input_ids=inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.loss(model, batch)}

    def data(self, *, say: bool = True) -> TextData:
        text = load_text(seed=self._seed, say=say, **self._text)
        return TextData(text, context=self._context, seed=self._seed)

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        model = _drawn(self._config)
        check_shapes(anchor, model.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(anchor[name])
        model.save_pretrained(folder)
        words = readme(type(model).__name__, self._context, run_id, step)
        (folder / "README.md").write_text(words, encoding="utf-8")


def hf(
    model: str | Mapping[str, Any],
    sizes: Mapping[str, Any],
    seed: int,
    folder: str = "",
    source: str = "stdlib",
    text_key: str = "text",
    shards: int = 1,
    holdout_fraction: float = 0.0,
) -> HFTask:
    """A causal language model of transformers.

    Args:
        model: see the top of this file.
        sizes: those of `[shared.model]`; only `context` counts.
        folder: of the recipe.

    Raises:
        ConfigError: there is no such model, transformers is not installed, or tokens or windows don't fit.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"shared.task.kind = hf: expected transformers, got {error}; pip install 'lowcomm[hf]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    if isinstance(model, str):
        config, weights = _read(model, folder)
    else:
        config, weights = _of_table(model), None
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{SETTING}: expected a causal language model, got a {config.model_type}")
    if config.vocab_size < VOCAB_SIZE:
        raise ConfigError(
            f"{SETTING}.vocab_size: expected at least {VOCAB_SIZE}, as tokens are bytes, got "
            f"{config.vocab_size}"
        )
    longest, context = getattr(config, "max_position_embeddings", None), sizes["context"]
    if longest is not None and context > longest:
        raise ConfigError(
            f"shared.model.context: expected at most the model's max_position_embeddings = {longest}, "
            f"got {context}"
        )
    text = {
        "source": source,
        "text_key": text_key,
        "shards": shards,
        "holdout_fraction": holdout_fraction,
    }
    return HFTask(config, weights, context=context, seed=seed, **text)


def _of_table(table: Mapping[str, Any]) -> PretrainedConfig:
    from transformers import AutoConfig

    values = dict(table)
    kind = values.pop("model_type", None)
    try:
        found: PretrainedConfig = AutoConfig.for_model(kind, **values)
    except Exception as error:  # what a model's own checks raise is of many classes
        raise ConfigError(f"{SETTING}: model_type = {show(kind)}: {_first_line(error)}") from error
    unknown = sorted(values.keys() - type(found)().to_dict().keys() - found.attribute_map.keys())
    if unknown:
        raise ConfigError(f"{SETTING}.{unknown[0]}: expected a setting of {kind}, got none of it")
    return found


def _read(name: str, folder: str) -> tuple[PretrainedConfig, Path | None]:
    from transformers import AutoConfig

    path = next((each for each in (Path(folder) / name, Path(name)) if name and each.exists()), None)
    if path is None:
        got = show(name) if name else "nothing"
        raise ConfigError(
            f"{SETTING}: expected a table with model_type, a config.json, or a folder of one, got {got}; a "
            f"path is looked for in {folder or Path.cwd()}"
        )
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise ConfigError(f"{SETTING}: {path}: {_first_line(error)}") from error
    return found, path if path.is_dir() and any(path.glob("*.safetensors")) else None


def _drawn(config: PretrainedConfig) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _first_line(error: BaseException) -> str:
    return " ".join(next(iter(str(error).splitlines()), type(error).__name__).split())


SPEC = Spec(
    name="hf",
    make=hf,
    about="any causal language model of transformers (`lowcomm[hf]`), on bytes of text: `model` is a table "
    "with `model_type`, a `config.json`, or a folder with or without weights, as seen from the recipe",
)
