"""How fast a corpus is built, in what memory, and whether kills change it.

The text is that of Python's own sources, again and again with its lines in another order, so that no document
is a duplicate and words are as common as they are. The same files, tokenizer and number of processes go
through `lowcomm data build` and through `datasets.map`, in turn, each time in new processes; the medians are
compared. Then a build is killed with SIGKILL when it has some of its results, goes on, is killed again, and
its manifest is compared with that of an undisturbed one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowcomm.bench.outcome import Outcome, Tell
from lowcomm.bench.settings import CorpusBench
from lowcomm.data.corpus.manifest import MANIFEST
from lowcomm.data.files import STDLIB, find_files
from lowcomm.data.left_out import LeftOutError
from lowcomm.data.making.bpe import train_bpe
from lowcomm.data.making.build import BUILDING
from lowcomm.data.making.items import items_of
from lowcomm.data.making.spec import SourceSpec
from lowcomm.data.text import read_text
from lowcomm.errors import DataError
from lowcomm.launching.child import end_session, start_child

FILE_BYTES = 16 << 20
LOOK_S = 0.02
"""Between two looks at what a build has done that is to be killed."""
MOST_MB = 2**30 / 1e6
MAP = "datasets.map"


def run(settings: CorpusBench, tell: Tell) -> Outcome:
    """Measure."""
    processes = settings.processes or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text_bytes = _write_text(folder / "texts", int(settings.text_mib * 2**20))
        tell(f"{text_bytes:,} bytes of text; training a tokenizer of {settings.vocabulary:,}")
        train_bpe(SourceSpec(url=STDLIB, name=STDLIB), settings.vocabulary, folder / "tokenizer", 10**9)
        (folder / "spec.toml").write_text(
            f'chunk_tokens = {1 << 20}\n[tokenizer]\npath = "{folder / "tokenizer"}"\n'
            f'[[source]]\nurl = "{folder / "texts"}"\n',
            encoding="utf-8",
        )
        built, mapped = [], []
        for repeat in range(settings.repeats):
            for found in ("build", MAP) if repeat % 2 == 0 else (MAP, "build"):
                if found == MAP:
                    mapped.append(_map(folder, processes))
                    tell(f"{MAP}: {mapped[-1]['load_s'] + mapped[-1]['map_s']:.1f} s")
                else:
                    built.append(_build(folder, f"out-{repeat}", processes))
                    tell(f"lowcomm data build: {built[-1]['seconds']:.1f} s")
        whole = (folder / "out-0" / MANIFEST).read_bytes()
        results = _count_results(folder)
        kills = _kill(folder, processes, settings.kills, results, tell)
        same = (folder / "killed" / MANIFEST).read_bytes() == whole
    return _outcome(settings, processes, text_bytes, built, mapped, kills, same)


def _outcome(
    settings: CorpusBench,
    processes: int,
    text_bytes: int,
    built: Sequence[dict[str, Any]],
    mapped: Sequence[dict[str, Any]],
    kills: int,
    same: bool,
) -> Outcome:
    build_s = statistics.median(one["seconds"] for one in built)
    map_s = statistics.median(one["map_s"] for one in mapped)
    both_s = statistics.median(one["load_s"] + one["map_s"] for one in mapped)
    peaks = [max(one["peak_mb"] for one in runs) for runs in (built, mapped)]
    rows = [
        (
            who,
            f"{seconds:.1f} s",
            f"{text_bytes / seconds / 1e6:.2f} MB/s",
            f"{peak:,.0f} MB" if peak else "-",
        )
        for who, seconds, peak in (
            ("lowcomm data build", build_s, peaks[0]),
            ("datasets: load_dataset and map", both_s, peaks[1]),
            ("datasets: map alone", map_s, 0.0),
        )
    ]
    errors = []
    if not same:
        errors.append(f"expected the manifest of an undisturbed build after {kills} kills, got another")
    if kills < settings.kills:
        errors.append(f"expected {settings.kills} kills, but the build was done after {kills}")
    if peaks[0] > MOST_MB:
        errors.append(f"expected at most {MOST_MB:.0f} MB of all processes together, got {peaks[0]:.0f} MB")
    return Outcome(
        log={
            "settings": {**settings.to_dict(), "processes": processes},
            "text_bytes": text_bytes,
            "build": list(built),
            "map": list(mapped),
            "build_s": build_s,
            "load_and_map_s": both_s,
            "map_s": map_s,
            "kills": kills,
            "same_manifest": same,
        },
        headings=("who", "median", "text", "memory"),
        rows=rows,
        notes=[
            f"{processes} processes, {text_bytes:,} bytes: {both_s / build_s:.2f} times as fast as {MAP}",
            f"killed {kills} times: manifest {'equal' if same else 'differs'}",
        ],
        errors=errors,
    )


def _write_text(folder: Path, least_bytes: int) -> int:
    """Files of JSON lines; how many bytes of text they have."""
    folder.mkdir()
    texts = []
    for path in find_files(STDLIB)[0]:
        with contextlib.suppress(LeftOutError):
            texts.append(read_text(path).decode().splitlines(keepends=True))
    texts = [lines for lines in texts if lines]
    chosen, written, number = random.Random(0), 0, 0
    while written < least_bytes:
        with (folder / f"{number:04d}.jsonl").open("w", encoding="utf-8") as file:
            while written < least_bytes and file.tell() < FILE_BYTES:
                lines = chosen.choice(texts)
                text = "".join(chosen.sample(lines, len(lines)))
                written += len(text.encode())
                file.write(json.dumps({"text": text}) + "\n")
        number += 1
    return written


def _start(folder: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    return start_child(
        [sys.executable, "-m", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        environment=environment,
        dies=signal.SIGKILL,
    )


def _result(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """The JSON that a child ends with.

    Raises:
        DataError: it fails.
    """
    child = _start(folder, words)
    try:
        out, error = child.communicate()
    finally:
        end_session(child.pid)
    if child.returncode:
        raise DataError(f"{words[0]} ended with {child.returncode}: {error.decode()[-500:]}")
    found: dict[str, Any] = json.loads(out)
    return found


def _build_words(folder: Path, out: str, processes: int) -> list[str]:
    where = ["--out", str(folder / out), "--processes", str(processes), "--json", "-"]
    return ["lowcomm", "data", "build", str(folder / "spec.toml"), *where]


def _build(folder: Path, out: str, processes: int) -> dict[str, Any]:
    return _result(folder, _build_words(folder, out, processes))


def _map(folder: Path, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        words = [str(folder / "texts"), str(folder / "tokenizer"), str(processes), cache]
        return _result(folder, ["lowcomm.bench.datasets_map", *words])


def _done(out: Path) -> int:
    """Results that a build has."""
    return sum(1 for path in (out / BUILDING).glob("*/*") if not path.name.startswith("."))


def _count_results(folder: Path) -> int:
    """How many results a build has before it writes chunks, which goes too fast to be killed in time."""
    items, _ = items_of(0, SourceSpec(url=str(folder / "texts")))
    return 2 * len(items)


def _kill(folder: Path, processes: int, kills: int, results: int, tell: Tell) -> int:
    """Kill a build so many times, spread over its results, and let it end; how many times it was killed."""
    done = 0
    for number in range(kills):
        child = _start(folder, _build_words(folder, "killed", processes))
        try:
            while child.poll() is None and _done(folder / "killed") < results * (number + 1) / (kills + 1):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(LOOK_S)
            child.kill()
            child.wait()
            done += child.returncode == -signal.SIGKILL
        finally:
            end_session(child.pid)
        tell(f"killed with {_done(folder / 'killed')} of {results} results")
    _build(folder, "killed", processes)
    return done
