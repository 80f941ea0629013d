"""Models that are not ours: transformers' causal LMs, adapters, several dtypes, frozen and tied parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island
from lowcomm.islands.base import Island

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

VOCAB, WINDOW = 64, 16


def llama(tied: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=WINDOW, tie_word_embeddings=tied,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=WINDOW)
    return transformers.GPT2LMHeadModel(config)


def adapted() -> nn.Module:
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(llama(), lora)


def loop(island: Island) -> OuterLoop:
    exchange = exchanges.loopback(exchanges.hub(), run_id="models", peer_id="alone", founder=True)
    return OuterLoop(
        island,
        exchange,
        schedule=Schedule(inner_steps=10),
        codec=codecs.fp32(),
        outer_optimizer=nesterov(lr=1.0, momentum=0.0),
    )


def fit(model: nn.Module, steps: int = 20) -> tuple[list[float], Island, dict[str, int]]:
    """A plain loop: losses, the island, and the elements that islands agree on, by tensor."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    ids = torch.randint(VOCAB, (4, WINDOW), generator=torch.Generator().manual_seed(0))
    losses, island = [], wrap_island(model, optimizer)
    with loop(island) as outer:
        for _ in range(steps):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            assert all(report.committed for report in outer.step(tokens=ids.numel()))
        sizes = {name: tensor.numel() for name, tensor in outer.anchor().items()}
    return losses, island, sizes


@pytest.mark.parametrize(
    ("make", "tied"),
    [(llama, False), (lambda: llama(tied=True), True), (gpt2, True)],
    ids=["llama", "llama-tied", "gpt2"],
)
def test_a_causal_lm_trains_in_a_plain_loop(make, tied) -> None:  # type: ignore[no-untyped-def]
    model = make()
    losses, island, sizes = fit(model)
    assert losses[-1] < losses[0] - 0.3
    names = [spec.name for spec in island.layout]
    assert ("lm_head.weight" in names) is not tied
    assert sum(sizes.values()) == sum(p.numel() for p in model.parameters())


def test_only_adapters_are_sent() -> None:
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    losses, island, sizes = fit(model)
    assert losses[-1] < losses[0]
    assert sizes
    assert all("lora_" in name for name in sizes)
    assert list(sizes) == [spec.name for spec in island.layout]
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(sizes.values()) == adapters
    assert adapters < sum(p.numel() for p in model.parameters()) / 10
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(frozen[name], value) for name, value in before.items())


def test_a_model_from_a_local_folder_has_the_layout_of_one_from_a_config(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = gpt2()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    islands = [wrap_island(m, torch.optim.SGD(m.parameters(), lr=0.1)) for m in (model, loaded)]
    assert islands[0].layout == islands[1].layout
    everything = [island.read(range(len(island.layout))) for island in islands]
    assert torch.equal(*everything)


def test_parameters_of_several_dtypes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).double(), nn.Linear(4, 2))
    island = wrap_island(model, torch.optim.SGD(model.parameters(), lr=0.1))
    values = island.read(range(len(island.layout)))
    assert values.dtype == torch.float32
    island.write(range(len(island.layout)), values)
    assert torch.equal(island.read(range(len(island.layout))), values)
    assert [p.dtype for p in model.parameters()] == [torch.bfloat16] * 2 + [torch.float64] * 2 + [
        torch.float32
    ] * 2
