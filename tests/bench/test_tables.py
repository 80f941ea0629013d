"""The published figures are those of the committed logs."""

import pytest

from lowcomm.bench.tables import PAGES, ROOT, tables, with_tables


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.parent.name)
def test_the_tables_are_current(page) -> None:
    text = page.read_text(encoding="utf-8")
    current = with_tables(text, tables(ROOT / "docs" / "results"))
    assert text == current, "run: python -m lowcomm.bench.tables"
