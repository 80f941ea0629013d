"""What it costs to read tokens: speed beside other readers, memory, the first batch, and a link's share.

Corpora are synthetic and made in a temporary folder: reading does not look at what tokens mean. Each reader
is a process of its own (readers.py); all timed ones read files that lie in the page cache.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lowcomm.bench.fed import train_from_disk, train_over_http
from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.readers import LIBRARIES, Job
from lowcomm.bench.servers import LimitedServer
from lowcomm.bench.settings import ReadingBench
from lowcomm.clock import SystemClock
from lowcomm.data.corpus.chunks import TOKENS, write_chunk
from lowcomm.data.corpus.manifest import CHUNKS, MANIFEST, Chunk, Manifest, Source, Vocabulary
from lowcomm.errors import DataError
from lowcomm.types import Json

VOCABULARY = Vocabulary(kind="tokenizer.json", blake3="0" * 64, size=50_257, separator=50_256)
TRAINED = Vocabulary(kind="tokenizer.json", blake3="0" * 64, size=4096, separator=0)
"""Of the corpus that is trained on; of a size with which a step takes little."""
CHUNK_TOKENS, SMALL_CHUNK_TOKENS, TRAINED_CHUNK_TOKENS = 1 << 24, 1 << 20, 1 << 13
DOCUMENT_TOKENS = 800
TOKEN_BYTES = 2
USED = 0.5
"""The most that training takes of the tokens that its link carries."""
OVER_HTTP = "training over HTTP"
HEADINGS = ("", "tokens/s", "first batch s", "memory MB", "share of wait", "share of link")


def run(bench: ReadingBench, tell: Tell) -> Outcome:
    """For `lowcomm bench reading`."""
    lines: list[dict[str, Json]] = []
    missing = [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is None]
    with tempfile.TemporaryDirectory(prefix="lowcomm-reading-") as folder:
        root = Path(folder)
        compared = make_corpus(root / "compared", bench.compared_gb, SMALL_CHUNK_TOKENS)
        for reader, source in _sources(root, compared, bench, missing).items():
            tell(f"{reader}, {bench.compared_gb:g} GB")
            lines.append({"what": reader, **_read(bench, root, reader, source, compared)})
        tell(f"HTTP, {bench.mbit_s:g} Mbit/s")
        lines.append({"what": "HTTP", **_over_http(bench, root, compared)})
        tell(f"training, {bench.trained_tokens:,} tokens")
        lines += _trained(bench, root)
        for gb in bench.gb:
            tell(f"{gb:g} GB")
            manifest = make_corpus(root / "whole", gb, CHUNK_TOKENS)
            lines.append({"what": f"{gb:g} GB", **_read(bench, root, "lowcomm", root / "whole", manifest)})
            for path in (root / "whole" / CHUNKS).iterdir():
                path.unlink()
    log: dict[str, Json] = {"bench": bench.to_dict(), "missing": list(missing), "readers": list(lines)}
    notes = [f"not installed, and so not compared: {', '.join(missing)}"] if missing else []
    return Outcome(log={"reading": log}, headings=HEADINGS, rows=[row(line) for line in lines], notes=notes)


def row(line: dict[str, Any]) -> tuple[str, ...]:
    """Under `HEADINGS`."""
    share = line.get("link_share", line.get("used_share"))
    return (
        str(line["what"]),
        f"{line['tokens_per_s'] / 1e6:.2f} M",
        f"{line['first_batch_s']:.2f}",
        f"{line['memory_mb']:.0f}" if "memory_mb" in line else "-",
        f"{line['waited_share']:.1%}" if "waited_share" in line else "-",
        "-" if share is None else f"{share:.0%}",
    )


def make_corpus(folder: Path, gb: float, chunk_tokens: int, vocabulary: Vocabulary = VOCABULARY) -> Manifest:
    """Random tokens of two bytes, the same ones in each chunk, each time from another place on."""
    tokens = np.random.default_rng(0).integers(0, vocabulary.size, chunk_tokens, dtype=np.uint16)
    ends = np.append(np.arange(DOCUMENT_TOKENS, chunk_tokens, DOCUMENT_TOKENS), chunk_tokens)
    count = max(1, round(gb * 1e9 / TOKEN_BYTES / chunk_tokens))
    chunks: list[Chunk] = [
        write_chunk(folder, f"{number:06d}", np.roll(tokens, number), ends, source=0, vocabulary=vocabulary)
        for number in range(count)
    ]
    whole = count * chunk_tokens
    source = Source(
        name="random", url="", blake3="", documents=count * len(ends), tokens=whole, text_bytes=4 * whole
    )
    manifest = Manifest(vocabulary=vocabulary, sources=(source,), training=tuple(chunks))
    (folder / MANIFEST).write_bytes(manifest.encode())
    return manifest


def _sources(root: Path, manifest: Manifest, bench: ReadingBench, missing: list[str]) -> dict[str, Path]:
    """Reader -> the same tokens, as it wants them."""
    found = {"lowcomm": root / "compared", "numpy": root / "tokens.bin"}
    with found["numpy"].open("wb") as file:
        for chunk in manifest.training:
            file.write((root / "compared" / CHUNKS / f"{chunk.name}{TOKENS}").read_bytes())
    tokens = np.memmap(found["numpy"], dtype=np.uint16, mode="r")
    size = bench.context + 1
    windows = tokens[: len(tokens) // size * size].reshape(-1, size)
    if "datasets" not in missing:
        found["datasets"] = root / "parquet"
        _write_parquet(found["datasets"], windows)
    if "mosaicml-streaming" not in missing:
        found["mosaicml-streaming"] = root / "mds"
        _write_mds(found["mosaicml-streaming"], windows)
    return found


def _write_parquet(folder: Path, windows: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    library: Any = importlib.import_module(LIBRARIES["datasets"])
    library.disable_progress_bars()
    folder.mkdir()
    for number, part in enumerate(np.array_split(windows, 16)):
        features = library.Features({"tokens": library.Sequence(library.Value("uint16"), windows.shape[1])})
        data = library.Dataset.from_dict({"tokens": list(part)}, features=features)
        data.to_parquet(str(folder / f"{number:02d}.parquet"))


def _write_mds(folder: Path, windows: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    library: Any = importlib.import_module(LIBRARIES["mosaicml-streaming"])
    with library.MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{windows.shape[1]}"}) as out:
        for window in windows:
            out.write({"tokens": np.array(window)})


def _read(
    bench: ReadingBench,
    root: Path,
    reader: str,
    source: Path | str,
    manifest: Manifest,
    batches: int = 0,
) -> dict[str, Json]:
    job = Job(
        reader=reader,
        source=str(source),
        manifest=manifest.digest,
        context=bench.context,
        batch_size=bench.batch_size,
        batches=batches or bench.batches,
        began_s=SystemClock().monotonic_s(),
    )
    ended = subprocess.run(
        [sys.executable, "-m", "lowcomm.bench.readers", json.dumps(vars(job))],
        env={**os.environ, "XDG_CACHE_HOME": str(root / "cache"), "HF_HOME": str(root / "hf")},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise DataError(f"the reader {reader} broke: {ended.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Json] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _over_http(bench: ReadingBench, root: Path, manifest: Manifest) -> dict[str, Json]:
    """An epoch from a server of this machine, with nothing in the cache."""
    batches = manifest.tokens // (bench.batch_size * bench.context) - 1 - len(manifest.training)
    with LimitedServer(root / "compared", bench.mbit_s) as server:
        found = _read(bench, root, "lowcomm", server.url, manifest, max(1, batches))
        return {**found, "link_share": server.used_share()}


def _trained(bench: ReadingBench, root: Path) -> list[dict[str, Json]]:
    """`lowcomm train`, from the disk and over a link that carries a little more than it takes."""
    folder, gb = root / "trained", bench.trained_tokens * TOKEN_BYTES / 1e9
    manifest = make_corpus(folder, gb, TRAINED_CHUNK_TOKENS, TRAINED)
    disk = train_from_disk(root, folder, manifest)
    peak = float(str(disk["peak_tokens_per_s"]))
    http = train_over_http(root, folder, manifest, tokens_per_s=peak, used=USED)
    return [
        {"what": "training", **disk},
        {"what": OVER_HTTP, **http},
    ]
