"""Small corpora for tests: each source a list of documents of tokens, cut into chunks of a few of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lowcomm.data.corpus.chunks import write_chunk
from lowcomm.data.corpus.manifest import MANIFEST, Chunk, Manifest, Source, Vocabulary

Documents = Sequence[Sequence[int]]
"""Without their separators."""


def make_corpus(
    folder: Path,
    training: Mapping[str, Documents],
    holdout: Mapping[str, Documents] | None = None,
    *,
    weights: Mapping[str, float] | None = None,
    chunk_documents: int = 4,
    vocabulary: Vocabulary | None = None,
    bytes_per_token: int = 1,
) -> Manifest:
    """Write one into a folder."""
    vocabulary = vocabulary or Vocabulary()
    chunks: dict[str, list[Chunk]] = {"training": [], "holdout": []}
    tokens = {"training": [0] * len(training), "holdout": [0] * len(training)}
    for part, sources in (("training", training), ("holdout", holdout or {})):
        for number, name in enumerate(training):
            documents = [[*document, vocabulary.separator] for document in sources.get(name, ())]
            for start in range(0, len(documents), chunk_documents):
                some = documents[start : start + chunk_documents]
                chunk = write_chunk(
                    folder,
                    f"{len(chunks['training']) + len(chunks['holdout']):06d}",
                    np.concatenate(some),
                    np.cumsum([len(document) for document in some]),
                    source=number,
                    vocabulary=vocabulary,
                )
                chunks[part].append(chunk)
                tokens[part][number] += chunk.tokens
    manifest = Manifest(
        vocabulary=vocabulary,
        sources=tuple(
            Source(
                name=name,
                url=name,
                blake3="",
                weight=(weights or {}).get(name, 1.0),
                documents=len(training[name]),
                tokens=tokens["training"][number],
                text_bytes=bytes_per_token * tokens["training"][number],
                holdout_documents=len((holdout or {}).get(name, ())),
                holdout_tokens=tokens["holdout"][number],
                holdout_text_bytes=bytes_per_token * tokens["holdout"][number],
            )
            for number, name in enumerate(training)
        ),
        training=tuple(chunks["training"]),
        holdout=tuple(chunks["holdout"]),
    )
    (folder / MANIFEST).write_bytes(manifest.encode())
    return manifest


def counting(documents: int, size: int, *, first: int = 0) -> list[list[int]]:
    """Documents in which each token comes once: 1 + first, 2 + first, ..."""
    numbers = 1 + first + np.arange(documents * size)
    return [part.tolist() for part in np.split(numbers, documents)]
