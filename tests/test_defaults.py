"""Programs set torch's default dtype and device; no buffer of lowcomm may follow them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lowcomm
from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island
from lowcomm.algorithms.aggregation import NAMES as RULES
from lowcomm.algorithms.aggregation import by_name
from lowcomm.algorithms.inner_optimizers import make_inner_optimizers
from lowcomm.algorithms.muon import Muon
from lowcomm.codecs.blockwise import Blockwise, decode_eager, encode_eager
from lowcomm.codecs.sparse import levels_eager, select_eager
from lowcomm.models.gpt import GPT, GPTShape
from tests.outer.swarm import batch, make_model, train_step

ROOT = Path(lowcomm.__file__).parent
PUBLISHED_AS_IT_IS = "stock_hivemind.py"
"""The script that runs the thing that the bench compares with."""
FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace",
    "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
LAYERS = {"Bilinear", "Conv1d", "Conv2d", "Embedding", "LayerNorm", "Linear", "RMSNorm"}
KINDS = ("float64", "float16", "bfloat16", "meta")


@pytest.fixture(params=KINDS)
def defaults(request):
    """Sets a default in a call, so that a test can look first at what is right without it."""

    def set_it():
        if request.param == "meta":  # stands for any device that is not the host
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, request.param))

    yield set_it
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def _leaves_it_to_torch(call):
    """Whether a call makes a tensor or a layer without saying its dtype and device."""
    name = ast.unparse(call.func)
    if name.removeprefix("torch.") not in FACTORIES and name.removeprefix("nn.") not in LAYERS:
        return False
    if "." not in name:
        return False
    keywords = {keyword.arg for keyword in call.keywords}
    return not ({"dtype", "device"} <= keywords or None in keywords)  # None: handed on with **


def test_every_buffer_says_its_dtype_and_device():
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.name != PUBLISHED_AS_IT_IS and path.parent != ROOT / "recipes"  # a task is its user's
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _leaves_it_to_torch(node)
    ]
    assert not silent


def _numbers(seed, elements=9000):
    return torch.randn(
        elements, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu"
    )


def _coded(name):
    """All that a codec makes of some numbers: payload, loss, what is decoded, what is added."""
    codec, values = codecs.by_name(name), _numbers(0)
    lost, total = torch.empty_like(values), _numbers(1)
    payload = codec.encode(values, lost)
    codec.decode_add(payload, 0.3, total)
    parts = [bytes(payload), lost, total, codec.decode(payload, len(values))]
    if isinstance(codec, Blockwise):
        headers, fields = encode_eager(codec.format, values)
        parts += [headers.tolist(), fields.tolist()]
        parts.append(decode_eager(codec.format, headers, fields, len(values)))
    elif name == "topk":
        parts += [part.tolist() for part in select_eager(values)]
        parts += levels_eager(*select_eager(values))
    return parts


@pytest.mark.parametrize("name", codecs.NAMES)
def test_codecs_give_the_same_bytes(name, defaults):
    expected = _coded(name)
    defaults()
    for mine, right in zip(_coded(name), expected, strict=True):
        if isinstance(right, torch.Tensor):
            assert (mine.dtype, mine.device) == (right.dtype, right.device)
            assert mine.tolist() == right.tolist()
        else:
            assert mine == right


@pytest.mark.parametrize("name", RULES)
def test_aggregation_gives_the_same_mean(name, defaults):
    parts, shares = [_numbers(seed, 100) for seed in range(5)], [0.2] * 5
    expected = by_name(name).combine(parts, shares)
    defaults()
    found = by_name(name).combine(parts, shares)
    assert found.dtype == torch.float32
    assert found.tolist() == expected.tolist()


def _trained(model, codec, schedule):
    """Digest, parameters and reports of one island that trains alone."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    exchange = exchanges.loopback(exchanges.hub(), run_id="t", peer_id="a", founder=True)
    reports = []
    with OuterLoop(
        wrap_island(model, optimizer),
        exchange,
        schedule=schedule,
        codec=codec,
        outer_optimizer=nesterov(lr=0.7, momentum=0.6),
        chunk_bytes=256,
    ) as outer:
        while outer.inner_step < 8:
            train_step(model, optimizer, INPUTS[outer.inner_step])
            reports += outer.step(tokens=8)
        reports += outer.finish()
        with outer.anchor_weights():
            pass
        saved = outer.state_dict()
        assert saved["fragments"][0]["anchor"].dtype == torch.float32
        return outer.digest, nn.utils.parameters_to_vector(model.parameters()).tolist(), reports


INPUTS = [batch(0, step) for step in range(8)]
SCHEDULES = {
    "plain": Schedule(inner_steps=4),
    "eager": Schedule(inner_steps=4, num_fragments=2, delay=1, merge_alpha=0.5, eager=True),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["int8", "2bit", "topk"])
def test_an_island_commits_the_same_bits(name, schedule, defaults):
    expected = _trained(make_model(), codecs.by_name(name), schedule)
    model = make_model()
    defaults()
    digest, parameters, reports = _trained(model, codecs.by_name(name), schedule)
    assert reports
    assert all(report.committed for report in reports), [report.reason for report in reports]
    assert (digest, parameters) == expected[:2]


def test_our_gpt_and_muon_make_the_same_bits(defaults):
    shape = GPTShape(vocab_size=64, dim=16, layers=2, heads=2, kv_heads=1, ffn_dim=32, context=8)
    ids = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0), device="cpu")

    def stepped():
        model = GPT(shape, seed=3)
        optimizers = make_inner_optimizers(
            model, name="muon", lr=0.01, adamw_lr=0.01, muon_momentum=0.9, betas=(0.9, 0.95), weight_decay=0.1
        )
        model(ids[:, :-1], ids[:, 1:]).backward()
        [muon] = [optimizer for optimizer in optimizers if isinstance(optimizer, Muon)]
        muon.step()
        return [(p.dtype, p.device.type, p.tolist(), p.grad.tolist()) for p in model.parameters()]

    expected = stepped()
    defaults()
    assert stepped() == expected


BEFORE_THE_IMPORT = """
import torch
kind = {kind!r}
torch.set_default_device(kind) if kind == "meta" else torch.set_default_dtype(getattr(torch, kind))
from lowcomm import OuterLoop, Schedule, codecs, exchanges, nesterov, wrap_island
model = torch.nn.Linear(6, 6, device="cpu", dtype=torch.float32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
exchange = exchanges.loopback(exchanges.hub(), run_id="t", peer_id="a", founder=True)
with OuterLoop(wrap_island(model, optimizer), exchange, schedule=Schedule(inner_steps=1), codec=codecs.int8(),
               outer_optimizer=nesterov()) as outer:
    model(torch.ones(4, 6, dtype=torch.float32, device="cpu")).square().mean().backward()
    optimizer.step()
    report, = outer.step(tokens=4)
    print(report.committed, report.reason)
"""


@pytest.mark.parametrize("kind", ["float64", "meta"])
def test_a_default_from_before_the_import(kind):
    code = BEFORE_THE_IMPORT.format(kind=kind)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert run.stdout.strip() == "True", run.stdout + run.stderr
