"""Tables of methods: names, files and what each file offers agree, everywhere."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from lowcomm import codecs, exchanges
from lowcomm.algorithms import aggregation, outer_optimizers
from lowcomm.config.fields import settings
from lowcomm.errors import ArgumentError, ConfigError
from lowcomm.methods import Methods

TABLES: dict[str, tuple[Any, Methods[Any]]] = {
    "shared.codec.name": (codecs, codecs.METHODS),
    "shared.outer.name": (outer_optimizers, outer_optimizers.METHODS),
    "shared.aggregation.name": (aggregation, aggregation.METHODS),
    "exchange.kind": (exchanges, exchanges.METHODS),
}
NO_CHOICE = {"loopback"}
"""Works in one process only, so no recipe can choose it."""
each_table = pytest.mark.parametrize("setting", TABLES)


@each_table
def test_choices_of_the_configuration_are_the_table(setting: str) -> None:
    _, methods = TABLES[setting]
    assert settings()[setting].choices == methods.names
    assert settings()[setting].default in methods.names
    assert setting.endswith(f".{methods.key}")


@each_table
def test_each_file_ends_in_the_spec_of_its_name(setting: str) -> None:
    _, methods = TABLES[setting]
    for name in methods.names:
        spec = methods.spec(name)
        assert spec.name == name
        assert spec.about == spec.about.strip() != ""
        assert "\n" not in spec.about
        assert spec.parameters == tuple(inspect.signature(spec.make).parameters)


@each_table
def test_no_file_with_a_spec_is_left_out(setting: str) -> None:
    package, methods = TABLES[setting]
    files = sorted(Path(package.__file__).parent.rglob("*.py"))
    ends = {file: file.read_text().rstrip().rpartition("\n\n\n")[2] for file in files}
    found = {
        match[1]
        for text in ends.values()
        if (match := re.match(r"SPEC = Spec\(\s*name=\"(\w+)\"", text)) is not None
    }
    assert found - NO_CHOICE == set(methods.names)


@each_table
def test_what_there_is_not_is_refused_in_one_line(setting: str) -> None:
    _, methods = TABLES[setting]
    with pytest.raises(ConfigError, match=f"^{re.escape(setting)}: expected one of .*, got 'none'$"):
        methods.make("none", {})
    with pytest.raises(ArgumentError, match=f"^{re.escape(setting)}: expected one of .* as a string, got 3$"):
        methods.make(3, {})  # type: ignore[arg-type]
    for name in methods.names:
        with pytest.raises(
            ConfigError, match=rf"\.colour: expected nothing with \w+ = {name}, whose "
        ) as error:
            methods.make(name, {"colour": "red"})
        assert str(error.value).endswith("got 'red'; leave it out")
        assert "\n" not in str(error.value)
