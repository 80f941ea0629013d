"""Our GPT on the bytes of text: a token is one byte, 0 stands between documents.

The export is a Llama in Hugging Face's layout. `model.safetensors` holds the fp32 anchor under the names that
the model has anyway, `config.json` makes `transformers.AutoModelForCausalLM.from_pretrained` build a
`LlamaForCausalLM` of its sizes, and `README.md` says what a token is.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowcomm.data.samples import Batch, Windows, eval_batches
from lowcomm.data.shards import SEPARATOR, VOCAB_SIZE, ShardedText, load_text
from lowcomm.methods import Spec
from lowcomm.models.gpt import GPT, INIT_STD, RMS_EPSILON, GPTShape, flops_per_token
from lowcomm.tasks.base import Facts
from lowcomm.tasks.weights import check_shapes, save_weights
from lowcomm.types import Json

CONFIG, README = "config.json", "README.md"


class TextData:
    """Divided text in windows of one length, as the `Data` of a task that reads bytes.

    Args:
        context: tokens in a window.
        divided: False where an island trains on all that it has read, so that the one shard is all.
    """

    def __init__(self, text: ShardedText, *, context: int, seed: int) -> None:
        self._text, self._context, self._seed = text, context, seed
        self.source, self.digest, self.num_shards = text.source, text.digest, text.num_shards

    @property
    def facts(self) -> Mapping[str, Json]:
        return {
            "documents": self._text.documents,
            "text_bytes": self._text.total_bytes,
            "left_out_files": self._text.left_out,
            "all_epoch_tokens": self._text.training_tokens,
        }

    def training(self, shard: int) -> Windows:
        name = f"shard {shard}" if self.num_shards > 1 else "the island's text"
        return Windows(self._text.shard(shard), context=self._context, seed=self._seed, name=name)

    def evaluation(self, samples: int, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        text = self._text.holdout()
        if len(text) <= self._context:
            return ()
        return eval_batches(text, context=self._context, num_windows=samples, batch_size=batch_size)


class GPTTask:
    """A `Task`; `gpt` below makes it."""

    def __init__(self, shape: GPTShape, *, seed: int, **text: Any) -> None:
        self._shape, self._seed, self._text = shape, seed, text

    @functools.cached_property
    def facts(self) -> Facts:
        shape = self._shape
        return Facts(
            sample="window",
            sample_tokens=shape.context,
            parameters=shape.parameters,
            token_flops=flops_per_token(shape, shape.parameters),
            blank_loss=math.log(shape.vocab_size),
            loss_unit="nats per token",
        )

    def make_model(self) -> GPT:
        return GPT(self._shape, seed=self._seed)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(*batch)
        return loss

    def evaluate(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": model(*batch)}

    def data(self, *, say: bool = True) -> TextData:
        text = load_text(seed=self._seed, say=say, **self._text)
        return TextData(text, context=self._shape.context, seed=self._seed)

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        shape = self._shape
        check_shapes(anchor, GPT(shape, device="meta").named_parameters())
        save_weights(anchor, folder)
        (folder / CONFIG).write_text(json.dumps(hf_config(shape), indent=2) + "\n", encoding="utf-8")
        (folder / README).write_text(readme("Llama", shape.context, run_id, step), encoding="utf-8")


def hf_config(shape: GPTShape) -> dict[str, Json]:
    """The `config.json` with which transformers builds the same model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_dim,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.dim // shape.heads,
        "max_position_embeddings": shape.context,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": RMS_EPSILON,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": INIT_STD,
        "bos_token_id": SEPARATOR,
        "eos_token_id": SEPARATOR,
        "pad_token_id": SEPARATOR,
        "torch_dtype": "float32",
    }


def readme(kind: str, context: int, run_id: str, step: int) -> str:
    """What a folder with a model of bytes says to people."""
    return f"""# {run_id}

The anchor of run `{run_id}` after {step} inner steps, trained with lowcomm. A {kind}
that reads bytes: a token is one byte of UTF-8 text; {SEPARATOR} stands between documents, and is the first,
last and padding token, too. There is no tokenizer to load. It was trained on windows of
{context} tokens.

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
ids = torch.tensor([list("def main(".encode())])
print(bytes(model.generate(ids, max_new_tokens=64)[0].tolist()).decode(errors="replace"))
```
"""


def gpt(
    sizes: Mapping[str, Any],
    seed: int,
    source: str,
    text_key: str = "text",
    shards: int = 1,
    holdout_fraction: float = 0.0,
) -> GPTTask:
    """Our GPT on text.

    Args:
        sizes: those of `[shared.model]`.

    Raises:
        ModelError: a size does not divide another that it must.
    """
    shape = GPTShape(vocab_size=VOCAB_SIZE, **sizes)
    text = {
        "source": source,
        "text_key": text_key,
        "shards": shards,
        "holdout_fraction": holdout_fraction,
    }
    return GPTTask(shape, seed=seed, **text)


SPEC = Spec(name="gpt", make=gpt, about="our GPT of the sizes in `[shared.model]`, on bytes of text")
