"""Which samples of a corpus a run's ledger credits: once, twice or not at all, and of which source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowcomm.config.schema import Config
from lowcomm.data.corpus.manifest import MANIFEST, Manifest
from lowcomm.data.reading.order import Order
from lowcomm.data.unit_loader import Numbering
from lowcomm.errors import DataError, StorageError
from lowcomm.ledger.audit import Audit
from lowcomm.spans import Spans, common, joined, size, without
from lowcomm.tasks.text import samples_in_unit
from lowcomm.training.verification import law_of, verify
from lowcomm.types import Json

AT_ONCE = 1 << 16
"""Samples that are looked up at a time."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Of the samples that the anchor has seen, by units.

    Attributes:
        manifest: digest of the corpus's.
        unit_samples, sample_tokens: samples of a unit, tokens of a sample.
        epochs: that the run has gone past the end of.
        units: up to the last one that has a credited sample.
        credited_once: all of whose samples are credited, once each.
        credited_twice: with a sample that entries of this file credit more than once.
        missing: of the epochs that the run has gone past, with a sample that is not credited.
        begun: of the epoch under way, with a sample that is not credited.
        samples, samples_twice: credited, and credited again; the latter also where it was before this file.
        tokens_by_source: of the samples that are credited, by the names of sources.
        problem: what is wrong with the ledger; empty if nothing is.
    """

    manifest: str
    unit_samples: int
    sample_tokens: int
    epochs: int
    units: int
    credited_once: int
    credited_twice: int
    missing: int
    begun: int
    samples: int
    samples_twice: int
    tokens_by_source: dict[str, int]
    problem: str

    def to_dict(self) -> dict[str, Json]:
        """Plain values, for JSON."""
        return {**vars(self), "tokens_by_source": dict(self.tokens_by_source)}


def account_of(run_dir: Path) -> Account:
    """What the ledger of a run folder credits.

    Raises:
        StorageError: it is no run folder, or one of a run that leases no units.
        DataError: its manifest is damaged.
    """
    audit = verify(run_dir, states=False)
    config, _ = law_of(run_dir)
    if config is None or audit.samples is None:
        raise StorageError(
            f"{run_dir}: expected a ledger that credits samples, got "
            f"{audit.problem or 'one that names none'}; runs on a corpus (shared.data.manifest) have it, "
            "unless data.shard is set"
        )
    manifest = Manifest.read(run_dir)
    if manifest.digest != audit.samples.data:
        raise DataError(
            f"{run_dir / MANIFEST}: expected the manifest {audit.samples.data[:12]} of the ledger, got "
            f"{manifest.digest[:12]}"
        )
    names = [source.name for source in manifest.sources]
    order = order_of(config, manifest)
    numbering = Numbering(order)
    unit = config.shared.data.unit_samples or samples_in_unit(order.count(0))
    credited = audit.samples.credited
    last = credited[-1][1] if credited else 0
    units = -(-last // unit)
    epochs = numbering.place(last - 1)[0] if last else 0
    past = numbering.begin(epochs) // unit
    whole = _whole_units(credited, unit)
    lacking = without(((0, units),), whole)
    twice = joined((first // unit, (stop - 1) // unit + 1) for first, stop in audit.twice)
    return Account(
        manifest=manifest.digest,
        unit_samples=unit,
        sample_tokens=config.shared.model.context,
        epochs=epochs,
        units=units,
        credited_once=size(without(whole, twice)),
        credited_twice=size(twice),
        missing=size(common(lacking, ((0, past),))) if past else 0,
        begun=size(common(lacking, ((past, units),))) if units > past else 0,
        samples=size(credited),
        samples_twice=audit.samples.twice,
        tokens_by_source=dict(zip(names, tokens_by_source(config, manifest, audit).tolist(), strict=True)),
        problem=audit.problem,
    )


def order_of(config: Config, manifest: Manifest) -> Order:
    """In which a run draws the samples of its corpus."""
    return Order(manifest, context=config.shared.model.context, seed=config.shared.seed)


def tokens_by_source(config: Config, manifest: Manifest, audit: Audit) -> NDArray[np.int64]:
    """(sources,) tokens of the samples that are credited, those that are credited twice counted twice."""
    order = order_of(config, manifest)
    found = np.zeros(len(manifest.sources), dtype=np.int64)
    if audit.samples is not None:
        for spans in (audit.samples.credited, audit.twice):
            found += _windows_by_source(order, spans, len(found))
    return found * config.shared.model.context


def _windows_by_source(order: Order, spans: Spans, sources: int) -> NDArray[np.int64]:
    numbering = Numbering(order)
    found = np.zeros(sources, dtype=np.int64)
    for first, stop in spans:
        while first < stop:
            epoch, within = numbering.place(first)
            end = numbering.begin(epoch + 1)
            if within == 0 and end <= stop:
                found += order.sources(epoch)
                first = end
                continue
            until = min(stop, end, first + AT_ONCE)
            found += order.sources(epoch, order.places(epoch, within, within + until - first))
            first = until
    return found


def _whole_units(credited: Spans, unit: int) -> Spans:
    """Numbers of the units all of whose samples are credited."""
    return joined((-(-first // unit), stop // unit) for first, stop in credited)
