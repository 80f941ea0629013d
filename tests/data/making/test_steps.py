"""What steps of cleaning keep, change and drop; those of datatrove are called for each document."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lowcomm.data.corpus.manifest import Manifest
from lowcomm.data.making.spec import StepSpec
from lowcomm.data.making.steps import make_steps
from lowcomm.errors import ConfigError
from tests.data.making.making import documents, made, write_lines

PROSE = (
    "It was the first day that they were to be at the house of the old man, and all of them had come with "
    "something for the table. The rain had stopped; there was nobody in the street but a boy with a dog. \n"
)
WORDS = PROSE.split()


def clean(name: str, text: str, **settings: object) -> tuple[str, str]:
    ((step,), _, _) = make_steps((StepSpec(name=name, settings=settings),))
    return tuple(step(text))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "settings", "text", "expected"),
    [
        ("normalise", {}, "e\u0301\r\n\ufb01", ("\u00e9\n\ufb01", "")),
        ("normalise", {"form": "NFKC"}, "e\u0301\ufb01", ("\u00e9fi", "")),
        ("length", {"at_least": 5}, "four", ("four", "too short")),
        ("length", {"at_most": 3}, "four", ("four", "too long")),
        ("gopher_quality", {}, "Too few words.", ("Too few words.", "gopher_short_doc")),
        ("gopher_quality", {"min_doc_words": 10}, PROSE, (PROSE, "")),
        ("gopher_repetition", {}, "the same line\n" * 9, ("the same line\n" * 9, "dup_line_frac")),
        ("c4_quality", {}, "A {curly} text that ends.", ("A {curly} text that ends.", "curly_bracket")),
        ("c4_quality", {"min_num_sentences": 1}, "One short line.\nno end", ("One short line.", "")),
        ("c4_paragraphs", {}, "one", ("one", "< 3 paragraphs")),
        ("fineweb_quality", {}, "no end\n" * 3, ("no end\n" * 3, "line_punct_ratio")),
        ("fineweb_quality", {}, "\n", ("\n", "empty")),
        ("pii", {}, "a.b@c.org, 8.8.8.8, 10.0.0.1", ("email@example.com, 22.214.171.124, 10.0.0.1", "")),
    ],
)  # fmt: skip
def test_a_step_keeps_changes_or_drops(name, settings, text, expected) -> None:
    assert clean(name, text, **settings) == expected


def test_addresses_are_replaced_by_the_same_whatever_came_before() -> None:
    ((step,), _, _) = make_steps((StepSpec(name="pii", settings={"email_replacement": ["one@x", "two@x"]}),))
    assert step("a@b.com c@d.com").text == "one@x two@x"
    assert step("e@f.com").text == "one@x"
    assert step("a@b.com c@d.com").text == "one@x two@x"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"name": "gopher"}], r"step 1 \(gopher\): expected one of normalise, length, language"),
        ([{"name": "length", "least": 3}], r"step 1 \(length\): least: unknown setting; expected one of"),
        ([{"name": "length", "at_least": "x"}], r"step 1 \(length\): at_least: expected a whole number"),
        ([{"name": "normalise", "form": "NFX"}], r"form: expected NFC, NFD, NFKC or NFKD, got 'NFX'"),
        ([{"name": "gopher_quality", "words": 3}], r"words: unknown setting; expected one of min_doc_words"),
        ([{"name": "minhash"}, {"name": "pii"}], r"step 1 \(minhash\): expected it to be the last step"),
        ([{"name": "minhash", "num_buckets": 0}], r"num_buckets: expected a whole number from 1"),
    ],
)  # fmt: skip
def test_a_step_that_cannot_be_is_said(tmp_path: Path, steps, message) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["one"])
    with pytest.raises(ConfigError, match=message) as raised:
        made(tmp_path / "out", source, step=steps)
    assert "\n" not in str(raised.value)


def test_a_model_that_cannot_be_fetched_is_named_with_its_place(monkeypatch, tmp_path: Path) -> None:
    import datatrove.utils.lid
    import huggingface_hub.constants

    def refuse(*args: object, **more: object) -> None:
        raise OSError("Cannot connect to host")

    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datatrove.utils.lid, "cached_asset_path_or_download", refuse)
    with pytest.raises(
        ConfigError, match=r"got: Cannot connect to host; where there is no network put https"
    ) as e:
        clean("language", "text", languages=["en"])
    assert str(e.value).endswith("lid.176.bin")


def test_near_duplicates_go_and_are_counted(tmp_path: Path) -> None:
    choose = random.Random(1)
    bases = [
        " ".join(choose.choices([f"{word}{n}" for n, word in enumerate(WORDS)], k=200)) for _ in range(20)
    ]
    alike = [f"{base} and one more" for base in bases]
    source = write_lines(tmp_path / "a.jsonl", [*bases, "too short", *alike, *bases[:3], "too short to tell"])
    for processes in (1, 2):
        out = tmp_path / f"out{processes}"
        built = made(out, source, step=[{"name": "minhash"}], holdout_fraction=0)
        assert documents(out) == [*bases, "too short", "too short to tell"]
        assert built.dropped == {"duplicates: exact": 3, "minhash: near": 20}
    steps = Manifest.read(out).steps
    assert [(step.name, step.documents_in, step.documents_kept) for step in steps] == [
        ("duplicates", 45, 42), ("minhash", 42, 22),
    ]  # fmt: skip
