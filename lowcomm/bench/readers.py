"""One reader of tokens in a process of its own: `python -m lowcomm.bench.readers JSON` prints its figures.

All read the same tokens in windows of the same length: lowcomm's reader; nanoGPT's `get_batch`, which draws
windows at random out of one mapped file; and, where they are installed, `datasets` and `mosaicml-streaming`
from files of their own formats, shuffled as they do it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowcomm.clock import SystemClock
from lowcomm.data.loader import Loader
from lowcomm.data.reading.files import open_corpus
from lowcomm.data.reading.windows import CorpusWindows
from lowcomm.types import Json

LIBRARIES = {"datasets": "datasets", "mosaicml-streaming": "streaming"}
"""What others' readers are called, and the module of each."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process reads.

    Attributes:
        reader: `lowcomm`, `numpy`, or one of LIBRARIES.
        source: a corpus, or what that reader has in place of it.
        manifest: digest of the corpus's.
        batches: that are read.
        began_s: when the process was started, on this machine's monotonic clock.
    """

    reader: str
    source: str
    manifest: str
    context: int
    batch_size: int
    batches: int
    began_s: float

    def run(self) -> dict[str, Json]:
        """Read, and say how that went; memory is what came on top while reading."""
        clock, before = SystemClock(), anonymous_bytes()
        next_batch = READERS[self.reader](self)
        next_batch()
        first_s = clock.monotonic_s() - self.began_s
        begun_s = clock.monotonic_s()
        for _ in range(self.batches):
            next_batch()
        took_s = clock.monotonic_s() - begun_s
        tokens = self.batches * self.batch_size * self.context
        return {
            "reader": self.reader,
            "tokens": tokens,
            "tokens_per_s": tokens / took_s,
            "first_batch_s": first_s,
            "seconds": took_s,
            "memory_mb": (anonymous_bytes() - before) / 1e6,
        }


def anonymous_bytes() -> int:
    """Memory of this process that is no page of a file, which other processes may share."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _lowcomm(job: Job) -> Callable[[], object]:
    corpus = open_corpus(job.source, job.manifest, cache_gb=20.0)
    return Loader(CorpusWindows(corpus, context=job.context, seed=0), batch_size=job.batch_size).next_batch


def _numpy(job: Job) -> Callable[[], object]:
    """As nanoGPT's train.py has it, the map made anew each time against its leak."""

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(job.source, dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - job.context, (job.batch_size,), dtype=torch.int64, device="cpu")
        x = torch.stack([torch.from_numpy(data[i : i + job.context].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + job.context].astype(np.int64)) for i in ix])
        return x, y

    return get_batch


def _datasets(job: Job) -> Callable[[], object]:
    library: Any = importlib.import_module(LIBRARIES["datasets"])
    files = sorted(map(str, Path(job.source).glob("*.parquet")))

    def batches() -> Iterator[object]:
        data = library.load_dataset("parquet", data_files=files, split="train", streaming=True)
        for batch in data.shuffle(seed=0, buffer_size=1_000).with_format("numpy").iter(job.batch_size):
            windows = torch.from_numpy(np.stack(batch["tokens"]).astype(np.int64))
            yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    return _again(batches)


def _streaming(job: Job) -> Callable[[], object]:
    library: Any = importlib.import_module(LIBRARIES["mosaicml-streaming"])

    def batches() -> Iterator[object]:
        data = library.StreamingDataset(local=job.source, shuffle=True, batch_size=job.batch_size)
        rows = iter(data)
        while part := [row for row, _ in zip(rows, range(job.batch_size), strict=False)]:
            windows = torch.from_numpy(np.stack([row["tokens"] for row in part]).astype(np.int64))
            yield windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    return _again(batches)


def _again(batches: Callable[[], Iterator[object]]) -> Callable[[], object]:
    """Epoch after epoch."""
    return (batch for _ in iter(int, 1) for batch in batches()).__next__


READERS: dict[str, Callable[[Job], Callable[[], object]]] = {
    "lowcomm": _lowcomm,
    "numpy": _numpy,
    "datasets": _datasets,
    "mosaicml-streaming": _streaming,
}


def main() -> None:
    """For the parent, which reads the last line."""
    torch.set_num_threads(1)
    print(json.dumps(Job(**json.loads(sys.argv[1])).run()))


if __name__ == "__main__":
    main()
