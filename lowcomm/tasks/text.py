"""The text that a language model is trained on: bytes of files, or the tokens of a corpus."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.reading.files import Opened, open_corpus, tokenizer_files
from lowcomm.data.reading.windows import CorpusWindows, held_out
from lowcomm.data.samples import Dealt, HeldOut, Windows, eval_batches
from lowcomm.data.shards import SEPARATOR, VOCAB_SIZE, ShardedText, load_text
from lowcomm.errors import ConfigError
from lowcomm.tasks.base import Data
from lowcomm.types import Json

UNITS, MOST_IN_UNIT = 256, 1_024
"""Into so many units an epoch is cut, unless these were larger."""


def samples_in_unit(epoch: int) -> int:
    """Where no recipe says it, by the samples of an epoch."""
    return min(MOST_IN_UNIT, max(1, epoch // UNITS))


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """What a recipe says of it.

    Attributes:
        source: files of text; with a manifest the corpus, a folder or URL.
        text_key: see `data.text_key`.
        shards: parts, one for each island.
        holdout_fraction: of files; what a corpus holds out is in it.
        manifest: digest of the corpus's; empty = bytes of files.
        apart: attention does not cross the borders of documents.
        unit_samples: of a corpus, that an island leases at a time; 0 = by the number of its samples.
        cache_gb: what is kept of a corpus behind a URL.
    """

    source: str = "stdlib"
    text_key: str = "text"
    shards: int = 1
    holdout_fraction: float = 0.0
    manifest: str = ""
    apart: bool = False
    unit_samples: int = 0
    cache_gb: float = 0.0

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What a token is.

        Raises:
            DataError: there is no such corpus.
        """
        return (
            self._corpus.manifest.vocabulary
            if self.manifest
            else Vocabulary(size=VOCAB_SIZE, separator=SEPARATOR)
        )

    def write_tokenizer(self, folder: Path) -> None:
        """What makes tokens of text, into an export; nothing where tokens are bytes.

        Raises:
            DataError: the corpus has another one, or none.
        """
        if self.manifest:
            for name, content in tokenizer_files(self._corpus).items():
                (folder / name).write_bytes(content)

    def require_room(self, size: int, setting: str) -> None:
        """Let no model have fewer tokens than the text.

        Args:
            size: of the model's vocabulary.
            setting: that says so.

        Raises:
            ConfigError: it is too small.
        """
        needed = self.vocabulary.size
        if size < needed:
            why = (
                f"those of the corpus of manifest {self.manifest[:12]}"
                if self.manifest
                else "as tokens are bytes"
            )
            raise ConfigError(f"{setting}: expected at least {needed}, {why}, got {size}")

    def open(self, *, context: int, seed: int, say: bool = True) -> Data:
        """All of it in windows.

        Args:
            context: tokens in a window.
            seed: of the division and the orders.
            say: log what is left out.

        Raises:
            DataError: it can't be read, or not be divided as asked.
        """
        if self.manifest:
            return CorpusData(
                self._corpus,
                context=context,
                seed=seed,
                shards=self.shards,
                apart=self.apart,
                unit_samples=self.unit_samples,
            )
        text = load_text(
            self.source,
            text_key=self.text_key,
            shards=self.shards,
            holdout_fraction=self.holdout_fraction,
            seed=seed,
            say=say,
        )
        return TextData(text, context=context, seed=seed)

    @functools.cached_property
    def _corpus(self) -> Opened:
        return open_corpus(self.source, self.manifest, cache_gb=self.cache_gb)


class TextData:
    """Bytes of files, read whole, in windows of one length, as the `Data` of a task."""

    def __init__(self, text: ShardedText, *, context: int, seed: int) -> None:
        self._text, self._context, self._seed = text, context, seed
        self.source, self.digest, self.num_shards = text.source, str(text.digest), text.num_shards

    @property
    def facts(self) -> Mapping[str, Json]:
        return {
            "documents": self._text.documents,
            "text_bytes": self._text.total_bytes,
            "left_out_files": self._text.left_out,
            "all_epoch_tokens": self._text.training_tokens,
        }

    def training(self, shard: int) -> Windows:
        name = f"shard {shard}" if self.num_shards > 1 else "the island's text"
        return Windows(self._text.shard(shard), context=self._context, seed=self._seed, name=name)

    def evaluation(self, samples: int, batch_size: int) -> Iterable[HeldOut]:
        text = self._text.holdout()
        if len(text) <= self._context:
            return ()
        batches = eval_batches(text, context=self._context, num_windows=samples, batch_size=batch_size)
        return (HeldOut(batch, bytes_per_token=1.0) for batch in batches)


class CorpusData:
    """A corpus of tokens as the `Data` of a task; islands lease its samples, fixed parts are blocks of them.

    Attributes:
        unit_samples: in a unit, see `OuterLoop.lease`.
    """

    def __init__(
        self, corpus: Opened, *, context: int, seed: int, shards: int, apart: bool, unit_samples: int = 0
    ) -> None:
        self._corpus, self._context, self._apart = corpus, context, apart
        self._seed = seed
        self.source, self.digest, self.num_shards = corpus.source, corpus.manifest.digest, shards
        self.manifest = corpus.manifest.encode()
        self._unit_samples = unit_samples

    @functools.cached_property
    def unit_samples(self) -> int:
        return self._unit_samples or samples_in_unit(self.samples.count(0))

    @functools.cached_property
    def samples(self) -> CorpusWindows:
        """All of the training part."""
        return CorpusWindows(self._corpus, context=self._context, seed=self._seed, apart=self._apart)

    @property
    def facts(self) -> Mapping[str, Json]:
        manifest = self._corpus.manifest
        return {
            "documents": manifest.documents,
            "text_bytes": sum(source.text_bytes for source in manifest.sources),
            "left_out_files": 0,
            "all_epoch_tokens": manifest.tokens,
        }

    def training(self, shard: int) -> Dealt:
        return Dealt(self.samples, shard, self.num_shards)

    def evaluation(self, samples: int, batch_size: int) -> Iterable[HeldOut]:
        return held_out(
            self._corpus, context=self._context, windows=samples, batch_size=batch_size, apart=self._apart
        )
