"""Which data and islands a model is made of: what the ledger credits, what the corpus's manifest names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.config.schema import Config
from lowcomm.data.corpus.manifest import MANIFEST, Manifest
from lowcomm.errors import DataError
from lowcomm.ledger.audit import Audit
from lowcomm.metrics.factory import METRICS_FILE
from lowcomm.metrics.jsonl import read_lines
from lowcomm.training.account import tokens_by_source
from lowcomm.training.verification import law_of, verify
from lowcomm.types import Json


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of the corpus.

    Attributes:
        tokens: of those that were credited.
        exact: all of them are of samples that entries name; else the rest is in proportion to its part of an
            epoch.
    """

    name: str
    licence: str
    origin: str
    tokens: int
    exact: bool = True


@dataclass(frozen=True, kw_only=True)
class Contributor:
    """An island, and the tokens that the ledger credits to it."""

    peer: str
    name: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Of the model that a run has trained.

    Attributes:
        manifest: digest of the corpus's; without one `data` is the digest of the files that were read.
        outer_steps: entries that each fragment has, the most.
        snapshots: states that were taken from others; what had led to them this folder does not tell.
        problem: what is wrong; empty if the ledger is whole, and the manifest is the one that [shared] names.
    """

    run_id: str
    manifest: str
    data: str
    head: str
    tokens: int
    snapshots: int
    sources: tuple[Source, ...]
    islands: tuple[Contributor, ...]
    problem: str

    @property
    def valid(self) -> bool:
        """Whether everything that could be checked is as it should be."""
        return not self.problem

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {
            **{name: value for name, value in vars(self).items() if name not in ("sources", "islands")},
            "sources": [vars(source) for source in self.sources],
            "islands": [vars(island) for island in self.islands],
            "valid": self.valid,
        }

    def lines(self) -> Iterator[str]:
        """As Markdown."""
        yield f"- run `{self.run_id}`, ledger head `{self.head or 'unknown'}`, {self.tokens:,} tokens"
        what, digest = (
            ("corpus of manifest", self.manifest) if self.manifest else ("data of digest", self.data)
        )
        yield f"- {what} `{digest}`"
        for source in self.sources:
            said = [source.name, source.licence or "licence not said", source.origin]
            about = "" if source.exact or len(self.sources) == 1 else "about "
            yield f"- source {', '.join(filter(None, said))}: {about}{source.tokens:,} tokens"
        for island in self.islands:
            share, name = 100 * island.tokens / max(1, self.tokens), island.name or "of unknown name"
            yield f"- island {name} `{island.peer}`: {island.tokens:,} tokens, {share:.1f} %"
        if self.snapshots:
            yield f"- {self.snapshots} states were taken from other islands; what led to them is not told"
        if self.problem:
            yield f"- NOT AS IT SHOULD BE: {self.problem}"


def provenance_of(run_dir: Path, *, states: bool = True) -> Provenance:
    """What a run folder proves; what is wrong is its `problem`.

    Args:
        states: see `verify`.

    Raises:
        StorageError: it is no run folder.
    """
    audit = verify(run_dir, states=states)
    config, _ = law_of(run_dir)
    start, names = _told(run_dir)
    tokens = sum(audit.credited.values())
    pinned = config.shared.data.manifest if config is not None else ""
    problem, sources = audit.problem, tuple[Source, ...]()
    if config is not None and pinned:
        try:
            manifest = Manifest.read(run_dir)
        except DataError as error:
            problem = problem or str(error)
        else:
            if manifest.digest != pinned:
                problem = problem or (
                    f"{run_dir / MANIFEST}: expected the manifest {pinned[:12]} of shared.data.manifest, got "
                    f"{manifest.digest[:12]}"
                )
            sources = _sources(config, manifest, audit, tokens)
    elif config is not None and start:
        known = str(config.data.source)
        sources = (Source(name=known, licence="", origin="", tokens=tokens),)
    return Provenance(
        run_id=config.shared.run_id if config is not None else str(start.get("run_id", "")),
        manifest=pinned,
        data=str(start.get("data_digest", "")),
        head=str(audit.head or ""),
        tokens=tokens,
        snapshots=audit.snapshots,
        sources=sources,
        islands=tuple(
            Contributor(peer=peer, name=names.get(peer, ""), tokens=count)
            for peer, count in sorted(audit.credited.items())
        ),
        problem=problem,
    )


def _sources(config: Config, manifest: Manifest, audit: Audit, tokens: int) -> tuple[Source, ...]:
    """The tokens of each: of the samples that entries name; of the rest by what an epoch has of each."""
    named = tokens_by_source(config, manifest, audit)
    rest = max(0, tokens - int(named.sum()))
    weights = [source.weight * source.tokens for source in manifest.sources]
    ends = [round(rest * sum(weights[: place + 1]) / sum(weights)) for place in range(len(weights))]
    return tuple(
        Source(
            name=source.name,
            licence=source.licence,
            origin=source.origin,
            tokens=int(known) + end - begin,
            exact=rest == 0,
        )
        for source, known, begin, end in zip(manifest.sources, named, [0, *ends], ends, strict=False)
    )


def _told(run_dir: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The newest start line of metrics.jsonl, and the names of the islands that were met."""
    start: dict[str, Any] = {}
    names: dict[str, str] = {}
    file = run_dir / METRICS_FILE
    for line in read_lines(file) if file.exists() else ():
        if line.get("kind") == "start":
            start = dict(line)
            names[str(line.get("peer"))] = str(line.get("name", ""))
        found = line.get("names")
        if isinstance(found, dict):
            names.update({str(peer): str(name) for peer, name in found.items()})
    return start, names
