"""Python's garbage collector in a process that trains."""

import gc


def exempt_from_collection() -> None:
    """Collect now, and leave what is alive out of later collections.

    torch and a model are hundreds of thousands of objects that stay until the process ends. A full collection
    looks at each of them, 0.15 s in which no thread gets on, for a few that rounds have left.
    """
    gc.collect()
    gc.freeze()
