"""Methods that a recipe chooses by name, one file each.

A package that can do one thing in several ways has a table of names and files, `METHODS`, and each file ends
in its `SPEC`. Choices of the configuration, `by_name` and the tables of the documentation come from these. A
file is imported when its method is chosen, so that the names alone cost no import of torch.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from lowcomm.arguments import show
from lowcomm.errors import ArgumentError, ConfigError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Spec(Generic[T]):
    """What a file has to offer; its last line.

    Attributes:
        name: as recipes say it.
        make: the factory; checks its arguments.
        about: a few words for the documentation.
    """

    name: str
    make: Callable[..., T]
    about: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """What the factory takes."""
        return tuple(inspect.signature(self.make).parameters)


class Methods(Generic[T]):
    """The methods of a package.

    Args:
        package: where the files are.
        section: of the configuration, whose `name` or `kind` chooses one.
        files: name -> file, without `.py`.
        key: the setting of the section that chooses.
    """

    def __init__(self, package: str, section: str, files: Mapping[str, str], key: str = "name") -> None:
        self._package, self._section, self._files, self.key = package, section, dict(files), key

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._files)

    def spec(self, name: str) -> Spec[T]:
        """What the file of a method has to offer.

        Raises:
            ArgumentError: the name is no string.
            ConfigError: there is no such method.
        """
        expected = f"{self._section}.{self.key}: expected one of {', '.join(self.names)}"
        if not isinstance(name, str):
            raise ArgumentError(f"{expected} as a string, got {show(name)}")
        if name not in self._files:
            raise ConfigError(f"{expected}, got {name!r}")
        return cast(Spec[T], importlib.import_module(f"{self._package}.{self._files[name]}").SPEC)

    def make(self, name: str, given: Mapping[str, Any]) -> T:
        """One by name; what is not given is as the method has it by default.

        Raises:
            ConfigError: there is no such method, or it has no such parameter, or the value is none.
        """
        spec = self.spec(name)
        for parameter in given:
            if parameter not in spec.parameters:
                raise ConfigError(f"{self._section}.{parameter}: {self.foreign(name, given[parameter])}")
        return spec.make(**given)

    def foreign(self, name: str, value: object) -> str:
        """What to say of a parameter that belongs to another method."""
        has = ", ".join(self.spec(name).parameters) or "none"
        return (
            f"expected nothing with {self.key} = {name}, whose parameters are {has}, got {show(value)}; "
            "leave it out"
        )
