"""LoRA on a causal language model of transformers: only the adapters are trained, exchanged and saved.

Hu et al. 2021 (arXiv:2106.09685): beside a frozen W stands B A, of rank r, and the layer computes
W x + (alpha / r) B A x; B begins with zeros. `shared.task.model` is the model as in hf.py,
`shared.task.adapter` a table of what peft's LoraConfig takes. Islands compare the digest of what is frozen.
The export is what peft writes: `adapter_model.safetensors` and `adapter_config.json`, or, merged, a model.
The only module that imports peft.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lowcomm.arguments import show
from lowcomm.errors import ConfigError
from lowcomm.methods import Spec
from lowcomm.tasks.base import Facts
from lowcomm.tasks.hf import HFTask, copy_into, first_line, hf
from lowcomm.tasks.text import TextSource
from lowcomm.tasks.weights import check_shapes

SETTING = "shared.task.adapter"
NAMES_SHOWN = 24


class PeftTask:
    """A `Task`; `peft` below makes it.

    Args:
        base: whose model is adapted; data and loss are its own.
        adapter: a LoraConfig's values.
    """

    def __init__(self, base: HFTask, adapter: Mapping[str, Any]) -> None:
        self._base, self._adapter = base, dict(adapter)
        self.loss, self.evaluate, self.data = base.loss, base.evaluate, base.data

    @functools.cached_property
    def facts(self) -> Facts:
        return self._base.origin.facts(self._on_meta(), self._base.context)

    def make_model(self) -> nn.Module:
        return cast(nn.Module, self._adapted(self._base.make_model()))

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        model = self._on_meta()
        _check(model, anchor)
        model.save_pretrained(folder, state_dict=dict(anchor), save_embedding_layers=False)
        self._base.text.write_tokenizer(folder)
        (folder / "README.md").write_text(self._readme(run_id, step), encoding="utf-8")

    def export_merged(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        """Write the whole model, with the adapters added to its weights.

        Raises:
            CheckpointError: the anchor is of other adapters.
        """
        model = self._adapted(self._base.make_model().float())
        _check(model, anchor)
        copy_into(model, anchor)
        self._base.write(model.merge_and_unload(), folder, run_id=run_id, step=step)

    def _on_meta(self) -> Any:
        with torch.device("meta"):
            return self._adapted(self._base.origin.drawn())

    def _adapted(self, base: Any) -> Any:
        """The model with adapters, drawn by torch's random numbers.

        Raises:
            ConfigError: a setting is unknown or wrong, or a target matches nothing.
        """
        from peft import LoraConfig, get_peft_model

        known = {field.name for field in fields(LoraConfig)}
        for name in self._adapter:
            if name not in known:
                raise ConfigError(f"{SETTING}.{name}: expected a setting of LoraConfig, got none of it")
        named = self._adapter.get("target_modules")
        for target in named if isinstance(named, list) else ():
            if not any(name == target or name.endswith(f".{target}") for name, _ in base.named_modules()):
                raise ConfigError(_no_target(show(target), base))
        try:
            return get_peft_model(base, LoraConfig(**{"task_type": "CAUSAL_LM", **self._adapter}))
        except Exception as error:  # ValueError, TypeError, KeyError, as it comes
            if "target" in str(error).lower():
                raise ConfigError(_no_target(show(named), base)) from error
            raise ConfigError(f"{SETTING}: {first_line(error)}") from error

    def _readme(self, run_id: str, step: int) -> str:
        base = self._base.origin.config.name_or_path
        loaded = f'"{base}"' if base else '"path/to/the/model"  # the one that the run began with'
        return f"""---
library_name: peft
tags: [lowcomm, lora]
---

# {run_id}

LoRA adapters of run `{run_id}` after {step} inner steps, trained with lowcomm on windows of
{self._base.context} tokens.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({loaded})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""


def _check(model: nn.Module, anchor: Mapping[str, Tensor]) -> None:
    check_shapes(anchor, ((name, p) for name, p in model.named_parameters() if p.requires_grad))


def _no_target(got: str, base: nn.Module) -> str:
    """What to say of targets that match nothing; with the names of what could be one."""
    leaves = (
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if name and not list(module.children()) and getattr(module, "weight", None) is not None
    )
    names = list(dict.fromkeys(name for name in leaves if not name.isdigit()))
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return (
        f"{SETTING}.target_modules: expected names of the model's modules, got {got}, which match none; its "
        f"modules are {shown}"
    )


def peft(
    model: str | Mapping[str, Any],
    adapter: Mapping[str, Any],
    sizes: Mapping[str, Any],
    seed: int,
    text: TextSource,
    dtype: str = "fp32",
    attention: str = "auto",
    folder: str = "",
) -> PeftTask:
    """LoRA on a causal language model of transformers.

    Raises:
        ConfigError: see `hf`; or peft is not installed.
    """
    if find_spec("peft") is None:
        raise ConfigError(
            "shared.task.kind = peft: expected peft, which is not installed; pip install 'lowcomm[peft]'"
        )
    base = hf(model, sizes, seed, text, dtype, attention, folder)
    return PeftTask(base, adapter)


SPEC = Spec(
    name="peft",
    make=peft,
    about="LoRA (`lowcomm[peft]`) on a model as of hf: only adapters are trained and exchanged; `adapter` is "
    "a table of what peft's LoraConfig takes",
)
