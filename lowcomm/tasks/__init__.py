"""What is trained. See base.py for the seam; a recipe names a kind of its table, or a function of its own."""

from __future__ import annotations

from lowcomm.methods import Methods
from lowcomm.tasks.base import Task

METHODS: Methods[Task] = Methods(
    __name__,
    "shared.task",
    {
        "gpt": "gpt",
        "hf": "hf",
        "peft": "peft",
        "given": "given",
    },
    key="kind",
)
