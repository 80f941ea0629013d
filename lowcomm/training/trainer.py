"""The trainer of one island: a recipe, or a model and data, in; a trained share of it and a summary out."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from lowcomm import __version__
from lowcomm.algorithms.learning_rate import set_lr
from lowcomm.arguments import show
from lowcomm.clock import Clock, SystemClock
from lowcomm.config.load import shared_digest, to_dict, to_toml
from lowcomm.config.schema import Config
from lowcomm.data.corpus.manifest import MANIFEST
from lowcomm.data.loader import Batches
from lowcomm.data.samples import Batch
from lowcomm.data.unit_loader import UnitLoader
from lowcomm.errors import ArgumentError, LossError, StorageError
from lowcomm.exchanges.base import Exchange
from lowcomm.interrupts import Interrupts
from lowcomm.islands.base import Island
from lowcomm.islands.group import process_group
from lowcomm.metrics.factory import METRICS_FILE, open_sinks
from lowcomm.metrics.journal import Described, Journal, divergence
from lowcomm.metrics.summary import SUMMARY_FILE, Counts, Summary
from lowcomm.outer.loop import OuterLoop
from lowcomm.recovery.joining import JoinReport
from lowcomm.storage.checkpoint import Checkpoints, fragment_part, saved_fragments
from lowcomm.storage.files import require_temporary_folder
from lowcomm.storage.rng import rng_state, seed_rng, set_rng_state
from lowcomm.storage.run_folder import RunFolder
from lowcomm.storage.saving import Saver
from lowcomm.tasks.base import Data, Task
from lowcomm.training.build import (
    autocast,
    build_exchange,
    build_island,
    build_lr_schedule,
    build_model,
    build_outer_loop,
    build_task,
)
from lowcomm.training.device import choose_device, device_peak_flops
from lowcomm.training.evaluation import evaluate
from lowcomm.training.fitting import (
    check_host_memory,
    fit_to_memory,
    is_out_of_memory,
    out_of_host_memory,
    out_of_memory,
)
from lowcomm.training.garbage import exempt_from_collection
from lowcomm.training.given import Given, make_optimizers, recipe_of
from lowcomm.training.inner_step import inner_step
from lowcomm.training.loading import (
    island_number,
    leased_units,
    make_loader,
    micro_steps,
    warn_of_batches,
)
from lowcomm.training.opening import agreement, opening, require_same_data
from lowcomm.training.phases import JOINING, Phases
from lowcomm.types import Json, RoundReport

logger = logging.getLogger(__name__)

EVAL_BATCH = 32


class Trainer:
    """Trains one island of a run; under torchrun, every rank makes one and calls `fit`.

    `Trainer(load_config("recipes/x.toml"))` trains what it names; `Trainer(model, data, ...)` any module
    on any data set. All that `lowcomm train` does is done in both: checkpoints, resuming, metrics, evaluation
    of the anchor.

    Args:
        config: see `lowcomm.config.load_config`; or a model, with the same weights on all islands.
        data: with a model: a map-style data set, whose samples are dealt into shards, one for each island; or
            an iterable one, of which each island has its own.
        task: instead of the one that the configuration names; `lowcomm export` and `ledger verify` go by the
            configuration, so let it name a function that makes the same.
        exchange: instead of the one that the configuration names, e.g. a loopback exchange.
        phases: says what happens before the first step; on rank 0 only.
        given: with a model, all optional: `loss` of (model, batch), without it what the model's output calls
            its loss; `eval_data`, which nobody trains on, and `evaluate` of (model, batch) for more than the
            loss; `collate` of a list of samples; `optimizer`, whose learning rates are the peak, or a
            function of the model that makes it (without it AdamW as `shared.inner` says); `sample_tokens`,
            what a sample counts (1); `run_id`, `join` (the string or strings of others), `out` (the run
            folder), `steps`, `batch_size`; and `settings`, any others by their dotted names.

    Raises:
        ConfigError: what is given is unknown, wrong, or doesn't go with a configuration.
    """

    def __init__(
        self,
        config: Config | nn.Module,
        data: Any = None,
        *,
        exchange: Exchange | None = None,
        clock: Clock | None = None,
        phases: Phases | None = None,
        task: Task | None = None,
        **given: Unpack[Given],
    ) -> None:
        self._optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]] | None = None
        if isinstance(config, nn.Module):
            if task is not None:
                raise ArgumentError(
                    "Trainer: task: expected nothing with a model, got one; give it with a recipe"
                )
            recipe = recipe_of(config, data, given)
            config, task = recipe.config, recipe.task
            if recipe.optimizer is not None:
                self._optimizers = partial(make_optimizers, recipe.optimizer, engine=config.island.engine)
        elif not isinstance(config, Config):
            raise ArgumentError(
                "Trainer: config: expected what load_config('recipes/x.toml') gives, or a torch.nn.Module, "
                f"got {show(config)}"
            )
        elif given or data is not None:
            first = next(iter(given), "data")
            raise ArgumentError(
                f"Trainer: {first}: expected nothing beside a configuration, got it; it goes with a model"
            )
        self._asked = self._config = config
        self._exchange, self._task = exchange, task or build_task(config)
        self._clock = clock or SystemClock()
        self._began_s = self._clock.monotonic_s()
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._phases = phases or Phases(console=config.metrics.console != "off")
        self._device = choose_device(config.train.device)
        self._interrupts = Interrupts(self._clock)
        self._saved_step: int | None = None

    def fit(self) -> Summary:
        """Train until `train.steps`, a signal, or an error; resumes what the run folder holds.

        Raises:
            LowcommError: see `lowcomm.errors`; what was saved before is not harmed.
        """
        try:
            return self._fit()
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise out_of_host_memory(self._phases.now, error) from error
            raise

    def _fit(self) -> Summary:
        config = self._config
        require_temporary_folder()
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        nodes = self._world_size // int(os.environ.get("LOCAL_WORLD_SIZE", self._world_size))
        check_host_memory(config, self._task.facts, self._device, nodes)
        self._phases.begin("reading the data")
        data = self._task.data(say=self._rank == 0)
        with contextlib.ExitStack() as stack:
            folder: RunFolder | None = None
            if self._rank == 0:
                folder = stack.enter_context(
                    RunFolder.open(
                        Path(config.out),
                        run_id=config.shared.run_id,
                        shared_digest=shared_digest(config),
                        version=__version__,
                    )
                )
                folder.check_data(data.digest)
                folder.write("config.toml", to_toml(config))
            if self._world_size > 1 or config.island.engine in ("fsdp2", "deepspeed"):
                offloaded = (config.island.engine, config.island.offload) == ("fsdp2", "all")
                stack.enter_context(process_group(self._device, offloaded=offloaded))
            stack.enter_context(self._interrupts)
            return self._train(data, folder, stack)

    # -- the run -----------------------------------------------------------------------------------

    def _train(self, data: Data, folder: RunFolder | None, stack: contextlib.ExitStack) -> Summary:
        self._phases.begin("building the model")
        path = folder.path if folder else None
        self._config = config = fit_to_memory(self._asked, self._task, data, self._device, path)
        model = build_model(config, self._task)
        agreed = agreement(self._task.facts, model) if folder is not None else {}
        island = build_island(config, model, self._device, self._optimizers)
        require_same_data(island, data)
        if (diverged := self._diverged_before(island, folder)) is not None:
            return diverged
        outer = self._open(island, data, folder, agreed)
        stack.callback(outer.close)
        journal = Journal(
            self._described(island),
            island,
            outer,
            clock=self._clock,
            began_s=self._began_s,
            metrics=None if folder is None else folder.path / METRICS_FILE,
        )
        checkpoints = Checkpoints(Path(config.out) / "checkpoints", keep=config.train.keep_checkpoints)
        exempt_from_collection()  # before peers wait for answers
        others = config.exchange.expected_peers - 1
        self._phases.begin(f"{JOINING}, waits for {others} more" if others else JOINING)
        self._saved_step = outer.connect(
            checkpoints.steps(),
            on_address=None if folder is None else lambda a: self._tell_address(folder, a),
        )
        resumed_from, loader_state = self._saved_step, None
        if resumed_from is not None:
            loader_state = self._load(resumed_from, checkpoints, island, outer, journal)
        self._phases.begin("taking over the state")
        join = outer.join(over=self._is_over(outer))
        if resumed_from is None:  # a model may draw random numbers, such as dropout's
            seed_rng(config.shared.seed, join.inner_step, self._rank, island_number(outer, island, join))
        loader = make_loader(config, data, outer, join, island)
        if loader_state is not None:
            loader.load_state_dict(loader_state)
        if join.tokens_credited and not isinstance(loader, UnitLoader):
            loader.skip(join.tokens_credited)
        saver = Saver(checkpoints)
        stack.callback(saver.close)
        batches = micro_steps(config, loader.batch_tokens, len(join.peers))
        run = _Run(island, outer, loader, saver, data, journal, batches)
        if folder is not None:
            folder.note_data(data.digest)
            if manifest := getattr(data, "manifest", b""):
                folder.write(MANIFEST, manifest.decode())
            journal.sinks = open_sinks(
                config.metrics,
                folder.path,
                config.shared.run_id,
                outer.name,
                to_dict(config),
                to_toml(config),
            )
            stack.callback(journal.sinks.close)
            warn_of_batches(config, loader.batch_tokens, len(join.peers))
            self._log_start(run, join, resumed_from)
        self._phases.now = "training"
        return self._work(run, folder)

    def _described(self, island: Island) -> Described:
        config, facts = self._config, self._task.facts
        peak = device_peak_flops(island.device) if autocast(config, island.device) else None
        samples = config.train.batch_size * config.train.grad_accumulation * island.world_size
        fixed = config.shared.schedule.mode == "fixed"
        return Described(
            run_id=config.shared.run_id,
            facts=facts,
            expected_peers=config.exchange.expected_peers,
            step_tokens=0 if fixed else samples * facts.sample_tokens,
            peak_flops=None if peak is None else peak * island.world_size,
        )

    def _open(
        self, island: Island, data: Data, folder: RunFolder | None, agreed: Mapping[str, Json]
    ) -> OuterLoop:
        """The outer loop, not started; with an exchange on the lead."""
        config, exchange = self._config, None
        if folder is not None:
            exchange = self._exchange or build_exchange(config, folder.path / "identity.key")
        self._phases.begin(f"preparing codec {config.shared.codec.name}")
        return build_outer_loop(
            config,
            island,
            exchange,
            folder=folder.path if folder else None,
            clock=self._clock,
            data_digest=data.digest,
            unit_samples=leased_units(config, data),
            agreed=agreed,
        )

    def _load(
        self, step: int, checkpoints: Checkpoints, island: Island, outer: OuterLoop, journal: Journal
    ) -> dict[str, Any]:
        """Restore a checkpoint; returns where the data goes on."""
        self._phases.begin(f"loading checkpoint {step}")
        parts = checkpoints.load(step, only=("island", "outer", "counts", "ranks"))
        with checkpoints.understood(step):
            island.load_state_dict(parts["island"])
            fragments = saved_fragments(checkpoints, step, outer.num_fragments)
            outer.load_state_dict({**parts["outer"], "fragments": fragments})
            journal.resume(Counts.of(parts["counts"]))
            return self._take_rank(step, parts["ranks"])

    def _log_start(self, run: _Run, join: JoinReport, resumed_from: int | None) -> None:
        config, outer = self._config, run.outer
        run.journal.log(
            kind="start",
            run_id=config.shared.run_id,
            name=outer.name,
            peer=outer.peer_id,
            shared_digest=shared_digest(config),
            config=to_dict(config),
            version=__version__,
            how=join.how,
            inner_step=join.inner_step,
            shard=join.shard,
            outer_steps=list(join.outer_steps),
            tokens=outer.tokens_trained,
            swarm_tokens=outer.swarm_tokens,
            tokens_credited=outer.tokens_credited,
            resumed_from=resumed_from,
            peers=list(join.peers),
            counts=asdict(run.journal.earlier),
            **opening(config, run.island, run.data, run.loader, run.micro_steps),
        )

    def _work(self, run: _Run, folder: RunFolder | None) -> Summary:
        """Train, save, evaluate and sum up."""
        outer, journal = run.outer, run.journal
        try:
            interrupted = self._steps(run)
            last_rounds = () if interrupted else outer.finish()
            self._after_rounds(run, last_rounds)
            if last_rounds or self._saved_step != outer.swarm_step:
                self._save(run)
            self._evaluate(run)
            self._saved(run)
        except BaseException as error:
            journal.log(kind="end", reason="failed", error=f"{type(error).__name__}: {error}", summary={})
            raise
        summary = journal.summarize(interrupted=interrupted)
        if folder is not None:
            folder.write(SUMMARY_FILE, json.dumps(summary.to_dict(), indent=2) + "\n")
            finished = "diverged" if summary.diverged else "finished"
            journal.log(kind="end", reason="stopped" if interrupted else finished, summary=summary.to_dict())
        return summary

    def _diverged_before(self, island: Island, folder: RunFolder | None) -> Summary | None:
        """What the earlier session came to that trained to the end and diverged, if one did. Collective.

        A launcher that starts again what has failed (torchrun) finds it over at once, and without the swarm.
        """
        summary: Summary | None = None
        if folder is not None:
            found = Summary.read(folder.path / SUMMARY_FILE)
            if found and found.diverged and self._is_all(found.inner_steps, found.swarm_tokens):
                logger.warning("%s. Nothing was done this time", divergence(found))
                summary = found
        return island.broadcast(summary)

    def _take_rank(self, step: int, ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Take up this rank's random numbers; where the data goes on is the same on all ranks.

        Any number of ranks goes on after the samples that were drawn by then: none is drawn twice or skipped.
        """
        if self._rank < len(ranks):
            set_rng_state(ranks[self._rank]["rng"])
        else:
            seed_rng(self._config.shared.seed, step, self._rank)
        if len(ranks) != self._world_size and self._rank == 0:
            train, facts = self._config.train, self._task.facts
            logger.warning(
                "inner step %d was saved by %d ranks and goes on with %d: the data goes on after the %ss "
                "trained by then, an inner step takes %d tokens now, and new ranks draw new random numbers",
                step,
                len(ranks),
                self._world_size,
                facts.sample,
                train.batch_size * train.grad_accumulation * facts.sample_tokens * self._world_size,
            )
        return dict(ranks[0]["loader"])

    def _steps(self, run: _Run) -> bool:
        """The inner steps; returns whether a signal ended them."""
        config, outer = self._config, run.outer
        losses: list[Tensor] = []
        norms: list[Tensor] = []
        since_s, since_tokens = self._clock.monotonic_s(), 0
        self._interrupts.can_wait = True
        while not self._is_over(outer):
            if run.island.any_rank(self._interrupts.asked):
                return True
            began_s, run.data_s = self._clock.monotonic_s(), 0.0
            tokens = run.loader.batch_tokens * run.micro_steps
            loss, norm = self._inner_step(run)
            losses.append(loss)
            norms.append(norm)
            run.journal.computed(self._clock.monotonic_s() - began_s, run.data_s)
            trained = run.loader.take_trained() if isinstance(run.loader, UnitLoader) else ()
            reports = outer.step(tokens, trained)
            since_tokens += tokens
            log_now = outer.inner_step % config.train.log_every == 0 or self._is_over(outer)
            save_now = self._checkpoint_due(outer, reports)
            if log_now or save_now or reports:
                self._check_finite(run, losses)
            if log_now:
                now_s = self._clock.monotonic_s()
                speed = since_tokens / max(1e-9, now_s - since_s)
                lr = run.island.optimizers[0].param_groups[0]["lr"]
                told, grad_norms = (torch.stack(found).tolist() for found in (losses, norms))
                loss_of_all = run.journal.train(told, lr=lr, grad_norms=grad_norms, tokens_per_s=speed)
                if loss_of_all is not None:
                    outer.show_loss(loss_of_all)
                losses, norms, since_s, since_tokens = [], [], now_s, 0
            self._after_rounds(run, reports)
            if save_now:
                self._save(run)
        return False

    def _inner_step(self, run: _Run) -> tuple[Tensor, Tensor]:
        """One optimizer step on `micro_steps` batches; see `inner_step`."""
        config, inner = self._config, self._config.shared.inner
        done, whole = run.outer.inner_step, config.train.steps
        if config.train.tokens:
            step_tokens = run.loader.batch_tokens * run.micro_steps
            done, whole = run.outer.swarm_tokens + step_tokens - 1, config.train.tokens
        set_lr(run.island.optimizers, build_lr_schedule(config).factor(done, whole))
        try:
            return inner_step(
                run.island,
                self._task,
                partial(self._next_batch, run),
                micro_steps=run.micro_steps,
                clip_norm=inner.clip_norm,
                autocast=autocast(config, self._device),
            )
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise out_of_memory(self._asked, config, self._task.facts, self._device, error) from error
            raise

    def _next_batch(self, run: _Run) -> Batch:
        """The next batch; how long that took is added up."""
        began_s = self._clock.monotonic_s()
        batch = run.loader.next_batch()
        run.data_s += self._clock.monotonic_s() - began_s
        return batch

    def _check_finite(self, run: _Run, losses: list[Tensor]) -> None:
        """Before anything is logged or saved: no NaN in the losses, nor in the parameters of any rank."""
        finite = all(math.isfinite(loss) for loss in torch.stack(losses).tolist()) if losses else True
        finite = finite and run.island.is_finite()
        if run.island.any_rank(not finite):
            raise LossError(
                f"the training loss or a parameter is not finite at or before inner step "
                f"{run.outer.inner_step}; this island stops, and its checkpoints are as they were. "
                "Lower shared.inner.lr or look at the data, then start again to resume"
            )

    def _after_rounds(self, run: _Run, reports: tuple[RoundReport, ...]) -> None:
        every = self._config.train.eval_every
        for report in reports:
            run.journal.round(report)
            if report.committed and report.fragment == 0:
                islands = len(report.participants)
                run.micro_steps = micro_steps(self._config, run.loader.batch_tokens, islands)
        if every and any(r.committed and r.fragment == 0 and r.outer_step % every == 0 for r in reports):
            self._evaluate(run)

    def _evaluate(self, run: _Run) -> None:
        """The anchor on what is held out, once for each anchor; the same samples on every island."""
        if run.journal.is_evaluated():
            return
        train = self._config.train
        size = min(EVAL_BATCH, train.batch_size) if train.micro_batch == "auto" else EVAL_BATCH
        batches = iter(run.data.evaluation(train.eval_windows, size))
        if (first := next(batches, None)) is None:
            return
        with run.outer.anchor_weights():
            batches = itertools.chain([first], batches)
            found = evaluate(self._task, run.island.bare_model, batches, self._device, run.island)
        run.journal.evaluated(found)

    # -- saving and telling --------------------------------------------------------------------------

    def _is_over(self, outer: OuterLoop) -> bool:
        """Whether all has been trained: by the count of steps, or by the ledger's tokens."""
        return self._is_all(outer.inner_step, outer.swarm_committed)

    def _is_all(self, inner_steps: int, swarm_tokens: int) -> bool:
        train = self._config.train
        return swarm_tokens >= train.tokens if train.tokens else inner_steps >= train.steps

    def _checkpoint_due(self, outer: OuterLoop, reports: tuple[RoundReport, ...]) -> bool:
        """Checkpoints fall on the same places on all islands, so that all have the same ones."""
        every, schedule = self._config.train.checkpoint_every, self._config.shared.schedule
        if every == 0:
            return False
        if schedule.mode == "fixed":
            return outer.inner_step % (every * schedule.inner_steps) == 0
        return any(r.committed and r.fragment == 0 and r.outer_step % every == 0 for r in reports)

    def _save(self, run: _Run) -> None:
        """Write a checkpoint; a full disk is said and survived, the older checkpoints stay."""
        parts: dict[str, Any] = {
            "island": run.island.state_dict(frozen=False),  # it is compared, by its digest, with what is made
            "outer": run.outer.state_dict(fragments=False),
            "counts": asdict(run.journal.counts()),
            "ranks": run.island.gather({"loader": run.loader.state_dict(), "rng": rng_state()}),
        }
        self._saved_step = run.outer.swarm_step
        if not run.outer.is_lead:
            return
        for index in range(run.outer.num_fragments):
            parts[fragment_part(index)] = partial(run.outer.fragment_state, index)
        try:
            run.saver.save(run.outer.swarm_step, parts)
        except StorageError as error:
            logger.error("no checkpoint: %s; training goes on", error)

    def _saved(self, run: _Run) -> None:
        """Wait for the last checkpoint."""
        try:
            run.saver.wait()
        except StorageError as error:
            logger.error("no checkpoint: %s", error)

    def _tell_address(self, folder: RunFolder, address: str) -> None:
        folder.write("address", f"{address}\n")
        if self._config.metrics.console != "off":
            print(f"other islands join with: {address}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class _Run:
    """What one call of `fit` works on.

    Attributes:
        micro_steps: batches of an inner step.
        data_s: for how long the inner step has waited for its batches.
    """

    island: Island
    outer: OuterLoop
    loader: Batches
    saver: Saver
    data: Data
    journal: Journal
    micro_steps: int
    data_s: float = 0.0
