"""Text to tokens: bytes as they are, or what a `tokenizer.json` of the `tokenizers` library says.

A document's tokens end with one separator. Text that looks like a special token is encoded as the text that
it is, so no document can end itself, or speak for somebody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3

from lowcomm.data.corpus.chunks import Tokens
from lowcomm.data.corpus.manifest import BYTES, Vocabulary
from lowcomm.errors import ConfigError, DataError

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""Of a Hugging Face folder, what belongs to its tokenizer beside tokenizer.json."""
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
PIECE_BYTES = 1 << 20
"""A longer document is encoded in pieces that end after a line, so that memory has a bound."""


class Tokenizer(Protocol):
    """What makes tokens of text, and text of tokens."""

    @property
    def vocabulary(self) -> Vocabulary:
        """What a token is."""
        ...

    @property
    def files(self) -> Mapping[str, bytes]:
        """What a corpus has of it, by name."""
        ...

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        """The tokens of each document of UTF-8, its separator included, as chunks hold them."""
        ...

    def decode(self, tokens: Tokens) -> bytes:
        """The text of tokens, without separators."""
        ...


def token_type(vocabulary: Vocabulary) -> np.dtype[np.unsignedinteger[Any]]:
    """Of a token in a chunk: little-endian."""
    return np.dtype(f"<u{vocabulary.token_bytes}")


def load_tokenizer(path: str = "", separator: str = "") -> Tokenizer:
    """A tokenizer as a specification names it.

    Args:
        path: a tokenizer.json, or a folder with one; empty = bytes.
        separator: the token that ends a document; empty = what the folder, or custom, says.

    Raises:
        ConfigError: there is none, or no token that ends a document.
    """
    if not path:
        return ByteTokenizer()
    file = Path(path).expanduser()
    file = file / TOKENIZER if file.is_dir() else file
    files = {TOKENIZER: _read(file)}
    if file.name == TOKENIZER:
        files |= {name: _read(file.parent / name) for name in BESIDE if (file.parent / name).is_file()}
    return FileTokenizer(files, separator, str(file))


def corpus_tokenizer(folder: Path, vocabulary: Vocabulary) -> Tokenizer:
    """The tokenizer of a corpus on disk.

    Raises:
        DataError: it is missing, or is not the one that the manifest names.
    """
    if vocabulary.kind == BYTES:
        return ByteTokenizer()
    try:
        content = (folder / TOKENIZER).read_bytes()
    except OSError as error:
        raise DataError(f"{folder / TOKENIZER}: expected the corpus's tokenizer: {error.strerror}") from error
    found = blake3(content).hexdigest()
    if found != vocabulary.blake3:
        raise DataError(
            f"{folder / TOKENIZER}: expected the corpus's tokenizer, blake3 {vocabulary.blake3[:16]}, got "
            f"{found[:16]}; fetch it again"
        )
    return FileTokenizer({TOKENIZER: content}, vocabulary.separator, str(folder / TOKENIZER))


class ByteTokenizer:
    """A token is a byte; 0 ends a document."""

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary()

    @property
    def files(self) -> Mapping[str, bytes]:
        return {}

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        return [np.frombuffer(document + b"\0", np.uint8) for document in documents]

    def decode(self, tokens: Tokens) -> bytes:
        return bytes(tokens.astype(np.uint8)).replace(b"\0", b"")


class FileTokenizer:
    """One of the `tokenizers` library.

    Args:
        files: tokenizer.json, and what lies beside it.
        separator: the token that ends a document, or its number; empty = found in the files.
        where: named in errors.
    """

    def __init__(self, files: Mapping[str, bytes], separator: str | int, where: str) -> None:
        self._where = where
        # each process encodes on one thread: processes are what a build has many of
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        try:
            import tokenizers
        except ImportError as error:
            raise ConfigError(
                f"{where}: expected the tokenizers library: pip install 'lowcomm[data]'"
            ) from error
        try:
            self._library = tokenizers.Tokenizer.from_buffer(files[TOKENIZER])
        except Exception as error:  # the library raises a bare Exception
            raise ConfigError(
                f"{where}: expected a tokenizer.json of the tokenizers library: {error}"
            ) from error
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        known = self._library.get_vocab(with_added_tokens=True)
        name = self._library.id_to_token(separator) if isinstance(separator, int) else separator
        name = name or self._named(files, known)
        if name not in known:
            raise ConfigError(
                f"{where}: expected a token that ends a document, got {name or 'none of the usual ones'!r}, "
                "which the vocabulary doesn't have; set tokenizer.separator to one of its tokens"
            )
        written = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": name}
        self._files = {CONFIG: json.dumps(written, indent=1).encode() + b"\n", **files}
        self._vocabulary = Vocabulary(
            kind=TOKENIZER,
            blake3=blake3(files[TOKENIZER]).hexdigest(),
            size=max(known.values()) + 1,
            separator=known[name],
        )

    def _named(self, files: Mapping[str, bytes], known: Mapping[str, int]) -> str:
        """The end-of-text token: of tokenizer_config.json, or one of the usual names."""
        if CONFIG in files:
            try:
                found = json.loads(files[CONFIG]).get("eos_token")
            except (ValueError, AttributeError) as error:
                raise ConfigError(f"{self._where}: expected JSON beside it in {CONFIG}: {error}") from error
            named = found.get("content") if isinstance(found, dict) else found
            if isinstance(named, str) and named in known:
                return named
        return next((name for name in _SEPARATORS if name in known), "")

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @property
    def files(self) -> Mapping[str, bytes]:
        return self._files

    def encode(self, documents: Sequence[bytes]) -> list[Tokens]:
        kind, separator = token_type(self._vocabulary), self._vocabulary.separator
        pieces = [list(_pieces(document)) for document in documents]
        texts = [piece.decode("utf-8") for parts in pieces for piece in parts]
        encoded = iter(self._library.encode_batch_fast(texts, add_special_tokens=False))
        found: list[Tokens] = []
        for parts in pieces:
            ids = [token for _ in parts for token in next(encoded).ids]
            ids.append(separator)
            found.append(np.array(ids, dtype=kind))
        return found

    def decode(self, tokens: Tokens) -> bytes:
        kept = tokens[tokens != self._vocabulary.separator].tolist()
        return self._library.decode(kept, skip_special_tokens=False).encode()


def _pieces(document: bytes) -> Iterator[bytes]:
    start = 0
    while len(document) - start > PIECE_BYTES:
        end = document.rfind(b"\n", start, start + PIECE_BYTES) + 1
        if end <= start:  # one long line: after a character, whose later bytes begin with 10
            end = start + PIECE_BYTES
            while document[end] & 0xC0 == 0x80:
                end -= 1
        yield document[start:end]
        start = end
    yield document[start:]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file}: expected a tokenizer.json, or a folder with one (transformers writes it with "
            f"save_pretrained): {error.strerror}"
        ) from error
