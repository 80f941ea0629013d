"""Divide the documents: some whole ones for evaluation, the rest dealt into shards.

Every island computes the same division from the same documents and seed, and trains on one shard.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lowcomm.data.order import permutation
from lowcomm.data.sources import Corpus, load_corpus
from lowcomm.errors import DataError
from lowcomm.types import Digest

VOCAB_SIZE = 256
"""Tokens are bytes."""
SEPARATOR = 0
"""The token between two documents; files that hold it count as binary."""


@dataclass(frozen=True, eq=False, slots=True)
class Division:
    """Which documents go where; places in the corpus, each list ascending.

    Attributes:
        holdout: (held out,) documents for evaluation; empty if there are none.
        shards: a (documents,) array for each shard, none empty.
    """

    holdout: NDArray[np.int64]
    shards: tuple[NDArray[np.int64], ...]


def divide(sizes: NDArray[np.int64], *, shards: int, holdout_fraction: float, seed: int) -> Division:
    """Deal documents at random into shards of nearly equal bytes.

    Documents are dealt in a random order, those with more binary digits in their size first, each to
    the lightest shard (longest processing time first; Graham 1969).

    Args:
        sizes: (documents,) bytes of each, all positive.
        shards: how many parts, each of at least one document.
        holdout_fraction: part of the documents that is held out: at least one, if it is above zero
            and there are two documents or more.
        seed: the same seed gives the same division on any machine.

    Raises:
        DataError: fewer documents than shards.
    """
    count = len(sizes)
    order = permutation(count, "documents", seed)
    held = 0
    if holdout_fraction > 0 and count >= 2:
        held = min(count - 1, max(1, round(holdout_fraction * count)))
    training = order[held:]
    if len(training) < shards:
        raise DataError(
            f"expected at least {shards} documents for training, one for each of shared.data.shards, got "
            f"{len(training)} ({count} in all, {held} held out for evaluation); more islands than "
            "documents can't train: lower shared.data.shards or give more documents"
        )
    magnitude = np.frexp(sizes[training].astype(np.float64))[1]
    dealt: list[list[int]] = [[] for _ in range(shards)]
    lightest = [(0, shard) for shard in range(shards)]
    for document in training[np.argsort(-magnitude, kind="stable")].tolist():
        load, shard = lightest[0]
        dealt[shard].append(document)
        heapq.heapreplace(lightest, (load + int(sizes[document]), shard))
    return Division(
        holdout=np.sort(order[:held]),
        shards=tuple(np.sort(np.array(documents, dtype=np.int64)) for documents in dealt),
    )


def concatenate(corpus: Corpus, documents: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(tokens,) the documents one after the other, a `SEPARATOR` between; empty if there are none."""
    if not len(documents):
        return np.empty(0, dtype=np.uint8)
    tokens = np.full(int(corpus.sizes[documents].sum()) + len(documents) - 1, SEPARATOR, dtype=np.uint8)
    start = 0
    for document in documents.tolist():
        text = corpus[document]
        tokens[start : start + len(text)] = text
        start += len(text) + 1
    return tokens


class ShardedText:
    """A corpus and its division.

    Attributes:
        source: as it was asked for.
        digest: of the documents; islands with another digest don't share the division.
        documents: how many there are.
        num_shards: how many parts they are dealt into.
        total_bytes: of all documents.
        training_tokens: of all shards together, in one epoch.
        left_out: files of the source that are not in it.
    """

    def __init__(self, corpus: Corpus, division: Division) -> None:
        self._corpus, self._division = corpus, division
        self.source: str = corpus.source
        self.digest: Digest = corpus.digest
        self.documents: int = len(corpus)
        self.num_shards: int = len(division.shards)
        self.total_bytes: int = len(corpus.text)
        self.left_out: int = corpus.left_out
        self.training_tokens: int = sum(
            int(corpus.sizes[shard].sum()) + len(shard) - 1 for shard in division.shards
        )

    def shard(self, index: int) -> NDArray[np.uint8]:
        """(tokens,) of the training text of one shard.

        Raises:
            DataError: there is no such shard.
        """
        if not 0 <= index < self.num_shards:
            raise DataError(f"data.shard: expected 0 to {self.num_shards - 1}, got {index}")
        return concatenate(self._corpus, self._division.shards[index])

    def training(self) -> NDArray[np.uint8]:
        """(tokens,) of all shards together, in the order of the source."""
        return concatenate(self._corpus, np.sort(np.concatenate(self._division.shards)))

    def holdout(self) -> NDArray[np.uint8]:
        """(tokens,) of the text that no island trains on; empty if none is held out."""
        return concatenate(self._corpus, self._division.holdout)


def load_text(
    source: str,
    *,
    text_key: str = "text",
    shards: int,
    holdout_fraction: float,
    seed: int,
    say: bool = True,
) -> ShardedText:
    """Read a source and divide its documents; see `load_corpus` and `divide`.

    Raises:
        DataError: the text can't be read, or not be divided as asked.
    """
    corpus = load_corpus(source, text_key, say=say)
    try:
        division = divide(corpus.sizes, shards=shards, holdout_fraction=holdout_fraction, seed=seed)
    except DataError as error:
        raise DataError(f"data.source {source}: {error}") from None
    return ShardedText(corpus, division)
