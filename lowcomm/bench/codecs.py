"""What codecs cost and lose: bits, error and speed on the pseudo-gradients of a real, small run.

The GPT of a configuration is trained on its text, alone, for a few rounds of inner steps; each round's
movement is a pseudo-gradient. Bits and errors are of these. For speed one of them is tiled to a size
that no cache holds, and every codec is timed on one thread beside `Tensor.copy_` of the same numbers, in
turn, so that what else the machine does meets all alike; the fastest of the repeats counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lowcomm import codecs
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import CodecBench
from lowcomm.clock import Clock, SystemClock
from lowcomm.codecs.base import Codec
from lowcomm.config.schema import Config
from lowcomm.data.loader import open_loader
from lowcomm.training.build import build_model, build_optimizers, build_task
from lowcomm.types import Json

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class CodecFigures:
    """One codec, with or without error feedback.

    Attributes:
        name: of the codec.
        error_feedback: whether what was lost was added to the next round; then `encode` computes it, too.
        bits_per_parameter: of whole payloads, mean of the rounds.
        relative_error: |sum of what was sent - sum of the pseudo-gradients| / |the latter|, after all rounds.
        relative_error_one_round: the same after the first.
        encode_gb_s, decode_gb_s, decode_add_gb_s: gigabytes of fp32 numbers per second.
    """

    name: str
    error_feedback: bool
    bits_per_parameter: float
    relative_error: float
    relative_error_one_round: float
    encode_gb_s: float
    decode_gb_s: float
    decode_add_gb_s: float


@dataclass(frozen=True, kw_only=True)
class CodecResults:
    """All figures of one run.

    Attributes:
        parameters: numbers in a pseudo-gradient.
        payload_mib: of fp32 numbers, for the speeds.
        copy_gb_s: of `Tensor.copy_`, the bound.
        hivemind_uniform8_gb_s: compression by hivemind's uniform 8-bit codec.
        hivemind_uniform8_decode_gb_s: its way back.
    """

    parameters: int
    inner_steps: int
    rounds: int
    payload_mib: float
    repeats: int
    copy_gb_s: float
    hivemind_uniform8_gb_s: float
    hivemind_uniform8_decode_gb_s: float
    codecs: tuple[CodecFigures, ...]

    HEADINGS = ("codec", "feedback", "bits", "error", "first round", "encode", "decode", "add")

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {**asdict(self), "codecs": [asdict(row) for row in self.codecs]}

    def rows(self) -> list[tuple[str, ...]]:
        """For the table; speeds as a part of copy's."""
        return [
            (
                row.name,
                "on" if row.error_feedback else "off",
                f"{row.bits_per_parameter:.3f}",
                f"{row.relative_error:.4f}",
                f"{row.relative_error_one_round:.4f}",
                *(
                    f"{speed / self.copy_gb_s:.2f}x"
                    for speed in (row.encode_gb_s, row.decode_gb_s, row.decode_add_gb_s)
                ),
            )
            for row in self.codecs
        ]


def pseudo_gradients(config: Config, *, inner_steps: int, rounds: int) -> list[Tensor]:
    """The movements, anchor - local, of one island that trains alone: one 1-D fp32 tensor per round."""
    task = build_task(config)
    loader = open_loader(task.data().training(0), batch_size=config.train.batch_size)
    model = build_model(config, task)
    optimizers = build_optimizers(config, model)
    found = []
    for _ in range(rounds):
        anchor = _flat(model)
        for _ in range(inner_steps):
            inputs, targets = loader.next_batch()
            model(inputs, targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.shared.inner.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        found.append(anchor - _flat(model))
    return found


def run(bench: CodecBench, tell: Tell) -> Outcome:
    """For `lowcomm bench codecs`."""
    result = measure_codecs(Config(), bench, tell)
    note = (
        f"copy_ {result.copy_gb_s:.2f} GB/s (1x); hivemind's uniform 8-bit codec: "
        f"{result.hivemind_uniform8_gb_s / result.copy_gb_s:.3f}x, "
        f"back {result.hivemind_uniform8_decode_gb_s / result.copy_gb_s:.3f}x"
    )
    return Outcome(log=result.to_dict(), headings=CodecResults.HEADINGS, rows=result.rows(), notes=[note])


def measure_codecs(
    config: Config, bench: CodecBench, tell: Tell = lambda line: None, clock: Clock | None = None
) -> CodecResults:
    """Measure all codecs, with and without error feedback, on one thread.

    Args:
        config: its model, inner optimizer and text.
        tell: of each codec before it is measured.
    """
    from lowcomm.bench.stock_hivemind import Uniform8

    clock = clock or SystemClock()
    with _one_thread():
        movements = pseudo_gradients(config, inner_steps=bench.inner_steps, rounds=bench.rounds)
        elements = movements[-1].numel()
        size = max(1, round(bench.payload_mib * (1 << 20) / 4))
        values = movements[-1].repeat(-(-size // elements))[:size].clone()
        timer = _Timer(clock, values, bench.repeats)
        rows = []
        for codec in _codecs():
            tell(f"{codec.name}, error feedback {'on' if codec.error_feedback else 'off'}")
            rows.append(_figures(codec, movements, timer))
        tell("hivemind's uniform 8-bit")
        stock = Uniform8()
        message = stock.compress(values)
        stock_gb_s = timer.gb_s(lambda: stock.compress(values))
        stock_decode_gb_s = timer.gb_s(lambda: stock.extract(message))
    return CodecResults(
        parameters=elements,
        inner_steps=bench.inner_steps,
        rounds=bench.rounds,
        payload_mib=bench.payload_mib,
        repeats=bench.repeats,
        copy_gb_s=timer.copy_gb_s,
        hivemind_uniform8_gb_s=stock_gb_s,
        hivemind_uniform8_decode_gb_s=stock_decode_gb_s,
        codecs=tuple(rows),
    )


def _codecs() -> Iterator[Codec]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # without error feedback for contrast
        for name in codecs.NAMES:
            yield codecs.by_name(name, error_feedback=False)
            if name != "fp32":
                yield codecs.by_name(name, error_feedback=True)


def _figures(codec: Codec, movements: list[Tensor], timer: _Timer) -> CodecFigures:
    elements = movements[0].numel()
    residual, sent, wanted = (torch.zeros(elements, dtype=torch.float32, device="cpu") for _ in range(3))
    size, errors = 0, []
    for movement in movements:
        values = movement + residual.mul_(codec.decay) if codec.error_feedback else movement
        payload = codec.encode(values, residual if codec.error_feedback else None)
        size += len(payload)
        codec.decode_add(payload, 1.0, sent)
        wanted += movement
        errors.append(float((sent - wanted).norm() / wanted.norm()))
    values, lost, out = timer.values, torch.empty_like(timer.values), torch.zeros_like(timer.values)
    payload = codec.encode(values)
    return CodecFigures(
        name=codec.name,
        error_feedback=codec.error_feedback,
        bits_per_parameter=8 * size / (elements * len(movements)),
        relative_error=errors[-1],
        relative_error_one_round=errors[0],
        encode_gb_s=timer.gb_s(lambda: codec.encode(values, lost if codec.error_feedback else None)),
        decode_gb_s=timer.gb_s(lambda: codec.decode(payload, values.numel(), out)),
        decode_add_gb_s=timer.gb_s(lambda: codec.decode_add(payload, 0.25, out)),
    )


class _Timer:
    """Times work on `values`, and each time `copy_` of them beside it."""

    def __init__(self, clock: Clock, values: Tensor, repeats: int) -> None:
        self.values, self._target = values, torch.empty_like(values)
        self._now_s, self._repeats = clock.monotonic_s, repeats
        self._copy_s = float("inf")
        self._target.copy_(values)

    @property
    def copy_gb_s(self) -> float:
        return self.values.nbytes / GIGA / self._copy_s

    def gb_s(self, work: Callable[[], object]) -> float:
        fastest_s = float("inf")
        for _ in range(self._repeats):
            self._copy_s = min(self._copy_s, self._seconds(lambda: self._target.copy_(self.values)))
            fastest_s = min(fastest_s, self._seconds(work))
        return self.values.nbytes / GIGA / fastest_s

    def _seconds(self, work: Callable[[], object]) -> float:
        began_s = self._now_s()
        work()
        return max(self._now_s() - began_s, 1e-9)


def _flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
