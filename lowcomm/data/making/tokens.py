"""The third stage: the tokens of an item's documents that are left, held-out ones apart."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.corpus.chunks import Tokens
from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.corpus.tokenizer import Tokenizer, corpus_tokenizer, token_type
from lowcomm.data.making.cleaning import EXACT, SIZES, TEXT, StepCount
from lowcomm.data.making.duplicates import read_bits
from lowcomm.data.making.work import whole_folder, write_counts

TRAINING, HOLDOUT = "training", "holdout"
PARTS = (TRAINING, HOLDOUT)
BATCH_BYTES = 1 << 20
"""Of text that is encoded at a time."""


@dataclass(frozen=True, kw_only=True)
class TokenJob:
    """One item.

    Attributes:
        cleaned: what the first stage made of it.
        folder: of the result: the tokens of both parts, how many each document has, and counts.
        start: number of its first document.
        later: the second stage's files: of equal documents, then those of the bands.
        corpus: where the tokenizer lies.
        tokenised: whether its documents are tokens.
        holdout_fraction: of documents.
    """

    cleaned: Path
    folder: Path
    start: int
    later: Sequence[Path]
    corpus: Path
    vocabulary: Vocabulary
    tokenised: bool
    holdout_fraction: float


def token_file(folder: Path, part: str) -> Path:
    """The tokens of a part."""
    return folder / part


def count_file(folder: Path, part: str) -> Path:
    """How many tokens each document of a part has, its separator included: uint32, little-endian."""
    return folder / f"{part}.counts"


def make_tokens(job: TokenJob) -> None:
    """Write the tokens of one item.

    Raises:
        DataError: the corpus's tokenizer is missing.
    """
    tokenizer = _tokenizer(job.corpus, job.vocabulary)
    sizes = np.fromfile(job.cleaned / SIZES, "<u4").astype(np.int64)
    keys = np.fromfile(job.cleaned / EXACT, "<u8").reshape(-1, 2)
    held_out = keys[:, 1] < np.uint64(min(int(job.holdout_fraction * 2**64), 2**64 - 1))
    later = [read_bits(path, job.start, len(sizes)) for path in job.later]
    exact, near = StepCount(), StepCount()
    kept = _count(exact, np.ones(len(sizes), bool), later[0], sizes, "exact")
    if later[1:]:
        kept = _count(near, kept, functools.reduce(np.logical_or, later[1:]), sizes, "near")
    text_bytes = dict.fromkeys(PARTS, 0)
    with whole_folder(job.folder) as folder:
        files = {
            part: (token_file(folder, part).open("wb"), count_file(folder, part).open("wb")) for part in PARTS
        }
        try:
            for number, tokens, size in _encoded(job, tokenizer, sizes, kept):
                part = PARTS[int(held_out[number])]
                text_bytes[part] += size
                files[part][0].write(tokens.tobytes())
                files[part][1].write(len(tokens).to_bytes(4, "little"))
        finally:
            for pair in files.values():
                for file in pair:
                    file.close()
        write_counts(folder, {"exact": vars(exact), "near": vars(near), "text_bytes": text_bytes})


def _count(
    step: StepCount, before: NDArray[np.bool_], later: NDArray[np.bool_], sizes: NDArray[np.int64], rule: str
) -> NDArray[np.bool_]:
    """What is kept of what there was before."""
    kept = before & ~later
    step.documents_in, step.bytes_in = int(before.sum()), int(sizes[before].sum())
    step.documents_kept, step.bytes_kept = int(kept.sum()), int(sizes[kept].sum())
    if dropped := step.documents_in - step.documents_kept:
        step.dropped[rule] = dropped
    return kept


def _encoded(
    job: TokenJob, tokenizer: Tokenizer, sizes: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Iterator[tuple[int, Tokens, int]]:
    """(number, tokens with their separator, bytes of text) of each document that is kept."""
    kind = token_type(job.vocabulary)
    for numbers, documents in _batches(job.cleaned / TEXT, sizes, kept):
        if not job.tokenised:
            yield from zip(numbers, tokenizer.encode(documents), map(len, documents), strict=True)
            continue
        for number, document in zip(numbers, documents, strict=True):
            tokens = np.append(np.frombuffer(document, "<u4"), np.uint32(job.vocabulary.separator))
            yield number, tokens.astype(kind), len(tokenizer.decode(tokens))


def _batches(
    path: Path, sizes: NDArray[np.int64], kept: NDArray[np.bool_]
) -> Iterator[tuple[list[int], list[bytes]]]:
    numbers: list[int] = []
    documents: list[bytes] = []
    held = 0
    with path.open("rb") as file:
        for number, size in enumerate(sizes.tolist()):
            document = file.read(size)
            if kept[number]:
                numbers.append(number)
                documents.append(document)
                held += size
            if held >= BATCH_BYTES:
                yield numbers, documents
                numbers, documents, held = [], [], 0
    if documents:
        yield numbers, documents


@functools.lru_cache(maxsize=1)
def _tokenizer(corpus: Path, vocabulary: Vocabulary) -> Tokenizer:
    """Kept from job to job: a large one takes a second to load."""
    return corpus_tokenizer(corpus, vocabulary)
