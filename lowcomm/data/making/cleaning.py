"""The first stage: an item's documents are read, cleaned and written, with their hashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.left_out import EMPTY, LeftOutError
from lowcomm.data.making.items import Item, Piece, piece_documents
from lowcomm.data.making.spec import SourceSpec, StepSpec
from lowcomm.data.making.steps import KEY_BYTES, Bands, Clean, make_steps
from lowcomm.data.making.work import whole_folder, write_counts

TEXT, SIZES, EXACT = "text", "sizes", "exact"
SIZE_BYTES = 4
"""Of a document's size in bytes, little-endian."""


def band_name(band: int) -> str:
    """The file of a band's hashes."""
    return f"near-{band:03d}"


@dataclass(frozen=True, kw_only=True)
class CleanJob:
    """One item.

    Attributes:
        folder: of the result: the documents' text, sizes and hashes, each in a file, and counts.
        fetched: where a remote file lies meanwhile.
        steps: none where the source holds tokens.
        bands: of MinHash; a document without any has its own hash in their place.
    """

    folder: Path
    fetched: Path
    item: Item
    source: SourceSpec
    vocabulary: Vocabulary
    steps: tuple[StepSpec, ...]
    bands: int


@dataclass
class StepCount:
    """What a step has done; the fields of a manifest's `Step`."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_kept: int = 0
    bytes_kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, other: dict[str, Any]) -> None:
        """Count what was done elsewhere, as `vars` gives it."""
        self.documents_in += other["documents_in"]
        self.bytes_in += other["bytes_in"]
        self.documents_kept += other["documents_kept"]
        self.bytes_kept += other["bytes_kept"]
        self.dropped.update(other["dropped"])


def clean_item(job: CleanJob) -> None:
    """Read, clean and write one item.

    Raises:
        DataError: it can't be read, or something in it is wrong.
        ConfigError: a step can't be made.
    """
    steps, _, bands = make_steps(job.steps)
    with whole_folder(job.folder) as folder:
        names = (TEXT, SIZES, EXACT, *map(band_name, range(job.bands)))
        files = [(folder / name).open("wb") for name in names]
        try:
            writer = _Writer(files, steps, bands)
            left_out = [found for piece in job.item.pieces if (found := writer.add(piece, job))]
        finally:
            for file in files:
                file.close()
        write_counts(
            folder,
            {
                "digest": writer.digest.hexdigest(),
                "steps": [vars(count) for count in writer.counts],
                "documents": writer.documents,
                "left_out": left_out,
            },
        )


class _Writer:
    """Writes an item's documents; a piece that turns out to be no text is taken back.

    Args:
        files: open ones: text, sizes, hashes, and those of the bands.
        steps: of cleaning.
        bands: what computes the bands; None = none is declared, or there is no text.
    """

    def __init__(self, files: Sequence[BinaryIO], steps: Sequence[Clean], bands: Bands | None) -> None:
        self._files, self._steps, self._bands = files, steps, bands
        self.counts = [StepCount() for _ in steps]
        self.documents, self.digest = 0, blake3()

    def add(self, piece: Piece, job: CleanJob) -> list[str] | None:
        """Write the documents of a piece; why it is left out, if it is."""
        before = [file.tell() for file in self._files], self.documents
        counts, digest, read = [StepCount() for _ in self._steps], blake3(), 0
        try:
            for document in piece_documents(piece, job.source, job.vocabulary, job.fetched):
                if document:
                    read += 1
                    digest.update(key := blake3(document).digest()[:KEY_BYTES])
                    self._clean(document, key, counts)
        except LeftOutError as error:
            for file, position in zip(self._files, before[0], strict=True):
                file.seek(position)
                file.truncate()
            self.documents = before[1]
            return [piece.name, *error.reason, error.detail]
        for mine, found in zip(self.counts, counts, strict=True):
            mine.add(vars(found))
        self.digest.update(digest.digest())
        return None if read or piece.part else [piece.name, *EMPTY, ""]

    def _clean(self, document: bytes, key: bytes, counts: Sequence[StepCount]) -> None:
        """One document through all steps, and into the files."""
        text = document.decode("utf-8") if self._steps or self._bands else ""
        if self._steps:
            for clean, count in zip(self._steps, counts, strict=True):
                count.documents_in += 1
                count.bytes_in += len(document)
                text, dropped = clean(text)
                document = text.encode("utf-8")
                if dropped or not document:
                    count.dropped[dropped or "nothing left"] += 1
                    return
                count.documents_kept += 1
                count.bytes_kept += len(document)
            key = blake3(document).digest()[:KEY_BYTES]
        found = self._bands(text) if self._bands else None
        keys = [key, *(found or [key] * (len(self._files) - 3))]
        values = (document, len(document).to_bytes(SIZE_BYTES, "little"), *keys)
        for file, value in zip(self._files, values, strict=True):
            file.write(value)
        self.documents += 1
