"""A corpus of its specification: four stages, each of whose results is there as a whole or not at all.

docs/design/0025-corpus.md says what they do. What a build has done lies in `building/` of the corpus's
folder until the manifest is there, so one that was killed goes on. `built.json` says what it was made of.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from lowcomm.clock import SystemClock
from lowcomm.data.corpus.manifest import CHUNKS, MANIFEST, Chunk, Manifest, Source, Step, Vocabulary
from lowcomm.data.corpus.tokenizer import load_tokenizer
from lowcomm.data.files import STDLIB
from lowcomm.data.left_out import LeftOut, Reason
from lowcomm.data.making.chunks import ChunkJob, make_chunk, plan_chunks
from lowcomm.data.making.cleaning import EXACT, CleanJob, StepCount, band_name, clean_item
from lowcomm.data.making.duplicates import SORTED_BYTES, DuplicateJob, find_later
from lowcomm.data.making.items import Item, holds_tokens, items_of
from lowcomm.data.making.jobs import Pool
from lowcomm.data.making.spec import SourceSpec, Spec
from lowcomm.data.making.steps import DUPLICATES, MINHASH, make_steps
from lowcomm.data.making.tokens import HOLDOUT, TRAINING, TokenJob, make_tokens
from lowcomm.data.making.work import COUNTS, read_counts, whole_file
from lowcomm.errors import DataError, StorageError
from lowcomm.locks import Lock, TakenError

BUILDING, BUILT = "building", "built.json"
STAGES = ("read and clean", "find duplicates", "make tokens", "write chunks")
Tell = Callable[[str, int, int], None]
"""Told which stage a build is in, and how many of how many results of it are there."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build ended with; what `--json` writes.

    Attributes:
        documents, tokens: that training has.
        holdout_documents, holdout_tokens: that nobody trains on.
        chunks: of both.
        manifest: its digest.
        dropped: step and rule -> documents.
        left_out: files that are not in it.
        seconds, peak_mb: of this run of the build; memory of all processes together, in 10^6 bytes.
    """

    documents: int
    tokens: int
    holdout_documents: int
    holdout_tokens: int
    chunks: int
    manifest: str
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    seconds: float = 0.0
    peak_mb: float = 0.0


def build(spec: Spec, out: Path, processes: int = 1, tell: Tell = lambda stage, done, total: None) -> Built:
    """Make a corpus, or go on with one.

    Args:
        spec: what it is made of.
        out: its folder.
        processes: that work at a time.
        tell: told of progress.

    Raises:
        ConfigError: a step or the tokenizer can't be made.
        DataError: a source can't be read, or has no text.
        StorageError: the folder is in use, holds another corpus, or can't be written.
    """
    with _locked(out), Pool(processes) as pool:
        started = SystemClock().monotonic_s()
        try:
            run = _Build(spec, out, pool, tell)
            built = run.finished() or run.run()
        except OSError as error:
            raise StorageError(
                f"{error.filename or out}: {error.strerror or error}; the same command goes on where it was"
            ) from error
        return Built(
            **{
                **asdict(built),
                "seconds": round(SystemClock().monotonic_s() - started, 3),
                "peak_mb": round(pool.peak_bytes / 1e6, 1),
            }
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = Lock(out)
    except TakenError as error:
        raise StorageError(
            f"{out}: another build writes into it; wait for it, or name another folder"
        ) from error
    except OSError as error:
        raise StorageError(f"{out}: expected a folder to write into, got: {error.strerror}") from error
    with contextlib.closing(lock):
        yield


class _Build:
    """One run of a build.

    Args:
        spec: what the corpus is made of.
        out: its folder.
        pool: does the jobs.
        tell: told of progress.
    """

    def __init__(self, spec: Spec, out: Path, pool: Pool, tell: Tell) -> None:
        self._spec, self._out, self._pool, self._tell = spec, out, pool, tell
        self._work = out / BUILDING
        _, self._bands, _ = make_steps(spec.steps)
        self._tokenizer = load_tokenizer(spec.tokenizer.path, spec.tokenizer.separator)
        self._items: list[Item] = []
        self._left_out: list[LeftOut] = []
        self._tokenised: list[bool] = []
        for number, source in enumerate(spec.sources):
            items, left_out = items_of(number, source)
            self._tokenised.append(holds_tokens(source, items))
            self._items += items
            self._left_out.append(left_out)

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._tokenizer.vocabulary

    def _plan(self) -> dict[str, str]:
        """What the result depends on, digested by name."""
        parts: dict[str, Any] = {
            "the specification": asdict(self._spec),
            "the tokenizer": self._vocabulary.blake3,
        }
        for number, source in enumerate(self._spec.sources):
            parts[f"the files of source {source.name}"] = [
                [asdict(piece) for piece in item.pieces] for item in self._items if item.source == number
            ]
        return {
            name: blake3(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
            for name, value in parts.items()
        }

    def finished(self) -> Built | None:
        """What there is already, if this specification was built here as a whole.

        Raises:
            StorageError: another one was, or is being built.
        """
        plan = self._plan()
        for path, what in ((self._out / BUILT, "built"), (self._work / "plan.json", "begun")):
            if path.is_file():
                found = json.loads(path.read_text(encoding="utf-8"))
                before = found["plan"]
                if before != plan:
                    names = sorted({*before, *plan})
                    other = ", ".join(name for name in names if before.get(name) != plan.get(name))
                    raise StorageError(
                        f"{self._out}: a corpus was {what} here, and since then {other} changed; "
                        "name another folder, or remove this one"
                    )
                if what == "built":
                    shutil.rmtree(self._work, ignore_errors=True)
                    return Built(**found["built"])
        if (self._out / MANIFEST).exists():
            raise StorageError(
                f"{self._out}: holds a corpus already; name another folder, or remove this one"
            )
        self._work.mkdir(exist_ok=True)
        with whole_file(self._work / "plan.json") as path:
            path.write_text(json.dumps({"plan": plan}), encoding="utf-8")
        return None

    def run(self) -> Built:
        """All stages, from the last result on."""
        for name, content in self._tokenizer.files.items():
            with whole_file(self._out / name) as path:
                path.write_bytes(content)
        results = (self._work / name for name in ("cleaned", "tokens", "chunks"))
        for folder in (self._work, *results, self._out / CHUNKS):
            folder.mkdir(exist_ok=True)
            for torn in folder.glob(".*"):  # what a killed build was writing
                shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
        cleaned = self._clean()
        later = self._find_duplicates(cleaned)
        tokens = self._make_tokens(cleaned, later)
        training, holdout = (self._make_chunks(tokens, part) for part in (TRAINING, HOLDOUT))
        manifest = self._manifest(cleaned, tokens, training, holdout)
        with whole_file(self._out / MANIFEST) as path:
            path.write_bytes(manifest.encode())
        built = Built(
            documents=manifest.documents,
            tokens=manifest.tokens,
            holdout_documents=sum(chunk.documents for chunk in holdout),
            holdout_tokens=sum(chunk.tokens for chunk in holdout),
            chunks=len(training) + len(holdout),
            manifest=manifest.digest,
            dropped={
                f"{step.name}: {rule}": n for step in manifest.steps for rule, n in step.dropped.items()
            },
            left_out=sum(
                len(left_out)
                for source, left_out in zip(self._spec.sources, self._left_out, strict=True)
                if source.url != STDLIB
            ),
        )
        with whole_file(self._out / BUILT) as path:
            path.write_text(
                json.dumps({"plan": self._plan(), "built": asdict(built)}) + "\n", encoding="utf-8"
            )
        shutil.rmtree(self._work, ignore_errors=True)
        return built

    def _do(
        self, stage: str, function: Callable[[Any], Any], jobs: Sequence[Any], done: Sequence[bool]
    ) -> None:
        """The jobs that are not done yet."""
        total, there = len(jobs), sum(done)
        self._tell(stage, there, total)
        left = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
        for _ in self._pool.run(function, left):
            there += 1
            self._tell(stage, there, total)

    def _clean(self) -> list[Path]:
        """The first stage: a folder per item."""
        jobs = [
            CleanJob(
                folder=self._work / "cleaned" / f"{number:06d}",
                fetched=self._work / f"fetched-{number:06d}",
                item=item,
                source=self._spec.sources[item.source],
                vocabulary=self._vocabulary,
                steps=() if self._tokenised[item.source] else self._spec.steps,
                bands=self._bands,
            )
            for number, item in enumerate(self._items)
        ]
        self._do(STAGES[0], clean_item, jobs, [(job.folder / COUNTS).is_file() for job in jobs])
        self._tell_left_out([job.folder for job in jobs])
        return [job.folder for job in jobs]

    def _tell_left_out(self, folders: Sequence[Path]) -> None:
        """Warn of files that are no text.

        Raises:
            DataError: a source has nothing else.
        """
        documents = Counter[int]()
        for item, folder in zip(self._items, folders, strict=True):
            counts = read_counts(folder)
            documents[item.source] += counts["documents"] + sum(
                sum(step["dropped"].values()) for step in counts["steps"]
            )
            for name, words, advice, detail in counts["left_out"]:
                self._left_out[item.source].add(Path(name), Reason(words, advice), detail)
        for number, source in enumerate(self._spec.sources):
            if not documents[number]:
                mine = [item for item in self._items if item.source == number]
                files = len({piece.name for item in mine for piece in item.pieces})
                found = f"{files} files, none with text" if files else "no files"
                left_out = f": {self._left_out[number]}" if self._left_out[number] else ""
                raise DataError(f"source {source.name}: expected text at {source.url}, got {found}{left_out}")
            # of Python's own sources the same are left out everywhere, and nobody has to do anything about it
            self._left_out[number].tell(source.url, logging.INFO if source.url == STDLIB else logging.WARNING)

    def _find_duplicates(self, cleaned: Sequence[Path]) -> list[Path]:
        """The second stage: a file of bits for equal documents, and one for each band."""
        jobs = [
            DuplicateJob(
                files=[folder / name for folder in cleaned],
                result=self._work / f"{name}.bits",
                sorted_bytes=max(SORTED_BYTES // self._pool.processes, 1 << 22),
            )
            for name in (EXACT, *map(band_name, range(self._bands)))
        ]
        self._do(STAGES[1], find_later, jobs, [job.result.is_file() for job in jobs])
        return [job.result for job in jobs]

    def _make_tokens(self, cleaned: Sequence[Path], later: Sequence[Path]) -> list[Path]:
        """The third stage: a folder per item."""
        jobs, start = list[TokenJob](), 0
        for item, folder in zip(self._items, cleaned, strict=True):
            jobs.append(
                TokenJob(
                    cleaned=folder,
                    folder=self._work / "tokens" / folder.name,
                    start=start,
                    later=later,
                    corpus=self._out,
                    vocabulary=self._vocabulary,
                    tokenised=self._tokenised[item.source],
                    holdout_fraction=self._spec.holdout_fraction,
                )
            )
            start += read_counts(folder)["documents"]
        self._do(STAGES[2], make_tokens, jobs, [(job.folder / COUNTS).is_file() for job in jobs])
        return [job.folder for job in jobs]

    def _make_chunks(self, tokens: Sequence[Path], part: str) -> tuple[Chunk, ...]:
        """The fourth stage, for one part: names go on after those of the part before."""
        first = 0 if part == TRAINING else len(list((self._work / "chunks").glob(f"{TRAINING}-*")))
        jobs: list[ChunkJob] = []
        for number in range(len(self._spec.sources)):
            folders = [
                folder for item, folder in zip(self._items, tokens, strict=True) if item.source == number
            ]
            for segments in plan_chunks(folders, part, self._spec.chunk_tokens):
                name = f"{first + len(jobs):06d}"
                jobs.append(
                    ChunkJob(
                        corpus=self._out,
                        result=self._work / "chunks" / f"{part}-{name}.json",
                        name=name,
                        source=number,
                        part=part,
                        vocabulary=self._vocabulary,
                        segments=segments,
                    )
                )
        self._do(f"{STAGES[3]} ({part})", make_chunk, jobs, [job.result.is_file() for job in jobs])
        return tuple(make_chunk(job) for job in jobs)

    def _manifest(
        self,
        cleaned: Sequence[Path],
        tokens: Sequence[Path],
        training: tuple[Chunk, ...],
        holdout: tuple[Chunk, ...],
    ) -> Manifest:
        declared = [step for step in self._spec.steps if step.name != MINHASH]
        steps = [StepCount() for _ in declared]
        exact, near = StepCount(), StepCount()
        hashes = [blake3() for _ in self._spec.sources]
        text_bytes = Counter[tuple[int, str]]()
        for item, folder, made in zip(self._items, cleaned, tokens, strict=True):
            counts, later = read_counts(folder), read_counts(made)
            hashes[item.source].update(bytes.fromhex(counts["digest"]))
            for step, found in zip(steps, counts["steps"], strict=False):  # what is tokenised has none
                step.add(found)
            exact.add(later["exact"])
            near.add(later["near"])
            for part, size in later["text_bytes"].items():
                text_bytes[item.source, part] += size
        last = self._spec.steps[-1:] if self._bands else ()
        named = [(step.name, step.settings, count) for step, count in zip(declared, steps, strict=True)]
        named.append((DUPLICATES, {}, exact))
        named += [(step.name, step.settings, near) for step in last]
        return Manifest(
            vocabulary=self._vocabulary,
            sources=tuple(
                _source(number, source, hashes[number].hexdigest(), training, holdout, text_bytes)
                for number, source in enumerate(self._spec.sources)
            ),
            steps=tuple(
                Step(
                    name=name,
                    settings=settings,
                    **{**vars(count), "dropped": dict(sorted(count.dropped.items()))},
                )
                for name, settings, count in named
            ),
            training=training,
            holdout=holdout,
        )


def _source(
    number: int,
    source: SourceSpec,
    digest: str,
    training: tuple[Chunk, ...],
    holdout: tuple[Chunk, ...],
    text_bytes: Counter[tuple[int, str]],
) -> Source:
    mine, apart = ([chunk for chunk in part if chunk.source == number] for part in (training, holdout))
    return Source(
        name=source.name,
        url=source.url,
        blake3=digest,
        origin=source.origin,
        licence=source.licence,
        weight=source.weight,
        documents=sum(chunk.documents for chunk in mine),
        tokens=sum(chunk.tokens for chunk in mine),
        text_bytes=text_bytes[number, TRAINING],
        holdout_documents=sum(chunk.documents for chunk in apart),
        holdout_tokens=sum(chunk.tokens for chunk in apart),
        holdout_text_bytes=text_bytes[number, HOLDOUT],
    )
