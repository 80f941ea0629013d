"""Faults of the network itself, between namespaces that launch/wan has made (root)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from lowcomm.errors import ConfigError, LowcommError

SCRIPT = Path(__file__).parents[2] / "launch" / "wan" / "wan"
DELAY_MS = 20
MBIT = 100
SLOW_MBIT = 10
LOSS_PERCENT = 10


class NetworkError(LowcommError):
    """The emulated WAN can't be made or changed."""


class Network:
    """A WAN of `size` namespaces; use as a context manager, which removes it.

    Raises:
        ConfigError: the script isn't there.
        NetworkError: it fails; it needs root.
    """

    def __init__(self, size: int) -> None:
        if not SCRIPT.exists():
            raise ConfigError(
                f"--wan: expected {SCRIPT}: the emulator lives in the checkout, not in the package"
            )
        self._size, self._mbit, self._loss = size, MBIT, 0
        self._cuts: list[set[tuple[int, int]]] = []

    @property
    def shaped(self) -> bool:
        """Whether all links are lossy or slow now."""
        return (self._mbit, self._loss) != (MBIT, 0)

    def __enter__(self) -> Self:
        self._run(str(SCRIPT), "up", str(self._size), str(DELAY_MS), str(MBIT))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(str(SCRIPT), "down")

    def enter(self, number: int) -> list[str]:
        """What to put before a command that shall run in a namespace."""
        return ["ip", "netns", "exec", f"lcw{number}"]

    def address(self, number: int) -> str:
        """The IPv4 address of a namespace."""
        return f"10.77.0.{number + 1}"

    def shape(self, kind: str) -> Callable[[], None]:
        """`loss` or `slow` for all links; returns what ends it."""
        self._mbit, self._loss = (SLOW_MBIT, 0) if kind == "slow" else (MBIT, LOSS_PERCENT)
        self._set()

        def end() -> None:
            self._mbit, self._loss = MBIT, 0
            self._set()

        return end

    def cut(self, number: int, *, one_way: bool) -> Callable[[], None]:
        """Let nothing pass from a namespace to the others, or in neither direction; returns what ends it."""
        others = [other for other in range(self._size) if other != number]
        ways = {(number, other) for other in others}
        if not one_way:
            ways |= {(other, number) for other in others}
        self._cuts.append(ways)
        self._set()

        def end() -> None:
            self._cuts.remove(ways)
            self._set()

        return end

    def _set(self) -> None:
        pairs = sorted(set().union(*self._cuts))
        self._run(
            str(SCRIPT),
            "set",
            str(self._mbit),
            str(self._loss),
            *(str(end) for pair in pairs for end in pair),
        )

    def _run(self, *command: str) -> None:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            raise NetworkError(
                f"{' '.join(command)}: {(found.stderr or found.stdout).strip()}; are you root?"
            )
