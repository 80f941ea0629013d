"""A byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909; GPT-2's splitting) of a source's text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from lowcomm.data.corpus.manifest import Vocabulary
from lowcomm.data.corpus.tokenizer import CONFIG, TOKENIZER, FileTokenizer
from lowcomm.data.left_out import LeftOutError
from lowcomm.data.making.items import items_of, piece_documents
from lowcomm.data.making.spec import SourceSpec
from lowcomm.data.making.work import whole_file
from lowcomm.errors import ConfigError, DataError, StorageError

SEPARATOR = "<|endoftext|>"
LEAST = 257
"""All bytes, and the separator."""


def train_bpe(source: SourceSpec, size: int, out: Path, text_bytes: int) -> Vocabulary:
    """Train a tokenizer and write it as transformers reads it; equal text gives an equal one.

    Args:
        source: of the text.
        size: of the vocabulary, the separator included.
        out: the folder for tokenizer.json.
        text_bytes: about so much of the text is taken, spread over all of it.

    Raises:
        ConfigError: the size is too small, or the library is missing.
        DataError: the source can't be read, or has too little text for so many tokens.
        StorageError: the folder can't be written.
    """
    if size < LEAST:
        raise ConfigError(f"--size: expected at least {LEAST}, all bytes and a separator, got {size}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ConfigError("expected the tokenizers library: pip install 'lowcomm[data]'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        tokenizer.train_from_iterator(_texts(source, text_bytes, out), trainer)
        content = tokenizer.to_str(pretty=True).encode()
        made = FileTokenizer({TOKENIZER: content}, SEPARATOR, str(out / TOKENIZER))
        if made.vocabulary.size < size:
            raise DataError(
                f"source {source.url}: expected text for {size:,} tokens, got enough for "
                f"{made.vocabulary.size:,}; give more text, or a smaller --size"
            )
        for name in (TOKENIZER, CONFIG):
            with whole_file(out / name) as path:
                path.write_bytes(made.files[name])
    except OSError as error:
        raise StorageError(f"{error.filename or out}: can't be written: {error.strerror}") from error
    return made.vocabulary


def _texts(source: SourceSpec, text_bytes: int, out: Path) -> Iterator[str]:
    """Documents whose hash is below a bound, so that they come from all parts of the source."""
    items, _ = items_of(0, source)
    there = sum(max(0, piece.size_bytes) for item in items for piece in item.pieces if _begins(piece.part))
    bound = min(2**64, 2**64 * text_bytes // max(1, there))
    for item in items:
        for piece in item.pieces:
            try:
                for document in piece_documents(piece, source, Vocabulary(), out / "fetched"):
                    if int.from_bytes(blake3(document).digest()[:8], "little") < bound:
                        yield document.decode("utf-8")
            except LeftOutError:  # the same files are no text in the build, which names them
                continue


def _begins(part: tuple[int, int] | None) -> bool:
    return part is None or part[0] == 0
