"""What a bench's settings are made of: fields of a dataclass that are options of its command, too.

A field made by `option` is an option of the command, one without is set from Python only. Nothing heavy
is imported here, so that `--help` is fast.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lowcomm.errors import ConfigError
from lowcomm.types import Json


@dataclass(frozen=True, slots=True)
class Option:
    """What the command line knows of a field besides its name, type and default.

    Attributes:
        help: a few words; the default is put after them.
        metavar: of its value; by default what the name ends with says.
        least, above, below: bounds of a number, or of each of several.
        choices: the values that there are, where its type doesn't say it.
        group: the heading of its part of the help.
        shown: of the default, where its value says little.
        positional: it is given without a name.
    """

    help: str
    metavar: str = ""
    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: Sequence[str] = ()
    group: str = ""
    shown: str | None = None
    positional: bool = False

    def check(self, name: str, value: object) -> None:
        """Refuse a number out of its bounds.

        Raises:
            ConfigError: says what was expected.
        """
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, (int, float)) and not (
                self.least <= number and self.above < number < self.below
            ):
                raise ConfigError(f"{name}: expected {self._bounds()}, got {number:g}")

    def _bounds(self) -> str:
        if self.below < math.inf:
            return f"a number between {self.above:g} and {self.below:g}"
        return f"at least {self.least:g}" if self.least > -math.inf else f"more than {self.above:g}"


NEEDED = dataclasses.MISSING


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option, too.

    Args:
        default: `NEEDED` = the command asks for it.
        help, more: see `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, **more)})


def count(default: Any, help: str, **more: Any) -> Any:
    """A number of things, at least one."""
    return option(default, help, **{"metavar": "N", "least": 1, **more})


def seconds(default: Any, help: str, **more: Any) -> Any:
    """A time above 0."""
    return option(default, help, **{"metavar": "S", "above": 0, **more})


def mib(default: float, help: str) -> Any:
    """A size above 0, in MiB (2^20)."""
    return option(default, help, metavar="MIB", above=0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all of them have.

    Attributes:
        NAME, ABOUT, EXAMPLE: of the command.
        MODULE: whose `run` measures with them.
    """

    NAME: ClassVar[str]
    MODULE: ClassVar[str]
    ABOUT: ClassVar[str]
    EXAMPLE: ClassVar[str]

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options, by the field's name."""
        return {
            field.name: field.metadata["option"]
            for field in dataclasses.fields(cls)
            if "option" in field.metadata
        }

    def check(self) -> None:
        """Refuse what can't be measured.

        Raises:
            ConfigError: names the option, and says what was expected.
        """
        for name, known in self.options().items():
            known.check(flag(name), getattr(self, name))

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in vars(self).items()}


def flag(name: str) -> str:
    """A field's name as an option."""
    return f"--{name.replace('_', '-')}"
