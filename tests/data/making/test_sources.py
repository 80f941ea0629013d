"""Documents from everything that a source may be, and what is said of those that are none."""

from __future__ import annotations

import gzip
import lzma
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lowcomm.data.corpus.manifest import Manifest
from lowcomm.data.making import formats, remote
from lowcomm.data.making.bpe import train_bpe
from lowcomm.data.making.spec import SourceSpec
from lowcomm.errors import ConfigError, DataError
from tests.data.making.making import documents, made, texts, write_lines

LINES = "".join(f'{{"text": "{text}"}}\n' for text in texts(10)).encode()


@contextmanager
def served(answers: dict[str, list[tuple[int, bytes, int]]]) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server: of each path (status, content, how much of it comes), one after the other."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status, content, _ = answers[self.path][-1]
            self.begin(status, content)

        def do_GET(self) -> None:
            left = answers[self.path]
            status, content, coming = left.pop(0) if len(left) > 1 else left[0]
            asked.append(self.path)
            self.begin(status, content)
            self.wfile.write(content[:coming])
            self.close_connection = True

        def begin(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote.fetch, "__defaults__", ((0.0, 0.0),))


def test_all_kinds_of_files_hold_documents(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    (folder / "b.jsonl.xz").write_bytes(lzma.compress(b'{"text": "two"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["three", "four"]}), folder / "c.parquet")
    (folder / "d.md").write_text("five\nsix")
    made(tmp_path / "out", folder, holdout_fraction=0)
    assert documents(tmp_path / "out") == ["one", "two", "three", "four", "five\nsix"]


def test_a_format_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(LINES)
    made(tmp_path / "out", {"url": str(tmp_path / "a.log"), "format": "json_lines"}, holdout_fraction=0)
    assert documents(tmp_path / "out") == texts(10)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    source = write_lines(folder / "text.jsonl", texts(300))
    train_bpe(SourceSpec(url=str(source)), 300, folder / "bpe", 10**6)
    return folder / "bpe"


def header(magic: int, count: int) -> bytes:
    return np.array([magic, 1, count, *[0] * 253], "<i4").tobytes()


@pytest.mark.parametrize("kind", ["uint16", "uint32", "llm.c", "llm.c of Llama 3", "npy"])
def test_what_is_tokenised_keeps_its_tokens(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    source = write_lines(tmp_path / "a.jsonl", [*texts(40), *texts(5)])
    spec = {"tokenizer": {"path": str(tokenizer)}, "holdout_fraction": 0.1}
    once = made(tmp_path / "once", source, **spec)
    manifest = Manifest.read(tmp_path / "once")
    chunks = [tmp_path / "once" / "chunks" / f"{chunk.name}.bin" for chunk in manifest.chunks]
    tokens = np.concatenate([np.fromfile(path, "<u2") for path in chunks])
    if kind == "npy":
        np.save(tmp_path / "b.npy", tokens)
        source, given = tmp_path / "b.npy", ""
    else:
        wide = kind in ("uint32", "llm.c of Llama 3")
        before = {"llm.c": header(20240520, len(tokens)), "llm.c of Llama 3": header(20240801, len(tokens))}
        source, given = tmp_path / "b.bin", kind if kind.startswith("uint") else ""
        source.write_bytes(before.get(kind, b"") + tokens.astype("<u4" if wide else "<u2").tobytes())
    again = made(tmp_path / "again", {"url": str(source), "format": given}, **spec, step=[{"name": "pii"}])
    assert again.tokens + again.holdout_tokens == once.tokens + once.holdout_tokens
    all_of = [
        sorted(documents(tmp_path / name, Manifest.read(tmp_path / name).chunks))
        for name in ("once", "again")
    ]
    assert all_of[0] == all_of[1] == sorted(texts(40))
    assert Manifest.read(tmp_path / "again").sources[0].text_bytes > 0


def test_a_text_that_names_the_separator_does_not_end_there(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["before <|endoftext|> after"])
    made(tmp_path / "out", source, tokenizer={"path": str(tokenizer)}, holdout_fraction=0)
    assert documents(tmp_path / "out") == ["before <|endoftext|> after"]


def test_a_long_run_of_tokens_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "READ_TOKENS", 30)
    monkeypatch.setattr(formats, "MOST_TOKENS", 90)
    np.arange(1, 201, dtype="<u2").tofile(tmp_path / "a.bin")
    made(tmp_path / "out", tmp_path / "a.bin", holdout_fraction=0)
    assert Manifest.read(tmp_path / "out").training[0].documents == 3


def test_files_come_from_a_server(tmp_path: Path) -> None:
    with served({"/a.jsonl": [(200, LINES, len(LINES))]}) as (url, asked):
        made(tmp_path / "out", f"{url}/a.jsonl", holdout_fraction=0)
        assert documents(tmp_path / "out") == texts(10)
        assert asked == ["/a.jsonl"]
    assert Manifest.read(tmp_path / "out").sources[0].url == f"{url}/a.jsonl"


@pytest.mark.parametrize("status", [429, 503, 200], ids=["429", "503", "half a body"])
def test_a_server_that_fails_for_a_while_is_asked_again(tmp_path: Path, at_once: None, status: int) -> None:
    answers = {"/a.jsonl": [(status, LINES, len(LINES) // 2), (200, LINES, len(LINES))]}
    with served(answers) as (url, asked):
        made(tmp_path / "out", f"{url}/a.jsonl", holdout_fraction=0)
        assert len(asked) == 2
    assert documents(tmp_path / "out") == texts(10)


@pytest.mark.parametrize(
    ("status", "message", "times"),
    [
        (404, r"expected a file, got nothing of that name \(404\)", 2),
        (403, "can't be read: 403 Forbidden", 2),
        (429, "can't be read: 429 Too Many Requests", 4),
        (200, "can't be read: ClientPayloadError", 3),
    ],
    ids=["404", "403", "429", "half a body"],
)
def test_a_server_that_goes_on_failing_is_told(
    tmp_path: Path, at_once: None, status: int, message: str, times: int
) -> None:
    with served({"/a.jsonl": [(status, LINES, len(LINES) // 2)]}) as (url, asked):
        with pytest.raises(DataError, match=message) as raised:
            made(tmp_path / "out", f"{url}/a.jsonl")
        assert f"{url}/a.jsonl" in str(raised.value)
        assert "\n" not in str(raised.value)
        assert len(asked) == times  # once more where the size isn't told, for which fsspec asks, too


@pytest.mark.parametrize(
    ("name", "content", "more", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\nno\n', {}, r"source a: .*a.jsonl:2: expected a JSON object in one line"),
        ("a.jsonl", b'{"body": "x"}\n', {}, r"expected the key 'text', got the keys body; set text_key"),
        ("a.jsonl", b"\n\n", {}, r"source a: expected text at .*, got 1 files, none with text: 1 empty"),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], {}, r"gz: is compressed, and damaged or cut"),
        ("a.parquet", b"PAR1", {}, r"a.parquet: expected a Parquet file, got one that is cut or damaged"),
        ("a.txt", b"\xff\xfe\xfd", {}, r"none with text: 1 "),
        ("a.bin", b"\1\0\2", {}, r"a.bin: expected 1 tokens of 2 bytes after a header of 0, got 3 bytes"),
        ("a.bin", header(20240520, 9) + b"\1\0", {}, r"expected 9 tokens of 2 bytes after a header of 1024"),
        ("a.bin", b"\1\0\0\1", {}, r"expected tokens below 256, as the tokenizer has them, got 256 at 1"),
        ("a.npy", b"nothing", {}, r"a.npy: expected an array of numpy"),
        ("a.txt", b"x", {"format": "csv"}, r"source 1: format: expected one of text, json_lines, parquet"),
        ("a.txt", b"x", {"weight": 0}, r"source 1: weight: expected a number above 0, got 0"),
        ("a.txt", b"x", {"lisence": "MIT"}, r"source 1: lisence: unknown key; did you mean licence\?"),
        ("a.txt", b"x", {"split": "test"}, r"config and split: expected format = \"hub\" with them"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_is_one_line(tmp_path: Path, name, content, more, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((DataError, ConfigError), match=message) as raised:
        made(tmp_path / "out", {"url": str(tmp_path / name), **more})
    assert "\n" not in str(raised.value)
    assert "data." not in str(raised.value).replace(str(tmp_path), "")


def test_nothing_there_is_said_with_the_source(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r'source x: source .*/x: expected "stdlib", a folder, a file or a glob'
    ):
        made(tmp_path / "out", tmp_path / "x")


def test_a_glob_behind_a_url_is_read_in_order(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for name, content in (("b.jsonl", LINES), ("a.txt", b"first"), ("c.md", b"other")):
        memory.pipe(f"/corpus/{name}", content)
    try:
        for url, expected in (
            ("memory://corpus/*.jsonl", texts(10)),
            ("memory://corpus", ["first", *texts(10), "other"]),
            (f"file://{tmp_path}/here", ["here"]),
        ):
            (tmp_path / "here").write_text("here")
            out = tmp_path / str(len(expected))
            made(out, url, holdout_fraction=0)
            assert documents(out) == expected
        with pytest.raises(
            DataError, match=r"memory://corpus/\*.xml: expected files, but nothing there matches"
        ):
            made(tmp_path / "out", "memory://corpus/*.xml")
    finally:
        memory.rm("/corpus", recursive=True)


def test_what_no_library_reads_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="what://x: can't be read: ValueError: Protocol not known: what"):
        made(tmp_path / "out", "what://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        DataError, match=r"s3://b/x: expected a library that reads it, got: .*s3fs.*pip install"
    ):
        made(tmp_path / "out", "s3://b/x")


def test_equal_text_gives_an_equal_tokenizer(tmp_path: Path, tokenizer: Path) -> None:
    source = write_lines(tmp_path / "again.jsonl", texts(300))
    train_bpe(SourceSpec(url=str(source)), 300, tmp_path / "bpe", 10**6)
    for path in tokenizer.iterdir():
        assert path.read_bytes() == (tmp_path / "bpe" / path.name).read_bytes()
    trained = train_bpe(SourceSpec(url=str(source)), 270, tmp_path / "less", 2_000)  # of some documents only
    assert trained.size == 270


def test_text_and_tokens_in_one_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.bin").write_bytes(b"\1\0")
    (tmp_path / "in" / "b.txt").write_text("text")
    with pytest.raises(DataError, match="source in: expected text or tokens, got files of both"):
        made(tmp_path / "out", tmp_path / "in")


def test_a_data_set_of_the_hub_is_told_apart_from_no_network(tmp_path: Path, monkeypatch) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"text": texts(8)}).to_iterable_dataset(num_shards=2)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **more: rows)
    made(tmp_path / "out", {"url": "some/set", "format": "hub"}, holdout_fraction=0)
    assert documents(tmp_path / "out") == texts(8)

    def refuse(*args: object, **more: object) -> None:
        raise ConnectionError("Couldn't reach 'some/set' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        DataError, match="some/set: can't be read: ConnectionError: Couldn't reach 'some/set'"
    ):
        made(tmp_path / "other", {"url": "some/set", "format": "hub"})
