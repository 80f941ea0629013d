"""`datasets.map` with a tokenizer: what `lowcomm bench corpus` compares a build with.

    python -m lowcomm.bench.datasets_map TEXTS TOKENIZER PROCESSES FOLDER

prints one line of JSON: seconds to load the files and to map them, documents, tokens and memory.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from lowcomm.clock import SystemClock
from lowcomm.data.corpus.tokenizer import TOKENIZER


def main() -> None:
    """Load, map, print."""
    import datasets
    import tokenizers

    texts, folder, processes, cache = sys.argv[1:]
    datasets.disable_progress_bars()
    library = tokenizers.Tokenizer.from_file(str(Path(folder) / TOKENIZER))

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"ids": [found.ids for found in library.encode_batch_fast(batch["text"])]}

    clock = SystemClock()
    started = clock.monotonic_s()
    files = sorted(map(str, Path(texts).glob("*.jsonl")))
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=cache)
    loaded = clock.monotonic_s()
    mapped = rows.map(encode, batched=True, num_proc=int(processes), remove_columns=["text"])
    ended = clock.monotonic_s()
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {
        "load_s": loaded - started,
        "map_s": ended - loaded,
        "documents": len(mapped),
        "peak_mb": 1024 * (usage[0] + int(processes) * usage[1]) / 1e6,
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
