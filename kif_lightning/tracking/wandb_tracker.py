"""Weights & Biases: online where there is a key, else a folder to send later."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from uuid import uuid4

import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger

from kif_lightning import ranks
from kif_lightning.errors import UserError
from kif_lightning.reporting.console import stand_in_parts
from kif_lightning.storage import read_json, write_json
from kif_lightning.tracking.identity import RunIdentity
from kif_lightning.tracking.keys import FINAL, ON_STEPS, ON_TASKS, STEP, TASK
from kif_lightning.tracking.tables import Table

KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
CLOUD = {"api.wandb.ai", "api.forge.coreweave.com"}
"""Hosts of wandb's own server."""
LONGEST, LONGEST_TAG = 128, 64
"""Letters that wandb takes of names and tags."""


class WandbTracker:
    """A wandb run, the same at every start of this one.

    Args:
        project: where it stands.
        entity: whose; None: the key's own.
        group: None: experiment / benchmark / order, so that runs to compare stand together.
        name: None: method, order, seed.
        offline: None: unless there is a key.
        log_adapter: send the learnt weights at the end, if the run saves them.
        identity: the run.
        say: says one sentence to the user.
    """

    shows_images = True

    def __init__(
        self,
        *,
        project: str,
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        offline: bool | None = None,
        log_adapter: bool = True,
        identity: RunIdentity,
        say: Callable[[str], None],
    ) -> None:
        self.identity = identity
        self.log_adapter = log_adapter
        self.say = say
        self.forced_online = offline is False
        self.mode = _mode(offline)
        self.id = _run_id(identity.folder)
        self.titles: dict[str, str] = {}
        self.project, self.entity = project, entity
        self.group, self.name = group or identity.group, name or identity.name
        self.logger = WandbLogger(project=project, save_dir=str(identity.folder), id=self.id)

    @property
    def run(self) -> Any:
        """The ``wandb.Run``."""
        return self.logger.experiment

    def start(self) -> None:
        """Open the run and say where it can be seen."""
        if self.forced_online and self.mode == "online" and not has_key():
            raise UserError(
                "logger.wandb.offline=false needs a key, but there is none for this server: run "
                "wandb login, set WANDB_API_KEY, or leave logger.wandb.offline out."
            )
        run = self._open()
        # Lightning's own start of a run would set an axis of its own for everything.
        self.logger = WandbLogger(experiment=run, save_dir=str(self.identity.folder))
        for axis, names in ((STEP, ON_STEPS), (TASK, ON_TASKS)):
            # A fresh Trainer a task restarts Lightning's step: curves get an axis of their own.
            run.define_metric(axis)
            for name in names:
                run.define_metric(name, step_metric=axis)
        if self.mode == "online":
            self.say(f"wandb: {run.url}")
        elif self.mode == "offline":
            why = "" if has_key() else "no key is there, so "
            folder = self.identity.folder / "wandb"
            self.say(
                f"wandb: {why}the run stays in {folder} (to send what all its starts left: "
                f"wandb sync {folder}/offline-run-*)."
            )

    def _open(self) -> Any:
        identity = self.identity
        try:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                group=self.group[:LONGEST],
                name=self.name[:LONGEST],
                job_type=identity.method[:LONGEST],
                tags=[tag[:LONGEST_TAG] for tag in identity.tags],
                notes=_notes(identity.stand_ins),
                dir=str(identity.folder),
                id=self.id,
                mode=self.mode,
                resume=None if self.mode == "offline" else "allow",
                settings=wandb.Settings(silent=self.mode == "offline", login_timeout=30),
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb could not start a run ({error}): logger.wandb.offline=true keeps it on "
                "this disk."
            ) from error

    def describe(self, settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
        """Settings at the top, for sweeps to filter by; the stamp is ``protocol``."""
        stand_ins = list(self.identity.stand_ins)
        self.logger.log_hyperparams(
            {**settings, "protocol": dict(protocol), "stand_ins": stand_ins}
        )

    def log(self, metrics: Mapping[str, float], *, task: int, step: int) -> None:
        """Over tasks."""
        self.run.log({**metrics, TASK: task, STEP: step})

    def table(self, key: str, table: Table, *, task: int, step: int) -> None:
        """Under its key; what the rows are is said in the config."""
        found = wandb.Table(columns=[*table.columns], data=table.rows, allow_mixed_types=True)
        self.titles[key] = table.title
        self.run.config.update({"tables": dict(self.titles)}, allow_val_change=True)
        self.run.log({key: found, TASK: task, STEP: step})

    def image(self, key: str, pixels: np.ndarray, caption: str) -> None:
        """Under its key."""
        self.run.log({key: wandb.Image(pixels, caption=caption)})

    def finish(self, results: Mapping[str, Any], adapter: Path | None) -> None:
        """Final metrics and cost into the summary, the weights as an artifact."""
        metrics = {f"{FINAL}{name}": value for name, value in results["metrics"].items()}
        self.run.summary.update({**metrics, "final_cost": results["cost"]})
        if adapter is None or not self.log_adapter:
            return
        stamp = {key: results[key] for key in ("metrics", "protocol", "stand_ins")}
        artifact = wandb.Artifact(f"adapter-{self.id}", type="model", metadata=stamp)
        # The files lie in the run's folder already: no copies, but names that hold from anywhere.
        artifact.add_dir(str(adapter.resolve()), skip_cache=True, policy="immutable")
        self.run.log_artifact(artifact, aliases=["final"])

    def close(self, status: str, exit_status: int) -> None:
        """End the run; wandb goes on with an open one, but a sweep's next cell needs its own."""
        self.run.summary["status"] = status
        self.run.finish(exit_code=exit_status)


def _notes(stand_ins: Sequence[str]) -> str:
    if not stand_ins:
        return ""
    no_more = ": shows that the method runs, no more" if stand_in_parts(stand_ins) else ""
    return f"On {' and '.join(stand_ins)}{no_more}."


def has_key() -> bool:
    """Whether a key for wandb's server is there, in the environment or from ``wandb login``."""
    if any(os.environ.get(name) for name in KEYS):
        return True
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    hosts = {urlsplit(wandb.setup().settings.base_url).netloc}
    if not hosts.isdisjoint(CLOUD):
        hosts |= CLOUD  # its host has changed between versions: an old login still holds
    try:
        return not hosts.isdisjoint(netrc(str(file)).hosts)
    except (OSError, NetrcParseError):
        return False


def _mode(offline: bool | None) -> Literal["online", "offline", "disabled"]:
    if offline is not None:
        return "offline" if offline else "online"
    told = os.environ.get("WANDB_MODE")
    if told == "disabled":
        return "disabled"
    # Told to be online without a key, wandb would ask for one.
    return "online" if has_key() and told not in ("offline", "dryrun") else "offline"


def _run_id(folder: Path) -> str:
    """The same for every start of a run: its curves go on where they were cut."""
    path = folder / "state" / "logger.json"
    found = uuid4().hex[:12]
    with suppress(UserError, KeyError, TypeError):  # a new run, or a file of no other use
        found = read_json(path)["id"]
    found = ranks.from_first(found)
    ranks.on_first(lambda: write_json(path, {"id": found}))
    return found
