"""Faults of the network itself, between namespaces that the script `wan/wan` makes (root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Self

from lowcomm.errors import LowcommError

SCRIPT = Path(__file__).parent / "wan" / "wan"
DELAY_MS = 20
MBIT = 100
SLOW_MBIT = 10
LOSS_PERCENT = 10
SUBNET = "10.77.0.0/24"


class NetworkError(LowcommError):
    """The emulated WAN can't be made or changed."""


class Network:
    """A WAN of `size` namespaces; use as a context manager, which removes it.

    Raises:
        NetworkError: it can't be made: it needs root, `ip` and gcc, and no other WAN.
    """

    def __init__(self, size: int) -> None:
        if os.geteuid() != 0:
            raise NetworkError("network namespaces need root")
        self._size, self._mbit, self._loss = size, MBIT, 0
        self._cuts: list[set[tuple[int, int]]] = []

    @property
    def shaped(self) -> bool:
        """Whether all links are lossy or slow now."""
        return (self._mbit, self._loss) != (MBIT, 0)

    def __enter__(self) -> Self:
        try:
            self._run("up", str(self._size), str(DELAY_MS), str(MBIT))
        except KeyboardInterrupt:
            self._run("down")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run("down")

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

    def reset(self, number: int) -> None:
        """Reset all connections between a namespace and the others.

        Raises:
            NetworkError: `ss` is not there, or may not.
        """
        command = [*self.enter(number), "ss", "--kill", "--tcp", "dst", SUBNET]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise NetworkError(f"{' '.join(command)}: {error}") from error
        if done.returncode:
            raise NetworkError(f"{' '.join(command)}: {done.stderr.strip()}")

    def cut(self, numbers: Collection[int], *, one_way: bool = False) -> Callable[[], None]:
        """Let nothing pass from some namespaces to the others, nor back; returns what ends it."""
        others = [other for other in range(self._size) if other not in numbers]
        ways = {(number, other) for number in numbers for other in others}
        if not one_way:
            ways |= {(other, number) for number, other in ways}
        self._cuts.append(ways)
        self._set()

        def end() -> None:
            self._cuts.remove(ways)
            self._set()

        return end

    def _set(self) -> None:
        pairs = sorted(set().union(*self._cuts))
        self._run("set", str(self._mbit), str(self._loss), *(str(end) for pair in pairs for end in pair))

    def _run(self, *words: str) -> None:
        """Run the script to its end, also when interrupted: cut short it would leave namespaces behind.

        Raises:
            NetworkError: it failed.
            KeyboardInterrupt: after the script has ended.
        """
        script = subprocess.Popen(
            [str(SCRIPT), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a terminal's Ctrl-C goes to all of a session
            env={**os.environ, "WAN_OWNER": str(os.getpid())},
        )
        try:
            stdout, stderr = script.communicate()
        except KeyboardInterrupt:
            script.communicate()
            raise
        if script.returncode:
            raise NetworkError(f"{SCRIPT} {words[0]}: {(stderr or stdout).strip()}")
