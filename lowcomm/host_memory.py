"""What memory the host gives this process: its own, that of its container, and the process's limit. Linux."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def total_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """The most that this process can ever have, swap included; None where nobody says."""
    known = _meminfo(proc)
    limits = [known["MemTotal"] + known.get("SwapTotal", 0)] if "MemTotal" in known else []
    limits += [limit for limit, _ in _cgroups(proc, cgroups)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits, default=None)


def available_bytes(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """What it can have now; None where nobody says."""
    known = _meminfo(proc)
    free = [known["MemAvailable"] + known.get("SwapFree", 0)] if "MemAvailable" in known else []
    free += [max(0, limit - used) for limit, used in _cgroups(proc, cgroups)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _read(proc / "self" / "statm").split()
    if soft != resource.RLIM_INFINITY and pages:
        free.append(max(0, soft - int(pages[0]) * resource.getpagesize()))
    return min(free, default=None)


def _meminfo(proc: Path) -> dict[str, int]:
    found = {}
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def _cgroups(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """(limit, in use) of each control group around this process that limits its memory; versions 1 and 2."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root, most, used = cgroups, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, used = cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # inside a container the path may be the host's; its own group then stands at the root
        inside = [part for part in Path(path).parts if part not in ("/", "..")]
        for depth in range(len(inside), -1, -1):
            group = root.joinpath(*inside[:depth])
            limit, usage = _read(group / most).strip(), _read(group / used).strip()
            if limit.isdigit() and int(limit) < 1 << 60:  # version 1 writes a huge number for none
                swap = _read(group / "memory.swap.max").strip()
                yield int(limit) + (int(swap) if swap.isdigit() else 0), int(usage or 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
