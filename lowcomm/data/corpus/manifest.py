"""What a corpus is made of: one canonical JSON object, whose digest names all of it.

The format is said in docs/design/0025-corpus.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from lowcomm.errors import DataError

MANIFEST = "manifest.json"
CHUNKS = "chunks"
FORMAT = "lowcomm corpus 1"
BYTES = "bytes"
"""The tokenizer without a file: a token is a byte, 0 ends a document."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokens of one source in two files.

    Attributes:
        name: of the files in `chunks/`, without a suffix.
        source: number of the source in the manifest's list.
        tokens: how many, separators included.
        documents: that end in it.
        tokens_blake3, ends_blake3: hex, of `.bin` and `.ends`.
    """

    name: str
    source: int
    tokens: int
    documents: int
    tokens_blake3: str
    ends_blake3: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from, and how much of it is in the corpus.

    Attributes:
        name: how people call it.
        url: as the specification named it.
        origin: where it comes from before that, in the user's words.
        licence: SPDX identifier, or the user's words.
        weight: how often it is drawn in an epoch.
        blake3: hex, of all of its documents as they were read, before any step.
        documents, tokens, text_bytes: that training has.
        holdout_documents, holdout_tokens, holdout_text_bytes: that nobody trains on.
    """

    name: str
    url: str
    blake3: str
    origin: str = ""
    licence: str = ""
    weight: float = 1.0
    documents: int
    tokens: int
    text_bytes: int
    holdout_documents: int = 0
    holdout_tokens: int = 0
    holdout_text_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A declared step of cleaning, and what it did.

    Attributes:
        settings: as the specification had them.
        dropped: rule -> documents.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    documents_in: int
    bytes_in: int
    documents_kept: int
    bytes_kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a token is.

    Attributes:
        kind: `bytes`, or `tokenizer.json`.
        blake3: hex, of tokenizer.json as it lies in the corpus; empty for bytes.
        size: tokens are below it.
        separator: the token that ends a document.
    """

    kind: str = BYTES
    blake3: str = ""
    size: int = 256
    separator: int = 0

    @property
    def token_bytes(self) -> int:
        """Of a token in a chunk: 1, 2 or 4."""
        return 1 if self.size <= 1 << 8 else 2 if self.size <= 1 << 16 else 4


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A whole corpus.

    Attributes:
        vocabulary: what a token is.
        sources: chunks name them by number.
        steps: of cleaning, in their order.
        training: chunks, in their order.
        holdout: chunks that nobody trains on.
    """

    vocabulary: Vocabulary
    sources: tuple[Source, ...]
    steps: tuple[Step, ...] = ()
    training: tuple[Chunk, ...]
    holdout: tuple[Chunk, ...] = ()

    @property
    def tokens(self) -> int:
        """That are trained on, held-out ones apart."""
        return sum(chunk.tokens for chunk in self.training)

    @property
    def documents(self) -> int:
        """That are trained on, held-out ones apart."""
        return sum(chunk.documents for chunk in self.training)

    @property
    def chunks(self) -> Iterator[Chunk]:
        """All of both parts."""
        yield from self.training
        yield from self.holdout

    def encode(self) -> bytes:
        """Canonical: equal manifests are equal bytes."""
        values = {"format": FORMAT, **asdict(self)}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    @property
    def digest(self) -> str:
        """Hex; what `[shared]` pins."""
        return blake3(self.encode()).hexdigest()

    @classmethod
    def decode(cls, content: bytes, where: str = MANIFEST) -> Manifest:
        """What `encode` wrote.

        Raises:
            DataError: it is no manifest, or not written as `encode` does.
        """
        try:
            values = json.loads(content)
            found = values.pop("format")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where}: expected a corpus manifest, got something else: {error}") from error
        if found != FORMAT:
            raise DataError(f"{where}: expected a manifest of format {FORMAT!r}, got {found!r}")
        try:
            manifest = cls(
                vocabulary=Vocabulary(**values.pop("vocabulary")),
                sources=tuple(Source(**each) for each in values.pop("sources")),
                steps=tuple(Step(**each) for each in values.pop("steps")),
                training=tuple(Chunk(**each) for each in values.pop("training")),
                holdout=tuple(Chunk(**each) for each in values.pop("holdout")),
                **values,
            )
            whole = manifest.encode() == content
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{where}: expected a corpus manifest, got something else: {error}") from error
        if not whole:
            raise DataError(f"{where}: was changed by hand: it is not as `lowcomm data build` writes it")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a corpus on disk.

        Raises:
            DataError: there is none, or it is damaged.
        """
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{folder}: expected a corpus with a {MANIFEST}, as `lowcomm data build` makes it: "
                f"{error.strerror}"
            ) from error
        return cls.decode(content, str(path))
