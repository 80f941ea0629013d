"""What a corpus holds, and that it depends on nothing but its specification and its sources."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from lowcomm.data.corpus.manifest import MANIFEST, Manifest
from lowcomm.data.making import items, work
from lowcomm.data.making.build import BUILDING, build
from lowcomm.data.making.spec import spec_of
from lowcomm.errors import LowcommError, StorageError
from tests.data.making.making import documents, made, texts, write_lines


def test_documents_come_in_order_each_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "in" / "b.jsonl", texts(20, 10))
    write_lines(tmp_path / "in" / "a.jsonl", texts(15))
    built = made(tmp_path / "out", tmp_path / "in", holdout_fraction=0)
    assert documents(tmp_path / "out") == texts(30)
    assert (built.documents, built.dropped, built.holdout_documents) == (30, {"duplicates: exact": 5}, 0)
    assert built.tokens == sum(len(text) + 1 for text in texts(30))
    assert built.manifest == Manifest.read(tmp_path / "out").digest
    assert not (tmp_path / "out" / BUILDING).exists()


def test_sources_keep_their_names_and_the_first_has_what_is_in_both(tmp_path: Path) -> None:
    web = write_lines(tmp_path / "web.jsonl", texts(10))
    books = write_lines(tmp_path / "books.jsonl", texts(10, 5))
    sources = [
        {"url": str(web), "licence": "ODC-BY-1.0", "weight": 2.0, "origin": "the web"},
        {"url": str(books), "name": "my books"},
    ]
    made(tmp_path / "out", *sources, holdout_fraction=0)
    manifest = Manifest.read(tmp_path / "out")
    first, second = manifest.sources
    assert (first.name, first.licence, first.weight, first.origin) == ("web", "ODC-BY-1.0", 2.0, "the web")
    assert (second.name, first.documents, second.documents) == ("my books", 10, 5)
    assert first.text_bytes == sum(map(len, texts(10))) == first.tokens - 10
    assert [chunk.source for chunk in manifest.training] == [0, 1]


def test_chunks_are_cut_between_documents(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [*texts(50), "long" * 100, *texts(10, 100)])
    made(tmp_path / "out", source, holdout_fraction=0, chunk_tokens=120)
    manifest = Manifest.read(tmp_path / "out")
    chunks = manifest.training
    assert all(chunk.tokens <= 120 for chunk in chunks)
    alone = [chunk for chunk in chunks if chunk.tokens == 120 and chunk.documents == 1]
    assert len(alone) == 3  # the long one has 401 tokens; its last part begins a chunk of more documents
    assert "".join(documents(tmp_path / "out")) == "".join([*texts(50), "long" * 100, *texts(10, 100)])
    # each chunk could not have taken the first document of the next one
    sizes = [len(found) + 1 for found in documents(tmp_path / "out")]
    at = 0
    for chunk in chunks[:-1]:
        at += chunk.documents
        assert chunk.tokens + min(sizes[at], 120) > 120


def test_the_same_documents_are_held_out_in_every_corpus(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", texts(400))
    other = write_lines(tmp_path / "other.jsonl", reversed(texts(300, 200)))
    held = []
    for source in (one, other):
        out = tmp_path / f"out-{source.stem}"
        made(out, source, holdout_fraction=0.1)
        manifest = Manifest.read(out)
        held.append(set(documents(out, manifest.holdout)))
        assert held[-1].isdisjoint(documents(out))
        assert manifest.sources[0].holdout_documents == len(held[-1])
    assert 20 < len(held[0]) < 60
    shared = set(texts(200, 200))
    assert held[0] & shared == held[1] & shared != set()


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of several items, some of whose documents are in another item, too."""
    monkeypatch.setattr(items.items_of, "__defaults__", (8_000,))
    write_lines(tmp_path / "in" / "a.jsonl", texts(600))
    write_lines(tmp_path / "in" / "b.jsonl", texts(600, 500))
    (tmp_path / "in" / "c.txt").write_text("some text\n")
    return tmp_path / "in"


STEPS = [{"name": "normalise"}, {"name": "length", "at_least": 14}]


@pytest.mark.processes
def test_any_number_of_processes_makes_the_same_manifest(tmp_path: Path, many: Path) -> None:
    for processes in (1, 2, 3):
        made(tmp_path / str(processes), many, processes=processes, step=STEPS, chunk_tokens=2_000)
    contents = {(tmp_path / str(number) / MANIFEST).read_bytes() for number in (1, 2, 3)}
    assert len(contents) == 1
    manifest = Manifest.decode(contents.pop())
    assert manifest.sources[0].documents + manifest.sources[0].holdout_documents == 1_100
    assert [(step.name, dict(step.dropped)) for step in manifest.steps] == [
        ("normalise", {}), ("length", {"too short": 1}), ("duplicates", {"exact": 100}),
    ]  # fmt: skip


class Killed(BaseException):
    """As if the process were gone: nothing may catch it."""


def test_a_build_that_stops_anywhere_goes_on_and_ends_alike(tmp_path: Path, many: Path) -> None:
    spec = spec_of({"source": [{"url": str(many)}], "step": STEPS, "chunk_tokens": 2_000})
    whole = build(spec, tmp_path / "whole")
    seen: list[tuple[str, int, int]] = []
    build(spec, tmp_path / "counted", tell=lambda *told: seen.append(told))
    assert len(seen) > 20
    stops = 0
    for stop in range(0, len(seen), 4):
        told = 0

        def tell(stage: str, done: int, total: int, stop: int = stop) -> None:
            nonlocal told
            told += 1
            if (stage, done, total) == seen[stop]:
                raise Killed

        with pytest.raises(Killed):
            build(spec, tmp_path / "out", tell=tell)
        assert told <= 3 + 2 * 4  # what was done before was not done again: each stage is told once, too
        stops += 1
    assert stops > 6
    again = build(spec, tmp_path / "out")
    assert again.manifest == whole.manifest
    assert (tmp_path / "out" / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", texts(20))
    first = made(tmp_path / "out", source)
    stages: list[str] = []
    spec = spec_of({"source": [{"url": str(source)}]})
    second = build(spec, tmp_path / "out", tell=lambda stage, done, total: stages.append(stage))
    assert (second.manifest, second.documents, stages) == (first.manifest, first.documents, [])


def test_a_folder_of_another_corpus_is_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", texts(20))
    made(tmp_path / "out", source)
    with pytest.raises(StorageError, match="was built here, and since then the specification changed"):
        made(tmp_path / "out", source, chunk_tokens=1_000)
    write_lines(source, texts(21))
    with pytest.raises(StorageError, match="since then the files of source a changed; name another folder"):
        made(tmp_path / "out", source)


def test_manifest_is_canonical_json_with_all_counts(tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "a.jsonl", ["short", *texts(30), "e\u0301t\u00e9 " * 10, "\u00e9t\u00e9 " * 10]
    )
    made(tmp_path / "out", source, step=STEPS, holdout_fraction=0)
    values = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    normal, length, duplicates = values["steps"]
    assert (normal["documents_in"], normal["documents_kept"], normal["dropped"]) == (33, 33, {})
    assert normal["bytes_in"] - normal["bytes_kept"] == 10
    assert length["dropped"] == {"too short": 1}
    assert duplicates["dropped"] == {"exact": 1}  # equal after they were normalised
    assert duplicates["bytes_kept"] == values["sources"][0]["text_bytes"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", texts(5))
    spec = spec_of({"source": [{"url": str(source)}]})

    def again(stage: str, done: int, total: int) -> None:
        with pytest.raises(LowcommError, match="another build writes into it"):
            build(spec, tmp_path / "out")

    build(spec, tmp_path / "out", tell=again)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    spec = spec_of({"source": [{"url": str(many)}], "chunk_tokens": 4_000})
    written: list[Path] = []
    with monkeypatch.context() as patched:
        patched.setattr(work, "to_disk", written.append)
        whole = build(spec, tmp_path / "whole")
        room = int(share * len(written))

        def fill(file: Path) -> None:
            nonlocal room
            room -= 1
            if room < 0:
                raise OSError(errno.ENOSPC, "No space left on device", str(file))

        patched.setattr(work, "to_disk", fill)
        with pytest.raises(
            StorageError, match="No space left on device; the same command goes on where it was"
        ):
            build(spec, tmp_path / "out")
    assert build(spec, tmp_path / "out").manifest == whole.manifest
