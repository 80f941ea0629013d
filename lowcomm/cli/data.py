"""`lowcomm data ...`: make a corpus, look at it, check it, and train a tokenizer for it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.cli.common import (
    EXIT_DONE,
    EXIT_FAILED,
    Subparsers,
    add_command,
    add_json,
    check_writable,
    positive,
    print_error,
    print_table,
    write_json,
)

if TYPE_CHECKING:
    from lowcomm.data.corpus.manifest import Manifest
    from lowcomm.data.making.build import Tell
    from lowcomm.types import Json

SHOWN_CHARACTERS = 300


def add_parser(commands: Subparsers) -> None:
    """Declare the command and its parts."""
    parser = add_command(
        commands,
        "data",
        about="make a corpus of tokens, look at it, check it, train a tokenizer",
        example="lowcomm data build corpus.toml --out corpus",
    )
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    part = add_command(
        parts,
        "build",
        about="make a corpus of its specification, or go on with one that was killed",
        example="lowcomm data build corpus.toml --out corpus --json corpus.json",
    )
    part.add_argument(
        "spec", metavar="SPEC.toml", type=Path, help="tokenizer, sources and steps: docs/corpus.md"
    )
    part.add_argument("--out", metavar="DIR", type=Path, required=True, help="the corpus's folder")
    part.add_argument(
        "--processes", metavar="N", type=positive,
        help="that work at a time (default: one for each processor); what comes out is the same for any",
    )  # fmt: skip
    add_json(part)
    part = add_command(
        parts,
        "inspect",
        about="print what a corpus is made of, and some of its documents",
        example="lowcomm data inspect corpus --documents 3",
    )
    _add_folder(part)
    part.add_argument(
        "--documents", metavar="N", type=int, default=1, help="of each source that are shown (default 1)"
    )
    add_json(part)
    part = add_command(
        parts,
        "verify",
        about="compare each file of a corpus with its manifest; exit code 1 where bytes differ",
        example="lowcomm data verify corpus",
    )
    _add_folder(part)
    add_json(part)
    part = add_command(
        parts,
        "account",
        about="say which units of a corpus a run's ledger credits once, twice, or not",
        example="lowcomm data account runs/words/island-0",
    )
    part.add_argument("run_dir", metavar="RUN", type=Path, help="an island's run folder")
    add_json(part)
    part = add_command(
        parts,
        "tokenizer",
        about="train a BPE on the text of a source",
        example="lowcomm data tokenizer 'texts/*.jsonl' --size 32000 --out tokenizer",
    )
    part.add_argument("source", metavar="SOURCE", help="stdlib, a folder, file, glob or fsspec URL")
    part.add_argument("--size", metavar="N", type=positive, required=True, help="tokens of the vocabulary")
    part.add_argument("--out", metavar="DIR", type=Path, required=True, help="where tokenizer.json goes")
    part.add_argument("--text-key", metavar="KEY", default="text", help="key or column of the text (text)")
    part.add_argument(
        "--text-mb", metavar="MB", type=positive, default=500,
        help="of text that it is trained on, spread over the source (default 500); memory grows with it",
    )  # fmt: skip
    add_json(part)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="of a corpus")


def run(args: argparse.Namespace) -> int:
    """Do one of the parts."""
    check_writable(args.json)
    parts = {
        "build": _build, "inspect": _inspect, "verify": _verify, "account": _account, "tokenizer": _tokenizer
    }  # fmt: skip
    return parts[args.part](args)


def _account(args: argparse.Namespace) -> int:
    from lowcomm.training.account import account_of

    found = account_of(args.run_dir)
    if args.json:
        write_json(args.json, found.to_dict())
    if args.json != "-":
        print(
            f"{found.units:,} units of {found.unit_samples:,} samples, {found.epochs:,} epochs done: "
            f"{found.credited_once:,} credited once, {found.credited_twice:,} twice, {found.missing:,} "
            f"missing of epochs that are done, {found.begun:,} of the one under way not yet"
        )
        rows = [[name, f"{tokens:,}"] for name, tokens in found.tokens_by_source.items()]
        print_table(["source", "tokens"], rows)
    if found.problem:
        print_error(found.problem)
    return EXIT_FAILED if found.problem else EXIT_DONE


def _build(args: argparse.Namespace) -> int:
    from lowcomm.data.making.build import build
    from lowcomm.data.making.spec import read_spec

    spec = read_spec(args.spec)
    processes = args.processes or len(os.sched_getaffinity(0))
    with _progress() as tell:
        built = build(spec, args.out, processes, tell)
    print(
        f"lowcomm: {args.out}: {built.documents:,} documents, {built.tokens:,} tokens to train on, "
        f"{built.holdout_tokens:,} held out, in {built.chunks:,} chunks; {sum(built.dropped.values()):,} "
        f"documents dropped; manifest {built.manifest}",
        file=sys.stderr,
    )
    if args.json:
        write_json(args.json, asdict(built))
    return EXIT_DONE


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """A bar for each stage on a terminal, a line for each elsewhere."""
    if not sys.stderr.isatty():
        yield (
            lambda stage, done, total: (
                print(f"lowcomm: {stage}: {total:,}", file=sys.stderr, flush=True) if done == total else None
            )
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = dict[str, TaskID]()

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield tell


def _inspect(args: argparse.Namespace) -> int:
    from lowcomm.data.corpus.manifest import Manifest

    manifest = Manifest.read(args.folder)
    shown = _documents(args.folder, manifest, args.documents)
    if args.json:
        values = json.loads(manifest.encode())
        write_json(args.json, {"manifest": manifest.digest, **values, "documents": {**shown}})
    if args.json == "-":
        return EXIT_DONE
    vocabulary = manifest.vocabulary
    print(
        f"manifest {manifest.digest}\n{vocabulary.kind}: {vocabulary.size:,} tokens, {vocabulary.separator} "
        f"ends a document; {manifest.documents:,} documents, {manifest.tokens:,} tokens to train on, "
        f"{sum(chunk.tokens for chunk in manifest.holdout):,} held out"
    )
    print_table(
        ("source", "weight", "documents", "tokens", "text bytes", "licence", "origin"),
        [
            (
                s.name,
                f"{s.weight:g}",
                f"{s.documents:,}",
                f"{s.tokens:,}",
                f"{s.text_bytes:,}",
                s.licence,
                s.origin,
            )
            for s in manifest.sources
        ],
    )
    print_table(
        ("step", "documents in", "kept", "bytes kept", "dropped"),
        [
            (
                step.name,
                f"{step.documents_in:,}",
                f"{step.documents_kept:,}",
                f"{step.bytes_kept:,}",
                ", ".join(f"{rule} {count:,}" for rule, count in step.dropped.items()) or "-",
            )
            for step in manifest.steps
        ],
    )
    for name, texts in shown.items():
        for text in map(str, texts):
            print(f"--- {name}\n{text[:SHOWN_CHARACTERS]}{' ...' if len(text) > SHOWN_CHARACTERS else ''}")
    return EXIT_DONE


def _documents(folder: Path, manifest: Manifest, count: int) -> dict[str, list[Json]]:
    """The first documents of each source."""
    from lowcomm.data.corpus.chunks import ENDS, TOKENS, chunk_file, map_ends, map_tokens
    from lowcomm.data.corpus.tokenizer import corpus_tokenizer
    from lowcomm.errors import DataError

    tokenizer = corpus_tokenizer(folder, manifest.vocabulary)
    shown: dict[str, list[Json]] = {source.name: [] for source in manifest.sources}
    for number, source in enumerate(manifest.sources):
        chunk = next((chunk for chunk in manifest.training if chunk.source == number), None)
        if chunk is None:
            continue
        try:
            with (
                chunk_file(folder, chunk.name, TOKENS).open("rb") as tokens_file,
                chunk_file(folder, chunk.name, ENDS).open("rb") as ends_file,
            ):
                tokens = map_tokens(tokens_file, chunk, manifest.vocabulary)
                ends = map_ends(ends_file, chunk)[: max(0, count)].tolist()
        except OSError as error:
            raise DataError(f"chunk {chunk.name}: can't be read: {error}; fetch it again") from error
        for start, end in zip([0, *ends], ends, strict=False):
            shown[source.name].append(tokenizer.decode(tokens[start:end]).decode("utf-8", "replace"))
    return shown


def _verify(args: argparse.Namespace) -> int:
    from lowcomm.data.corpus.manifest import Manifest
    from lowcomm.data.making.checking import wrong_files

    manifest = Manifest.read(args.folder)
    wrong = list(wrong_files(args.folder, manifest))
    for name, why in wrong:
        print_error(f"{args.folder}: {name}: {why}; fetch or build it again")
    if not wrong:
        chunks = len(list(manifest.chunks))
        print(
            f"lowcomm: {args.folder}: {chunks:,} chunks are as manifest {manifest.digest} says",
            file=sys.stderr,
        )
    if args.json:
        names = sorted({name for name, _ in wrong})
        write_json(args.json, {"manifest": manifest.digest, "valid": not wrong, "wrong": list(names)})
    return EXIT_FAILED if wrong else EXIT_DONE


def _tokenizer(args: argparse.Namespace) -> int:
    from lowcomm.data.making.bpe import train_bpe
    from lowcomm.data.making.spec import SourceSpec

    source = SourceSpec(url=args.source, name=args.source, text_key=args.text_key)
    trained = train_bpe(source, args.size, args.out, text_bytes=args.text_mb * 10**6)
    print(
        f"lowcomm: {args.out / 'tokenizer.json'}: {trained.size:,} tokens, blake3 {trained.blake3}",
        file=sys.stderr,
    )
    if args.json:
        write_json(args.json, asdict(trained))
    return EXIT_DONE
