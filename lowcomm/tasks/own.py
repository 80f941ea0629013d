"""A task of the user's own: `shared.task.kind = "mymodule:make_task"`, a function in one Python file.

The module is looked for in the recipe's folder first, then in the current one, then wherever Python looks.
The function says by the names of its parameters what it wants of the recipe, and takes the keys of
`[shared.task.model]` as keyword arguments.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from lowcomm.arguments import show
from lowcomm.errors import ConfigError, LowcommError
from lowcomm.tasks.base import Task

MEMBERS = ("facts", "make_model", "loss", "evaluate", "data", "export")
KEYWORDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


def make_own(kind: str, folder: str, offered: Mapping[str, Any], settings: Mapping[str, Any]) -> Task:
    """The task that a function makes.

    Args:
        kind: `module:function`.
        folder: where the module is looked for first; empty = only where Python looks, and in the current one.
        offered: what of the recipe the function may ask for.
        settings: keyword arguments from the recipe, which have to be parameters of the function.

    Raises:
        ConfigError: it can't be imported, is no function, or does not take what is given; or no task came.
    """
    where = f"shared.task.kind = {kind}"
    function = _find(kind, folder, where)
    try:
        known = signature(function).parameters
    except ValueError:
        known = signature(lambda: None).parameters
    takes = [name for name, parameter in known.items() if parameter.kind in KEYWORDS]
    for name in settings:
        if name not in takes:
            own = ", ".join(each for each in takes if each not in offered) or "none"
            raise ConfigError(
                f"shared.task.model.{name}: expected a parameter of {kind} ({own}), got none of them"
            )
    given = {**{name: offered[name] for name in takes if name in offered}, **settings}
    missing = [name for name in takes if name not in given and known[name].default is Parameter.empty]
    if missing:
        raise ConfigError(
            f"{where}: expected parameters that [shared.task.model] sets or that a recipe has "
            f"({', '.join(offered)}), got {', '.join(missing)}; set it there, or give it a default"
        )
    try:
        task = function(**given)
    except LowcommError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: the call ended with {_reason(error)}") from error
    lacking = [name for name in MEMBERS if not hasattr(task, name)]
    if lacking:
        raise ConfigError(
            f"{where}: expected a Task (lowcomm/tasks/base.py), got {show(task)} without {', '.join(lacking)}"
        )
    return task  # type: ignore[no-any-return]


def _find(kind: str, folder: str, where: str) -> Callable[..., Any]:
    module, _, name = kind.partition(":")
    for path in (str(Path.cwd()), folder):
        if path and path not in sys.path:
            sys.path.insert(0, path)
    try:
        found = importlib.import_module(module)
    except Exception as error:
        looked = " or ".join(dict.fromkeys(path for path in (folder, str(Path.cwd())) if path))
        raise ConfigError(
            f"{where}: {module} can't be imported: {_reason(error)}; it is looked for in {looked}, and where "
            "Python looks"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        got = "nothing of that name" if function is None else show(function)
        raise ConfigError(f"{where}: expected a function {name} in {found.__file__}, got {got}")
    return function  # type: ignore[no-any-return]


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
