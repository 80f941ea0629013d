"""The fourth stage: the tokens of a source's items, one after the other, cut into chunks.

Where chunks begin follows from how many tokens documents have, so each is written for itself. A chunk takes
documents as long as they fit; one that is larger than a whole chunk is cut into parts that count as
documents, of which only the last ends with a separator.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.corpus.chunks import write_chunk
from lowcomm.data.corpus.manifest import Chunk, Vocabulary
from lowcomm.data.corpus.tokenizer import token_type
from lowcomm.data.making.tokens import count_file, token_file
from lowcomm.data.making.work import whole_file


@dataclass(frozen=True, slots=True)
class Segment:
    """What a chunk has of an item.

    Attributes:
        folder: of the item's tokens.
        start, tokens: the range of its tokens.
        first, documents: of its documents; 0 documents = a part of one.
    """

    folder: Path
    start: int
    tokens: int
    first: int
    documents: int


@dataclass(frozen=True, kw_only=True)
class ChunkJob:
    """One chunk.

    Attributes:
        corpus: where its files go.
        result: where it is written down when they are there.
        part: `training` or `holdout`.
    """

    corpus: Path
    result: Path
    name: str
    source: int
    part: str
    vocabulary: Vocabulary
    segments: Sequence[Segment]


def plan_chunks(folders: Sequence[Path], part: str, chunk_tokens: int) -> Iterator[list[Segment]]:
    """The chunks of a source's part.

    Args:
        folders: of the items' tokens, in order.
        part: `training` or `holdout`.
        chunk_tokens: the most that a chunk has.
    """
    held: list[Segment] = []
    room = chunk_tokens
    for folder in folders:
        ends = np.cumsum(np.fromfile(count_file(folder, part), "<u4"), dtype=np.int64)
        first = start = 0
        while first < len(ends):
            stop = int(np.searchsorted(ends, start + room, side="right"))
            if stop > first:
                tokens = int(ends[stop - 1]) - start
                held.append(Segment(folder, start, tokens, first, stop - first))
                first, start, room = stop, start + tokens, room - tokens
                continue
            if held:
                yield held
                held, room = [], chunk_tokens
                continue
            yield [
                Segment(folder, start, chunk_tokens, first, 0)
            ]  # of a document that is larger than a chunk
            start += chunk_tokens
            if (rest := int(ends[first]) - start) <= chunk_tokens:
                held, room = [Segment(folder, start, rest, first, 0)], chunk_tokens - rest
                first, start = first + 1, start + rest
    if held:
        yield held


def make_chunk(job: ChunkJob) -> Chunk:
    """Write the two files of a chunk; one that is written down already is taken as it is."""
    if job.result.is_file():
        return Chunk(**json.loads(job.result.read_text(encoding="utf-8")))
    kind = token_type(job.vocabulary)
    tokens = np.empty(sum(segment.tokens for segment in job.segments), kind)
    ends: list[NDArray[np.int64]] = []
    at = 0
    for segment in job.segments:
        path = token_file(segment.folder, job.part)
        offset = segment.start * kind.itemsize
        tokens[at : at + segment.tokens] = np.fromfile(path, kind, count=segment.tokens, offset=offset)
        counts = np.array([segment.tokens])
        if segment.documents:
            path = count_file(segment.folder, job.part)
            counts = np.fromfile(path, "<u4", count=segment.documents, offset=4 * segment.first)
        ends.append(at + np.cumsum(counts, dtype=np.int64))
        at += segment.tokens
    made = write_chunk(
        job.corpus, job.name, tokens, np.concatenate(ends), source=job.source, vocabulary=job.vocabulary
    )
    with whole_file(job.result) as path:
        path.write_text(json.dumps(asdict(made)), encoding="utf-8")
    return made
