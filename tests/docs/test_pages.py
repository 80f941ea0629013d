"""Links, names of tests, settings and public names in the documentation exist."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest

import lowcomm
from lowcomm.config.fields import sections, settings
from tables import BEGIN, END
from tests.docs.pages import LANGUAGES, PAGES, ROOT, bash_lines, blocks, page_id, prose, test_exists

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
    sources = [ROOT / "lowcomm" / "outer" / "node.py", ROOT / "lowcomm" / "ledger" / "blobs.py"]
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


README = ROOT / "README.md"


def test_the_front_page_fits_on_two_screens():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 105
    assert len(text.split()) <= 700


def test_the_front_page_begins_with_what_to_do():
    first = bash_lines(README, "# lowcomm")
    assert first == ["pip install .", "bash launch/quickstart.sh", "bash launch/test.sh"]


def test_each_figure_of_the_front_page_leads_to_its_place():
    rows = re.findall(r"^\| (\[.*)$", results_part(README), re.MULTILINE)
    assert 6 <= len(rows) <= 10
    assert all(re.match(r"\[[^]]+\]\(docs/results/README\.md#[\w-]+\) \|", row) for row in rows)


def test_pictures_of_the_front_page_exist_and_are_said_in_words():
    text = README.read_text(encoding="utf-8")
    assert all((ROOT / path).is_file() for path in re.findall(r'(?:src|srcset)="([^"]+)"', text))
    assert len(re.findall(r'<img alt="[^"]{40,}" src=', text)) == 1


def test_numbers_in_the_words_of_the_front_page_are_those_of_the_code():
    words = prose(README).replace(results_part(README), "")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest, below = re.findall(r"torch>=(\S+),<(\d+\.\d+)", " ".join(project["dependencies"]))[0]
    newest = f"2.{int(below.split('.')[1]) - 1}"
    recipe = (ROOT / "recipes" / "quickstart.toml").read_text(encoding="utf-8")
    cores = re.findall(r"^# Hardware: (\d+) CPU cores", recipe, re.MULTILINE)[0]
    known = {lowest, newest, project["requires-python"].removeprefix(">="), cores, "2.0"}
    plain = re.sub(r"\]\([^)]*\)", "]", words)
    assert set(re.findall(r"(?<![\w.])\d+(?:[.,]\d+)*", plain)) <= known


def test_the_map_has_every_page():
    linked = re.findall(r"\]\(([^)#\s]+\.md)", prose(ROOT / "docs" / "README.md"))
    found = {(ROOT / "docs" / target).resolve() for target in linked}
    assert found >= {page for page in PAGES if page not in (README, ROOT / "docs" / "README.md")}


def test_the_front_page_leads_to_the_map():
    assert "](docs/README.md)" in prose(README)


def results_part(page):
    """What the script writes between its markers."""
    return page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
