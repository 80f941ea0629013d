"""Weights & Biases: the one module that imports wandb, in a thread of its own.

All runs of a swarm form one group, named by the run id, with one run per island. Everything that
wandb does (import, connect, log, upload) happens in a worker thread behind a bounded queue, so
that neither a slow nor an unreachable server holds up the training; where the server can't be
reached, the run is recorded offline in the run folder, for `wandb sync`. It never asks a question:
its silent mode refuses to prompt.
"""

from __future__ import annotations

import configparser
import logging
import netrc
import os
import queue
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lowcomm.config.schema import MetricsConfig
from lowcomm.metrics.base import Record
from lowcomm.metrics.charts import charted
from lowcomm.types import Json

QUEUE_RECORDS = 10_000
INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 20.0
Mode = Literal["online", "offline", "off"]
MODES: Mapping[str, Mode] = {
    "online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline",
    "disabled": "off",
}  # fmt: skip
"""Values of WANDB_MODE, old ones among them."""
YES = {"1", "true", "t", "yes", "y", "on"}

KEY_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")

logger = logging.getLogger(__name__)


class WandbSink:
    """Sends the records of one island to wandb.

    Args:
        settings: project, entity and mode.
        run_dir: the run folder; wandb's files go into its `wandb` folder.
        run_id: names the group.
        name: names the island in it.
        config: the resolved configuration, stored with the run.
        recipe: the configuration as TOML, stored as a file of the run.

    `log` raises RuntimeError with the reason once the worker has failed, or when the queue is full
    because wandb takes nothing more.
    """

    def __init__(
        self,
        settings: MetricsConfig,
        run_dir: Path,
        run_id: str,
        name: str,
        config: Mapping[str, Json],
        recipe: str,
    ) -> None:
        self._settings = settings
        self._run_dir, self._run_id, self._name = run_dir, run_id, name
        self._config, self._recipe = config, recipe
        self._queue: queue.Queue[dict[str, Json] | None] = queue.Queue(QUEUE_RECORDS)
        self._failure: BaseException | None = None
        self._worker = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._worker.start()

    def log(self, record: Record) -> None:
        if self._failure is not None:
            raise RuntimeError(f"{type(self._failure).__name__}: {self._failure}") from self._failure
        values = charted(record)
        if values:
            try:
                self._queue.put_nowait(values)
            except queue.Full:
                raise RuntimeError(f"it has taken none of the last {QUEUE_RECORDS} records") from None

    def close(self) -> None:
        """Upload what is pending, for `INIT_TIMEOUT_S + FINISH_TIMEOUT_S` at most."""
        if self._worker.is_alive():
            try:
                self._queue.put(None, timeout=FINISH_TIMEOUT_S)
            except queue.Full:
                raise RuntimeError(f"it has taken none of the last {QUEUE_RECORDS} records") from None
        self._worker.join(INIT_TIMEOUT_S + FINISH_TIMEOUT_S)
        if self._worker.is_alive():
            raise RuntimeError(
                f"still busy at the deadline; upload later: wandb sync {self._run_dir}/wandb/*run-*"
            )
        if self._failure is not None:
            raise RuntimeError(f"{type(self._failure).__name__}: {self._failure}") from self._failure

    def _work(self) -> None:
        try:
            run = self._open()
            while (values := self._queue.get()) is not None:
                run.log(values)
            run.finish()
        except Exception as error:  # the boundary of the thread: `log` and `close` raise it again
            self._failure = error

    def _open(self) -> Any:
        mode = choose_mode(self._settings.wandb, os.environ)
        if mode == "online":
            try:
                return self._init("online", _wandb_id(self._run_dir))
            except Exception as error:  # whatever the server or the network does, the record is kept
                logger.warning(
                    "wandb can't be reached (%s); recording offline; later: wandb sync %s/wandb/*run-*",
                    str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__,
                    self._run_dir,
                )
            # the failed attempt still holds its id inside wandb's service process
            return self._init("offline", _wandb_id(self._run_dir, renew=True))
        return self._init("offline", _wandb_id(self._run_dir))

    def _init(self, mode: Literal["online", "offline"], identity: str) -> Any:
        os.environ["WANDB_SILENT"] = "true"  # read at import, and the only switch that rules out a prompt
        import wandb

        wanted = {
            "silent": True,
            "console": "off",
            "init_timeout": INIT_TIMEOUT_S,
            "login_timeout": INIT_TIMEOUT_S,
            "finish_timeout": FINISH_TIMEOUT_S,
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        run = wandb.init(
            project=self._settings.wandb_project,
            entity=self._settings.wandb_entity or None,
            dir=str(self._run_dir),
            id=identity,
            resume="allow",  # offline, too: else `wandb sync` puts each session over the one before it
            group=self._run_id,
            name=self._name,
            job_type="island",
            config=dict(self._config),
            save_code=False,
            reinit="create_new",
            mode=mode,
            settings=wandb.Settings(**known),
        )
        run.define_metric("inner_step", hidden=True)
        run.define_metric("island/*", step_metric="inner_step")
        run.define_metric("swarm/*", step_metric="inner_step")
        recipe = Path(run.dir) / "recipe.toml"
        recipe.write_text(self._recipe, encoding="utf-8")
        run.save(str(recipe), base_path=str(run.dir), policy="now")
        return run


def choose_mode(setting: str, environment: Mapping[str, str]) -> Mode:
    """Whether and how `metrics.wandb` = auto, online, offline or off records.

    Who has switched wandb off (WANDB_MODE=disabled, WANDB_DISABLED=true, `wandb disabled`) is recorded
    nowhere, whatever a recipe says. Else the recipe's online or offline counts. auto follows WANDB_MODE and
    `wandb offline`; without them it is online if an API key is configured, in the environment or in the netrc
    file that `wandb login` writes.
    """
    asked = environment.get("WANDB_MODE", "").strip().lower() or _stored_mode(environment)
    if setting == "off" or asked == "disabled" or _is_yes(environment.get("WANDB_DISABLED", "")):
        return "off"
    if setting in ("online", "offline"):
        return MODES[setting]
    if asked:
        return MODES.get(asked, "offline")
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return "online"
    hosts = {*KEY_HOSTS, urlsplit(environment.get("WANDB_BASE_URL", "")).netloc} - {""}
    return "online" if _netrc_hosts(environment) & hosts else "offline"


def _is_yes(text: str) -> bool:
    return text.strip().lower() in YES


def _stored_mode(environment: Mapping[str, str]) -> str:
    """What `wandb disabled`, `wandb offline` and `wandb online` have left: here, or for this user."""
    home = Path(environment.get("HOME", "~")).expanduser()
    user = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb") / "settings"
    here = Path(environment.get("WANDB_DIR") or ".") / "wandb" / "settings"
    stored = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        stored.read([user, here], encoding="utf-8")
    except (OSError, ValueError, configparser.Error):  # wandb says more of it, if it is used
        return ""
    mode = stored.get("default", "mode", fallback="").strip().lower()
    return mode or ("disabled" if _is_yes(stored.get("default", "disabled", fallback="")) else "")


def _netrc_hosts(environment: Mapping[str, str]) -> set[str]:
    path = environment.get("NETRC") or str(Path(environment.get("HOME", "~")).expanduser() / ".netrc")
    try:
        return set(netrc.netrc(path).hosts)
    except (OSError, netrc.NetrcParseError):
        return set()


def _wandb_id(run_dir: Path, *, renew: bool = False) -> str:
    """The run's name at wandb, kept in the run folder so that a resumed island goes on in it."""
    path = run_dir / "wandb" / "id.txt"
    if path.exists() and not renew:
        stored = path.read_text(encoding="ascii").strip()
        if stored:
            return stored
    identity = secrets.token_hex(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(identity + "\n", encoding="ascii")
    return identity
