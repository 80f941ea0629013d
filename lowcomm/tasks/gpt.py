"""Our GPT on text: on bytes, with 0 between documents, or on the tokens of a corpus.

The export is a Llama in Hugging Face's layout. `model.safetensors` holds the fp32 anchor under the names that
the model has anyway, `config.json` makes `transformers.AutoModelForCausalLM.from_pretrained` build a
`LlamaForCausalLM` of its sizes, and `README.md` says what a token is.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowcomm.data.corpus.manifest import BYTES, Vocabulary
from lowcomm.data.samples import Batch
from lowcomm.methods import Spec
from lowcomm.models.gpt import GPT, INIT_STD, RMS_EPSILON, GPTShape, flops_per_token
from lowcomm.tasks.base import Data, Facts
from lowcomm.tasks.text import TextSource
from lowcomm.tasks.weights import check_shapes, save_weights
from lowcomm.types import Json

CONFIG, README = "config.json", "README.md"


class GPTTask:
    """A `Task`; `gpt` below makes it."""

    def __init__(self, shape: GPTShape, *, seed: int, text: TextSource) -> None:
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

    def data(self, *, say: bool = True) -> Data:
        return self._text.open(context=self._shape.context, seed=self._seed, say=say)

    def export(self, anchor: Mapping[str, Tensor], folder: Path, *, run_id: str, step: int) -> None:
        shape = self._shape
        check_shapes(anchor, GPT(shape, device="meta").named_parameters())
        save_weights(anchor, folder)
        config = hf_config(shape, self._text.vocabulary.separator)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self._text.write_tokenizer(folder)
        words = readme("Llama", self._text.vocabulary, shape.context, run_id, step)
        (folder / README).write_text(words, encoding="utf-8")


def hf_config(shape: GPTShape, separator: int) -> dict[str, Json]:
    """The `config.json` with which transformers builds the same model; `separator` ends a document."""
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
        "bos_token_id": separator,
        "eos_token_id": separator,
        "pad_token_id": separator,
        "torch_dtype": "float32",
    }


def readme(kind: str, vocabulary: Vocabulary, context: int, run_id: str, step: int) -> str:
    """What a folder with a model says to people."""
    begin = f"""---
library_name: transformers
tags: [lowcomm]
---

# {run_id}

The anchor of run `{run_id}` after {step} inner steps, trained with lowcomm on windows of {context} tokens. A
{kind}"""
    if vocabulary.kind != BYTES:
        return f"""{begin} with the tokenizer of its corpus beside it, {vocabulary.size} tokens; token
{vocabulary.separator} ends a document.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
ids = tokenizer("def main(", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))
```
"""
    return f"""{begin} that reads bytes: a token is one byte of UTF-8 text; {vocabulary.separator} stands
between documents, and is the first, last and padding token, too. There is no tokenizer to load.

```python
import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
ids = torch.tensor([list("def main(".encode())])
print(bytes(model.generate(ids, max_new_tokens=64)[0].tolist()).decode(errors="replace"))
```
"""


def gpt(sizes: Mapping[str, Any], seed: int, text: TextSource) -> GPTTask:
    """Our GPT on text, with the vocabulary that its tokens have.

    Args:
        sizes: those of `[shared.model]`.

    Raises:
        DataError: there is no such corpus.
        ModelError: a size does not divide another that it must.
    """
    return GPTTask(GPTShape(vocab_size=text.vocabulary.size, **sizes), seed=seed, text=text)


SPEC = Spec(
    name="gpt",
    make=gpt,
    about="our GPT of the sizes in `[shared.model]`, on bytes of text or the tokens of a corpus",
)
