"""Any causal language model of transformers, on bytes of text or on the tokens of a corpus.

`shared.task.model` is a table of what the model's configuration has, `model_type` among it; or a
`config.json`, or a folder of one with or without weights, named as seen from the recipe's folder; or the
name of a model on the Hugging Face hub, which is downloaded once. Weights that are there are trained on; else
they are drawn by `shared.seed`. Windows are of `shared.model.context` tokens; the rest of `[shared.model]` is
the GPT's. The only module that imports transformers.
"""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import textwrap
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from blake3 import blake3
from torch import Tensor, nn

from lowcomm.arguments import show
from lowcomm.data.corpus.manifest import BYTES, Vocabulary
from lowcomm.data.samples import Batch
from lowcomm.errors import ConfigError
from lowcomm.methods import Spec
from lowcomm.tasks.base import Data, Facts
from lowcomm.tasks.gpt import readme
from lowcomm.tasks.text import TextSource
from lowcomm.tasks.weights import check_shapes
from lowcomm.types import Json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SETTING = "shared.task.model"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARD_BYTES = 5 * 10**9
SAID_CHARACTERS = 200
"""Weights above it are cut into several files, as the hub asks for."""
BESIDE = ("generation_config.json",)
"""What a model's folder has beside weights and architecture, and an export takes along."""
DOWNLOADED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_MAKING = threading.Lock()
"""Meanwhile transformers changes what is the whole process's: the default dtype, methods of its classes."""
LOCAL = ("transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "_name_or_path")
"""Of a configuration, what is not the architecture."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from.

    Attributes:
        config: of the model.
        folder: that it was read from; None = the recipe has a table, or it was a file.
        weights: whether the folder has them; else they are drawn.
        dtype: of the weights in training.
        attention: how it is computed; None = as transformers chooses.
    """

    config: PretrainedConfig
    folder: Path | None
    weights: bool
    dtype: torch.dtype = torch.float32
    attention: str | None = None

    def drawn(self, dtype: torch.dtype | None = None) -> Any:
        """The model with drawn weights.

        Raises:
            ConfigError: this kind of attention is not installed, or the model has none of it.
        """
        from transformers import AutoModelForCausalLM

        try:
            with _MAKING:
                return AutoModelForCausalLM.from_config(
                    self.config, dtype=dtype or self.dtype, attn_implementation=self.attention
                )
        except (ImportError, ValueError) as error:
            if self.attention is None:
                raise
            raise ConfigError(f"train.attention = {self.attention}: {first_line(error)}") from error

    def read(self) -> Any:
        """The model with the folder's weights.

        Raises:
            ConfigError: they can't be read, or some are missing.
        """
        from transformers import AutoModelForCausalLM

        try:
            with _MAKING:
                model, report = AutoModelForCausalLM.from_pretrained(
                    self.folder,
                    config=self.config,
                    dtype=self.dtype,
                    attn_implementation=self.attention,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except Exception as error:  # of many classes, safetensors' own among them
            raise ConfigError(f"{SETTING}: {self.folder}: {first_line(error)}") from error
        if report["missing_keys"]:
            raise ConfigError(
                f"{SETTING}: {self.folder}: expected all weights of the model, got none for "
                f"{min(report['missing_keys'])}"
            )
        model.train()
        return model

    def make(self) -> Any:
        """The model that training begins with."""
        return self.read() if self.weights else self.drawn()

    @property
    def agreed(self) -> dict[str, Json]:
        """The architecture, where it does not stand in the recipe."""
        if isinstance(self.config.name_or_path, str) and not self.config.name_or_path:
            return {}
        return {
            f"{SETTING}/{name}": value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for name, value in sorted(self.config.to_diff_dict().items())
            if name not in LOCAL
        }

    def facts(self, model: Any, context: int) -> Facts:
        """Of a model on the meta device, perhaps with adapters."""
        text = self.config.get_text_config()
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = table is None or head is None or head.weight is table.weight
        looked_up = 0 if tied else table.weight.numel()
        # of what is frozen the gradients that go through it, but none of its own
        passes = 6.0 * trained + 4.0 * frozen - (4.0 if frozen else 6.0) * looked_up
        attention = 12.0 * getattr(text, "num_hidden_layers", 0) * text.hidden_size * context
        experts = getattr(text, "num_experts_per_tok", None) is not None
        return Facts(
            sample="window",
            sample_tokens=context,
            parameters=trained,
            token_flops=None if experts else passes + attention,
            blank_loss=math.log(text.vocab_size),
            loss_unit="nats per token",
            agreed=self.agreed,
            loaded=self.weights and not frozen,
        )

    def require_tokenizer(self, vocabulary: Vocabulary) -> None:
        """Let no weights be trained on tokens that mean something else to them.

        Raises:
            ConfigError: the folder has another tokenizer than the corpus.
        """
        if not self.weights or self.folder is None or vocabulary.kind == BYTES:
            return
        path = self.folder / vocabulary.kind
        if path.is_file() and (found := blake3(path.read_bytes()).hexdigest()) != vocabulary.blake3:
            raise ConfigError(
                f"shared.data.manifest: expected a corpus of the model's tokenizer, {path} of blake3 "
                f"{found[:16]}, got one of blake3 {vocabulary.blake3[:16]}; build it with tokenizer.path = "
                f"{self.folder}"
            )

    def write_beside(self, folder: Path) -> None:
        """What the model's folder has for those who use it."""
        for name in BESIDE:
            if self.folder is not None and (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)


class HFTask:
    """A `Task`; `hf` below makes it.

    Args:
        context: tokens in a window.
    """

    def __init__(self, origin: Origin, *, context: int, seed: int, text: TextSource) -> None:
        self.origin, self.context, self._seed, self.text = origin, context, seed, text

    @functools.cached_property
    def facts(self) -> Facts:
        with torch.device("meta"):
            model = self.origin.drawn()
        return self.origin.facts(model, self.context)

    def make_model(self) -> nn.Module:
        return cast(nn.Module, self.origin.make())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets, *positions = batch
        # positions that begin anew are what tells transformers where attention ends
        apart = {"position_ids": positions[0]} if positions else {}
        logits: Tensor = model(input_ids=inputs, use_cache=False, **apart).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": self.loss(model, batch)}

    def data(self, *, say: bool = True) -> Data:
        return self.text.open(context=self.context, seed=self._seed, say=say)

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        model = self.origin.drawn(torch.float32)
        check_shapes(anchor, model.named_parameters())
        copy_into(model, anchor)
        self.write(model, folder, run_id=run_id, step=step)

    def write(self, model: Any, folder: Path, *, run_id: str, step: int) -> None:
        """A folder that `from_pretrained` reads."""
        vocabulary = self.text.vocabulary
        if not self.origin.weights:  # drawn ones know no tokens but those of the text
            for settings in (model.config, model.generation_config):
                settings.bos_token_id = settings.eos_token_id = vocabulary.separator
        model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
        self.origin.write_beside(folder)
        self.text.write_tokenizer(folder)
        words = readme(type(model).__name__, vocabulary, self.context, run_id, step)
        (folder / "README.md").write_text(words, encoding="utf-8")


@torch.no_grad()
def copy_into(model: nn.Module, anchor: Mapping[str, Tensor]) -> None:
    """Give the model's parameters the values of an anchor of them."""
    for name, parameter in model.named_parameters():
        if name in anchor:
            parameter.copy_(anchor[name])


def hf(
    model: str | Mapping[str, Any],
    sizes: Mapping[str, Any],
    seed: int,
    text: TextSource,
    dtype: str = "fp32",
    attention: str = "auto",
    folder: str = "",
) -> HFTask:
    """A causal language model of transformers.

    Args:
        model: see the top of this file.
        sizes: those of `[shared.model]`; only `context` counts.
        dtype: of the weights, `fp32` or `bf16`.
        attention: `auto`, or one of transformers' kinds.
        folder: of the recipe.

    Raises:
        ConfigError: there is no such model, transformers is not installed, or tokens or windows don't fit.
    """
    context = sizes["context"]
    found = _find(model, folder, dtype, attention, context)
    found.require_tokenizer(text.vocabulary)
    text.require_room(found.config.get_text_config().vocab_size, f"{SETTING}.vocab_size")
    return HFTask(found, context=context, seed=seed, text=text)


def _find(model: str | Mapping[str, Any], folder: str, dtype: str, attention: str, context: int) -> Origin:
    """The model that a recipe names.

    Raises:
        ConfigError: see `hf`.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"shared.task.kind = hf: expected transformers, got {error}; pip install 'lowcomm[hf]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    config, found = _of_table(model) if isinstance(model, Mapping) else _read(model, folder)
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ConfigError(f"{SETTING}: expected a causal language model, got a {config.model_type}")
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise ConfigError(
            f"shared.model.context: expected at most the model's max_position_embeddings = {longest}, "
            f"got {context}"
        )
    return Origin(
        config=config,
        folder=found,
        weights=found is not None and any(found.glob("*.safetensors")),
        dtype=DTYPES[dtype],
        attention=None if attention == "auto" else attention,
    )


def _of_table(table: Mapping[str, Any]) -> tuple[PretrainedConfig, None]:
    from transformers import AutoConfig

    values = dict(table)
    kind = values.pop("model_type", None)
    try:
        found: PretrainedConfig = AutoConfig.for_model(kind, **values)
    except Exception as error:  # what a model's own checks raise is of many classes
        said = textwrap.shorten(first_line(error), SAID_CHARACTERS, placeholder=" ...")  # may name all models
        raise ConfigError(f"{SETTING}: model_type = {show(kind)}: {said}") from error
    # what it doesn't know it keeps as it is; older names (rope_scaling) it takes apart
    kept = values.keys() & found.to_dict().keys()
    unknown = sorted(kept - type(found)().to_dict().keys() - found.attribute_map.keys())
    if unknown:
        raise ConfigError(f"{SETTING}.{unknown[0]}: expected a setting of {kind}, got none of it")
    return found, None


def _read(name: str, folder: str) -> tuple[PretrainedConfig, Path | None]:
    from transformers import AutoConfig

    path = next((each for each in (Path(folder) / name, Path(name)) if name and each.exists()), None)
    if path is None:
        path = _download(name, folder)
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise ConfigError(f"{SETTING}: {path}: {first_line(error)}") from error
    return found, path if path.is_dir() else None


def _download(name: str, folder: str) -> Path:
    """The folder of a model of the hub, in the hub's own cache.

    Raises:
        ConfigError: the name is none of the hub, or it does not answer and the cache has nothing of it.
    """
    got = show(name) if name else "nothing"
    expected = (
        f"{SETTING}: expected a table with model_type, a config.json, a folder of one, or the name of a "
        f"model on the Hugging Face hub, got {got}; a path is looked for in {folder or Path.cwd()}"
    )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(expected)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(DOWNLOADED)))
    except Exception as error:  # of many classes: the network's, the hub's
        raise ConfigError(f"{expected}; the hub: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, as a part of one line."""
    return " ".join(next(iter(str(error).splitlines()), type(error).__name__).split())


SPEC = Spec(
    name="hf",
    make=hf,
    about="any causal language model of transformers (`lowcomm[hf]`), on bytes or tokens: `model` is a table "
    "with `model_type`, a `config.json`, a folder with or without weights, as seen from the recipe, or a "
    "name on the hub",
)
