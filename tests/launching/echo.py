"""A peer that says what it hears: see test_children.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    role, settings = sys.argv[1:] if arguments is None else arguments
    tell("ready", role=role, settings=json.loads(settings), pid=os.getpid())
    for line in sys.stdin:
        if line == "child\n":
            child = subprocess.Popen(["sleep", "1000"])
            tell("child", pid=child.pid)
        elif line == "fail\n":
            sys.exit("no luck")
        else:
            tell("round", line=line.strip())


def tell(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


if __name__ == "__main__":
    main()
