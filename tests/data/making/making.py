"""Corpora for tests: files of a source, a specification, and what is in the chunks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lowcomm.data.corpus.chunks import ENDS, TOKENS, chunk_file
from lowcomm.data.corpus.manifest import Chunk, Manifest
from lowcomm.data.corpus.tokenizer import corpus_tokenizer, token_type
from lowcomm.data.making.build import Built, build
from lowcomm.data.making.spec import spec_of


def write_lines(path: Path, texts: Iterable[str]) -> Path:
    """JSON lines with these texts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def made(out: Path, *sources: Path | dict[str, Any], processes: int = 1, **more: Any) -> Built:
    """A corpus of some sources."""
    tables = [each if isinstance(each, dict) else {"url": str(each)} for each in sources]
    return build(spec_of({"source": tables, **more}), out, processes)


def documents(out: Path, chunks: Iterable[Chunk] | None = None) -> list[str]:
    """Those of all chunks to train on, or of some, in their order."""
    manifest = Manifest.read(out)
    tokenizer = corpus_tokenizer(out, manifest.vocabulary)
    found = []
    for chunk in manifest.training if chunks is None else chunks:
        tokens = np.fromfile(chunk_file(out, chunk.name, TOKENS), token_type(manifest.vocabulary))
        ends = np.fromfile(chunk_file(out, chunk.name, ENDS), "<u4")
        assert (len(tokens), len(ends)) == (chunk.tokens, chunk.documents)
        for start, end in zip([0, *ends], ends, strict=False):
            found.append(tokenizer.decode(tokens[start:end]).decode())
    return found


def texts(count: int, start: int = 0) -> list[str]:
    """Documents that differ, of some dozens of bytes each."""
    return [
        f"Document {number}: " + "word " * (number % 7) + "end." for number in range(start, start + count)
    ]
