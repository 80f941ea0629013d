"""lowcomm: train one model on GPUs that are not in the same building."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

_EXPORTS = {
    "OuterLoop": "lowcomm.outer.loop",
    "RoundPolicy": "lowcomm.rounds.policy",
    "JoinReport": "lowcomm.recovery.joining",
    "Schedule": "lowcomm.algorithms.schedule",
    "nesterov": "lowcomm.algorithms.outer_optimizers.nesterov",
    "RoundReport": "lowcomm.types",
    "wrap_island": "lowcomm.islands",
    "Trainer": "lowcomm.training.trainer",
    "load_config": "lowcomm.config.load",
    "LowcommError": "lowcomm.errors",
}
_MODULES = {
    "codecs": "lowcomm.codecs",
    "exchanges": "lowcomm.exchanges",
    "errors": "lowcomm.errors",
    "outer_optimizers": "lowcomm.algorithms.outer_optimizers",
}

__all__ = [
    "JoinReport",
    "LowcommError",
    "OuterLoop",
    "RoundPolicy",
    "RoundReport",
    "Schedule",
    "Trainer",
    "__version__",
    "codecs",
    "errors",
    "exchanges",
    "load_config",
    "nesterov",
    "outer_optimizers",
    "wrap_island",
]

if TYPE_CHECKING:
    from lowcomm import codecs, errors, exchanges
    from lowcomm.algorithms import outer_optimizers
    from lowcomm.algorithms.outer_optimizers.nesterov import nesterov
    from lowcomm.algorithms.schedule import Schedule
    from lowcomm.config.load import load_config
    from lowcomm.errors import LowcommError
    from lowcomm.islands import wrap_island
    from lowcomm.outer.loop import OuterLoop
    from lowcomm.recovery.joining import JoinReport
    from lowcomm.rounds.policy import RoundPolicy
    from lowcomm.training.trainer import Trainer
    from lowcomm.types import RoundReport


def __getattr__(name: str) -> Any:
    """Import public names when they are first used, so that `import lowcomm` stays fast."""
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lowcomm' has no attribute {name!r}")
