"""A Hugging Face model as an island: a Llama of random weights learns the bytes of this file.

    python docs/examples/hf_model.py                 the first island; it prints the shared string
    python docs/examples/hf_model.py 'demo-hf@/ip4/...'   each further island

Needs `transformers` (pip install -e '.[hf]'). Nothing is downloaded; for a real run put
`AutoModelForCausalLM.from_pretrained(...)` and its tokenizer in place of `make_model` and `batches`.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island

STEPS = 60
WINDOW = 64


def make_model() -> LlamaForCausalLM:
    """About 0.1M parameters."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WINDOW,
        )
    )


def batches(seed: int, size: int = 4):
    """Windows of this file, (size, WINDOW) int64."""
    text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - WINDOW, (size,), generator=generator).tolist()
        yield torch.stack([text[start : start + WINDOW] for start in starts])


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ids: Tensor) -> float:
    """One inner step."""
    loss = model(input_ids=ids, labels=ids).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def main() -> None:
    """Train."""
    torch.set_num_threads(1)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    exchange = exchanges.swarm(run_id="demo-hf", initial_peers=sys.argv[1:])
    outer = OuterLoop(
        wrap_island(model, optimizer),
        exchange,
        schedule=Schedule(inner_steps=10, num_fragments=2),
        codec=codecs.int8(),
        outer_optimizer=nesterov(),
        num_shards=8,  # every island claims a number of its own, here the seed of its data
        expected_peers=2,  # the first one waits for the second
        on_address=print,
    )
    with closing(outer):
        join = outer.start()
        data = batches(seed=join.shard)
        while outer.inner_step < STEPS:
            ids = next(data)
            loss = train_step(model, optimizer, ids)
            for report in outer.step(tokens=ids.numel()):
                print(f"fragment {report.fragment}, outer step {report.outer_step}: loss {loss:.3f}")
        outer.finish()
        with outer.anchor_weights(), torch.no_grad():  # the anchor is what is evaluated and saved
            ids = next(data)
            print(f"anchor: loss {model(input_ids=ids, labels=ids).loss.item():.3f}, digest {outer.digest}")


if __name__ == "__main__":
    main()
