"""Links, names of tests, settings and public names in the documentation exist."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

import lowcomm
from lowcomm.config.fields import sections, settings
from tests.docs.pages import LANGUAGES, PAGES, ROOT, blocks, page_id, prose, test_exists

each_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@each_page
def test_blocks_have_a_language_and_python_parses(page):
    for language, content in blocks(page):
        assert language in LANGUAGES, f"```{language}: {content[:40]!r}"
        if language == "toml":
            tomllib.loads(content)
        if language == "python":
            for node in ast.walk(ast.parse(content)):
                if isinstance(node, ast.ImportFrom) and node.module == "lowcomm":
                    assert all(hasattr(lowcomm, alias.name) for alias in node.names)


@each_page
def test_named_settings_exist(page):
    known = set(settings()) | set(sections())
    tops = "|".join(sorted({path.split(".")[0] for path in known if "." in path}))
    for name in re.findall(rf"`((?:{tops})(?:\.[a-z_0-9]+)+)", prose(page)):
        if not name.endswith((".py", ".md", ".toml", ".json", ".jsonl", ".txt", ".key")):
            assert name in known, name


@each_page
def test_named_files_exist(page):
    for name in re.findall(r"`((?:lowcomm|tests|docs|launch|recipes)/[\w./\-]+\.\w+)`", prose(page)):
        assert (ROOT / name).exists(), name


@each_page
def test_named_tests_exist(page):
    for name in re.findall(r"`(tests/[\w/]+\.py::\w+)`", prose(page)):
        assert test_exists(name), name


def test_every_guarantee_names_its_tests():
    text = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [part[:2] for part in parts] == [f"G{number}" for number in range(1, 9)]
    assert all("::test_" in part for part in parts)


def test_every_page_can_be_reached_from_the_readme():
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)", prose(page)):
            if not target.startswith("http"):
                todo.append((page.parent / target).resolve())
    assert {page for page in PAGES if "results" not in page.parts} <= reached


def test_message_kinds_are_all_described():
    sources = [ROOT / "lowcomm" / "outer" / "node.py", ROOT / "lowcomm" / "membership" / "blobs.py"]
    kinds = set(re.findall(r'"([a-z]+\??)": (?:self\.|lambda)', sources[0].read_text()))
    assert len(kinds) >= 12
    described = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert all(f"`{kind}`" in described for kind in kinds | {"part", "mean", "blob"})


def test_glossary_is_in_order_and_has_each_word_once():
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| ([^|]+?) \|", glossary, re.MULTILINE)[1:]
    plain = [re.sub(r"`|\(.*", "", word).strip().lower() for word in words if not word.startswith("---")]
    assert plain == sorted(plain)
    assert len(plain) == len(set(plain))


def test_results_can_be_filled_in():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.index("<!-- results:begin -->") < text.index("<!-- results:end -->")


def test_the_two_commands_come_first():
    assert blocks(ROOT / "README.md")[0] == ("bash", "bash launch/quickstart.sh\nbash launch/test.sh\n")
