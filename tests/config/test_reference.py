"""docs/configuration.md is what the schema says."""

from pathlib import Path

from lowcomm.config.reference import reference


def test_reference_is_current() -> None:
    written = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == reference(), (
        "schema.py has changed: python -m lowcomm.config.reference > docs/configuration.md"
    )
