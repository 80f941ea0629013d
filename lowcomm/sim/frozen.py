"""Objects as values: copies of what may change, and small numbers that are equal where the objects are.

For a search over states of live objects (`lowcomm.sim.checker`): a copy shares everything that never changes.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

Frozen = Hashable
Views = Mapping[str, Mapping[str, Callable[[Any], Any]]]
"""How attributes are seen: by class and name a function of the object, whose result is frozen for them."""

PLAIN: frozenset[type] = frozenset((str, int, float, bool, bytes, type(None), type))


_FIXED: dict[type, bool] = dict.fromkeys(PLAIN, True)
_FIELDS: dict[type, tuple[str, ...]] = {}


def _is_fixed(kind: type) -> bool:
    """Whether objects of a class never change: plain values, tuples, frozen dataclasses."""
    fixed = _FIXED.get(kind)
    if fixed is None:
        parameters = getattr(kind, "__dataclass_params__", None)
        fixed = issubclass(kind, (tuple, frozenset)) or (parameters is not None and bool(parameters.frozen))
        _FIXED[kind] = fixed
    return fixed


def _names(value: Any) -> Iterable[str]:
    kind = type(value)
    names = _FIELDS.get(kind)
    if names is None and dataclasses.is_dataclass(value):
        names = _FIELDS[kind] = tuple(field.name for field in dataclasses.fields(value))
    return names or vars(value)


def copied(value: Any) -> Any:
    """The same with containers and objects of its own, as deep as anything in it may change."""
    kind = type(value)
    if _is_fixed(kind):
        return value
    if kind is dict:
        return {key: item if _is_fixed(type(item)) else copied(item) for key, item in value.items()}
    if kind is list:
        return [copied(item) for item in value]
    if kind in (set, deque):
        return value.copy()
    other = object.__new__(kind)
    for name in _names(value):
        item = getattr(value, name)
        object.__setattr__(other, name, item if _is_fixed(type(item)) else copied(item))
    return other


class Freezer:
    """Gives each value a number; equal ones have the same.

    Args:
        views: of attributes, to leave out what decides nothing.
    """

    def __init__(self, views: Views) -> None:
        self._views = views
        self._numbers: dict[Frozen, int] = {}
        self._known: dict[int, tuple[Any, int]] = {}

    def number(self, value: Any) -> int:
        """Of a value that does not change while this is asked."""
        return self._intern(self._form(value))

    def _intern(self, form: Frozen) -> int:
        return self._numbers.setdefault(form, len(self._numbers))

    def _form(self, value: Any) -> Frozen:
        kind = type(value)
        if kind in PLAIN:
            return value  # type: ignore[no-any-return]
        if kind in (set, frozenset):
            return frozenset([item if type(item) is str else self._form(item) for item in value])
        if kind is dict:
            return frozenset([(self._form(key), self._form(item)) for key, item in value.items()])
        if kind in (list, tuple, deque):
            return tuple([item if type(item) in PLAIN else self._form(item) for item in value])
        return self._number_of(value) if _is_fixed(kind) else self._attributes(value)

    def _number_of(self, value: Any) -> int:
        """Of a value that never changes; it is kept, so that its identity stands for it."""
        found = self._known.get(id(value))
        if found is None:
            form = tuple(map(self._form, value)) if isinstance(value, tuple) else self._attributes(value)
            found = self._known[id(value)] = value, self._intern((type(value).__name__, form))
        return found[1]

    def _attributes(self, value: Any) -> Frozen:
        kind, form = type(value), []
        views = self._views.get(kind.__name__, {})
        for name in _names(value):
            view = views.get(name)
            item = view(value) if view else getattr(value, name)
            form.append(item if type(item) in PLAIN else self._form(item))
        return tuple(form)
