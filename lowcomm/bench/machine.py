"""What a figure was measured on; stored with every log."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lowcomm import __version__
from lowcomm.clock import Clock, SystemClock
from lowcomm.types import Json

LIBRARIES = ("torch", "hivemind", "numpy")


def machine_facts(clock: Clock | None = None) -> dict[str, Json]:
    """Processor, cores, load (of the minute before), versions and the date in UTC."""
    moment = datetime.fromtimestamp((clock or SystemClock()).wall_s(), UTC)
    return {
        "date": moment.isoformat(timespec="seconds"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "lowcomm": __version__,
        **{name: _version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
