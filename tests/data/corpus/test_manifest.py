import json
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.data.corpus.manifest import MANIFEST, Chunk, Manifest, Source, Step, Vocabulary
from lowcomm.errors import DataError

CHUNK = Chunk(
    name="000000", source=0, tokens=900, documents=3, tokens_blake3="aa" * 32, ends_blake3="bb" * 32
)
MADE = Manifest(
    vocabulary=Vocabulary(kind="tokenizer.json", blake3="cc" * 32, size=32_000, separator=2),
    sources=(
        Source(name="Zürich", url="/d/*.jsonl", blake3="dd" * 32, documents=3, tokens=900, text_bytes=4_000),
    ),
    steps=(
        Step(
            name="length",
            settings={"at_least": 200},
            documents_in=5,
            bytes_in=4_100,
            documents_kept=3,
            bytes_kept=4_000,
            dropped={"too short": 2},
        ),
    ),
    training=(CHUNK,),
    holdout=(replace(CHUNK, name="000001", tokens=40),),
)


def test_what_is_written_is_read() -> None:
    assert Manifest.decode(MADE.encode()) == MADE
    assert (MADE.tokens, MADE.documents, MADE.vocabulary.token_bytes) == (900, 3, 2)
    assert [chunk.name for chunk in MADE.chunks] == ["000000", "000001"]


def test_any_change_is_another_digest() -> None:
    other = replace(MADE, training=(replace(CHUNK, tokens=901),))
    assert other.digest != MADE.digest == Manifest.decode(MADE.encode()).digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("corpus 1", "corpus 2"), "a manifest of format 'lowcomm corpus 1', got"),
        (lambda t: t.replace(":", ": "), "was changed by hand"),
        (lambda t: t.rstrip(), "was changed by hand"),
        (lambda t: t[: len(t) // 2], "expected a corpus manifest, got something else"),
        (lambda t: "[]", "expected a corpus manifest, got something else"),
        (lambda t: json.dumps({**json.loads(t), "more": 1}), "expected a corpus manifest, got"),
        (lambda t: t.replace('"sources":[{', '"sources":[3,{'), "expected a corpus manifest, got"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_said(change, message, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(change(MADE.encode().decode()))
    with pytest.raises(DataError, match=message) as raised:
        Manifest.read(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / MANIFEST))


def test_a_folder_without_one_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"as `lowcomm data build` makes it: No such file"):
        Manifest.read(tmp_path)
