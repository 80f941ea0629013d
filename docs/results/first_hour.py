"""A newcomer's first command, from a fresh clone: how long until the first committed round, and what is seen.

    python3 docs/results/first_hour.py [SOURCE] [--out docs/results/first_hour.json]

Clones SOURCE (default: this checkout) into a temporary folder, with an empty pip cache and an empty home,
types the first `bash launch/...` command of the clone's README.md into a terminal of 100 x 30, and notes
every five seconds what stands on its last lines. Needs nothing but Python and git.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COLUMNS, ROWS = 100, 30
EVERY_S = 5.0
LINES = 5
"""Of the console, each time; the last ones that are not empty."""
_CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>78]|\x1b\][^\x07]*\x07")


class Screen:
    """What a terminal shows: as much of it as progress bars and tables need."""

    def __init__(self) -> None:
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        """Take output; a control code that is not whole yet waits for more."""
        text, self._rest = self._rest + text, ""
        at = 0
        while at < len(text):
            if text[at] == "\x1b":
                match = _CONTROL.match(text, at)
                if match is None:
                    if len(text) - at < 16:
                        self._rest = text[at:]
                        return
                    at += 1
                    continue
                if match[2]:
                    self._control(match[1], match[2])
                at = match.end()
            else:
                self._put(text[at])
                at += 1

    def last(self, count: int) -> list[str]:
        """The last lines that are not empty."""
        lines = ["".join(line).rstrip() for line in self._lines]
        return [line for line in lines if line][-count:]

    def _put(self, letter: str) -> None:
        if letter == "\n":
            self._go(self._row + 1, self._column)
        elif letter == "\r":
            self._column = 0
        elif letter == "\b":
            self._column = max(0, self._column - 1)
        elif letter.isprintable():
            if self._column >= COLUMNS:
                self._go(self._row + 1, 0)
            line = self._lines[self._row]
            line += " " * (self._column + 1 - len(line))
            line[self._column] = letter
            self._column += 1

    def _control(self, numbers: str, kind: str) -> None:
        digits = [int(one) if one.isdigit() else 0 for one in numbers.split(";")]
        first = digits[0]
        if kind in "AF":
            self._go(max(0, self._row - max(1, first)), 0 if kind == "F" else self._column)
        elif kind in "BE":
            self._go(self._row + max(1, first), 0 if kind == "E" else self._column)
        elif kind == "C":
            self._column = min(COLUMNS - 1, self._column + max(1, first))
        elif kind == "D":
            self._column = max(0, self._column - max(1, first))
        elif kind == "G":
            self._column = max(1, first) - 1
        elif kind == "K":
            self._erase(first)
        elif kind == "J":
            self._erase(first)
            if first == 0:
                del self._lines[self._row + 1 :]
            elif first == 2:
                self._lines, self._row = [[]], 0

    def _erase(self, which: int) -> None:
        line = self._lines[self._row]
        if which == 0:
            del line[self._column :]
        elif which == 1:
            line[: self._column + 1] = " " * len(line[: self._column + 1])
        else:
            line.clear()

    def _go(self, row: int, column: int) -> None:
        self._lines += [[] for _ in range(row + 1 - len(self._lines))]
        self._row, self._column = row, column


def first_command(readme: str) -> str:
    """The first command of the front page that starts something."""
    found = re.search(r"^(bash launch/\S+.*)$", readme, re.MULTILINE)
    assert found, "README.md shows no `bash launch/...`"
    return found[1]


def path_without_venv() -> str:
    """The programs of the machine, whatever environment this script was started from."""
    ours = {str(Path(sys.prefix) / "bin")} if sys.prefix != sys.base_prefix else set()
    ours.add(os.path.join(os.environ.get("VIRTUAL_ENV", "/nowhere"), "bin"))
    return os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if part not in ours)


def committed(clone: Path) -> bool:
    """Whether an island has committed a round."""
    for log in clone.glob("runs/*/island-*/metrics.jsonl"):
        for line in log.read_text(encoding="utf-8").splitlines():
            if '"round"' in line and json.loads(line).get("committed"):
                return True
    return False


def watch(command: str, clone: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run the command in a terminal until it ends."""
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    began_s = time.monotonic()
    child = subprocess.Popen(
        ["bash", "-c", command], cwd=clone, env=environment, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    screen, console, first_round_s, due_s = Screen(), [], None, EVERY_S
    try:
        while True:
            ready, _, _ = select.select([master], [], [], 0.2)
            data = b""
            if ready:
                try:
                    data = os.read(master, 65536)
                except OSError:  # all that had the terminal open have ended
                    ready, data = [], b""
                screen.feed(data.decode("utf-8", "replace"))
            now_s = time.monotonic() - began_s
            if first_round_s is None and committed(clone):
                first_round_s = round(now_s, 1)
            over = child.poll() is not None and not data
            while now_s >= due_s or over:
                console.append({"s": round(min(now_s, due_s)), "console": screen.last(LINES)})
                due_s += EVERY_S
                if over:
                    break
            if over:
                break
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
            child.wait()
        os.close(master)
    return {
        "first_round_s": first_round_s,
        "ended_s": round(time.monotonic() - began_s, 1),
        "exit_code": child.returncode,
        "seconds": console,
    }


def as_text(figures: dict[str, Any]) -> str:
    """JSON with a line for each key, and for each look at the console."""
    looks = ",\n  ".join(json.dumps(look, ensure_ascii=False) for look in figures["seconds"])
    rest = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in figures.items() if key != "seconds"]
    return "{\n " + ",\n ".join([*rest, f'"seconds": [\n  {looks}\n ]']) + "\n}\n"


def main() -> None:
    """Clone, run, write the log."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", default=str(ROOT), help="what `git clone` gets")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "first_hour.json")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="first-hour-"))
    try:
        clone = folder / "lowcomm"
        subprocess.run(["git", "clone", "--quiet", args.source, str(clone)], check=True)
        command = first_command((clone / "README.md").read_text(encoding="utf-8"))
        home = folder / "home"
        home.mkdir()
        kept = {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "LANG", "LC_"))}
        environment = {
            **kept, "HOME": str(home), "PATH": path_without_venv(), "TERM": "xterm-256color",
            "PIP_CACHE_DIR": str(folder / "cache"),
        }  # fmt: skip
        head = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
        figures = {
            "commit": subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip(),
            "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}",
            "load_before": round(os.getloadavg()[0], 2),
            "commands": ["git clone SOURCE lowcomm", "cd lowcomm", command],
            **watch(command, clone, environment),
        }
        args.out.write_text(as_text(figures), encoding="utf-8")
        print(f"{args.out}: first committed round after {figures['first_round_s']} s", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
