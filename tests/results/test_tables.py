"""The published figures are those of the committed logs."""

import os
import re
import subprocess
import sys

import pytest

from parts import anchor
from tables import PAGES, RESULTS, ROOT, tables, with_tables


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_the_tables_are_current(page) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text, PAGES[page](RESULTS)), "run: python docs/results/tables.py"


def test_the_script_finds_what_it_needs_from_anywhere(tmp_path) -> None:
    script = RESULTS / "tables.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_every_table_stands_under_a_question_with_a_sentence() -> None:
    contents, *questions = re.split(r"^## ", tables(RESULTS), flags=re.MULTILINE)
    asked = [question.splitlines()[0] for question in questions]
    assert all(question.endswith("?") for question in asked)
    assert [f"- [{question}](#{anchor(question)})" for question in asked] == contents.split("\n")[
        : len(asked)
    ]
    for question in questions:
        before, *parts = re.split(r"^### ", question, flags=re.MULTILINE)
        assert parts
        assert "|" not in before
        for part in parts:
            _, _, says, *rest = part.rstrip().split("\n")
            assert len(re.findall(r"[.:](?= |$)", says)) >= 2  # a sentence, and how to repeat it
            assert says.endswith(":") == any(line.startswith("|") for line in rest)


def test_every_log_is_linked_from_its_table() -> None:
    logs = {path.name for path in RESULTS.iterdir() if path.suffix in (".json", ".jsonl")}
    linked = set(re.findall(r"\]\(([\w.]+\.jsonl?)\)", (RESULTS / "README.md").read_text(encoding="utf-8")))
    assert linked == logs
