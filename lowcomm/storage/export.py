"""Export the anchor of a checkpoint as a Llama in Hugging Face's layout.

`model.safetensors` holds the fp32 anchor under the names that the model has anyway, `config.json`
makes `transformers.AutoModelForCausalLM.from_pretrained` build a `LlamaForCausalLM` of its sizes,
and `README.md` says what a token is: a byte, 0 standing between documents.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lowcomm.config.load import load_config
from lowcomm.config.schema import Config, ModelConfig
from lowcomm.errors import CheckpointError, StorageError
from lowcomm.models.gpt import GPT, INIT_STD, RMS_EPSILON, GPTShape
from lowcomm.storage.checkpoint import Checkpoints, saved_fragments
from lowcomm.storage.files import io_reason, sync_folder
from lowcomm.types import Json

WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"
EMBEDDING = "model.embed_tokens.weight"
SEPARATOR = 0
"""The token between two documents: it ends one and begins the next."""


def export(run_dir: Path, out_dir: Path, *, step: int | None = None) -> int:
    """Write the anchor of one checkpoint to `out_dir`.

    Args:
        run_dir: an island's run folder.
        out_dir: made if it isn't there; an export in it is replaced, other files stay.
        step: inner step of the checkpoint; None = the newest.

    Returns:
        The inner step that was exported.

    Raises:
        StorageError: `run_dir` is no run folder or has no checkpoint, or `out_dir` can't be written.
        CheckpointError: the checkpoint is not there, is damaged, or doesn't fit config.toml.
        ConfigError: config.toml in the run folder is damaged.
    """
    recipe = run_dir / "config.toml"
    if not recipe.is_file():
        raise StorageError(f"{run_dir}: expected the run folder of an island, found no config.toml in it")
    config = load_config(recipe)
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.train.keep_checkpoints)
    steps = checkpoints.steps()
    if not steps:
        raise StorageError(f"{run_dir}: expected a checkpoint to export, found none; train further first")
    step = steps[-1] if step is None else step
    anchor: dict[str, Tensor] = {}
    with checkpoints.understood(step):
        for saved in saved_fragments(checkpoints, step, config.shared.schedule.num_fragments):
            anchor.update(saved["tensors"])
    _check_anchor(anchor, config.shared.model, checkpoints.folder(step))
    facts = hf_config(config.shared.model, vocab_size=anchor[EMBEDDING].shape[0])
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        partial = out_dir / f".export.{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            # fragments are views of one buffer each; safetensors wants tensors of their own
            owned = {
                name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in anchor.items()
            }
            save_file(owned, partial / WEIGHTS, metadata={"format": "pt"})
            (partial / CONFIG).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            (partial / README).write_text(_readme(config, step), encoding="utf-8")
            for name in (WEIGHTS, CONFIG, README):
                (partial / name).replace(out_dir / name)
            sync_folder(out_dir)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out_dir}: the export could not be written: {io_reason(error)}") from error
    return step


def hf_config(model: ModelConfig, *, vocab_size: int) -> dict[str, Json]:
    """The `config.json` with which transformers builds the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn_dim,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.dim // model.heads,
        "max_position_embeddings": model.context,
        "rope_theta": model.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": RMS_EPSILON,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": model.tie_embeddings,
        "initializer_range": INIT_STD,
        "bos_token_id": SEPARATOR,
        "eos_token_id": SEPARATOR,
        "pad_token_id": SEPARATOR,
        "torch_dtype": "float32",
    }


def _check_anchor(anchor: Mapping[str, Tensor], model: ModelConfig, folder: Path) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in anchor.items()}
    vocab_size = found.get(EMBEDDING, (1,))[0]
    gpt = GPT(GPTShape(vocab_size=vocab_size, **vars(model)), device="meta")
    expected = {name: tuple(parameter.shape) for name, parameter in gpt.named_parameters()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{folder}: the model of config.toml has {name} {expected.get(name, 'not at all')}, the "
                f"checkpoint {found.get(name, 'not at all')}; only lowcomm's own GPT can be exported"
            )


def _readme(config: Config, step: int) -> str:
    return f"""# {config.shared.run_id}

The anchor of run `{config.shared.run_id}` after {step} inner steps, trained with lowcomm. A Llama
that reads bytes: a token is one byte of UTF-8 text; {SEPARATOR} stands between documents, and is the first,
last and padding token, too. There is no tokenizer to load. It was trained on windows of
{config.shared.model.context} tokens.

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
ids = torch.tensor([list("def main(".encode())])
print(bytes(model.generate(ids, max_new_tokens=64)[0].tolist()).decode(errors="replace"))
```
"""
