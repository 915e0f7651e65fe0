"""CSV and TensorBoard; and what every tracker can do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from kif_lightning.errors import UserError
from kif_lightning.reporting.console import markdown_table
from kif_lightning.storage import flat
from kif_lightning.tracking.identity import RunIdentity
from kif_lightning.tracking.keys import AXES, FINAL, MATRIX
from kif_lightning.tracking.tables import Table


class Tracker(Protocol):
    """One place that a run is told to; the first rank alone calls its methods."""

    shows_images: bool
    """Whether figures are worth drawing for it."""

    @property
    def logger(self) -> Logger:
        """What Lightning's trainers log to."""

    def start(self) -> None:
        """Open it.

        Raises:
            UserError: it cannot be had.
        """

    def describe(self, settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
        """The run's settings and protocol stamp, before its first task."""

    def log(self, metrics: Mapping[str, float], *, task: int, step: int) -> None:
        """Numbers after a task, which is counted from 1; ``step``: the run's optimizer steps."""

    def table(self, key: str, table: Table, *, task: int, step: int) -> None:
        """A table after a task."""

    def image(self, key: str, pixels: np.ndarray, caption: str) -> None:
        """A figure of the finished run: (height, width, 3) bytes."""

    def finish(self, results: Mapping[str, Any], adapter: Path | None) -> None:
        """The finished run: its ``results.json``, and the folder of its weights if saved."""

    def close(self, status: str, exit_status: int) -> None:
        """The end, however it came: ``success``, ``failed`` or ``interrupted``."""


class CsvTracker:
    """Settings in ``hparams.yaml``, numbers in ``metrics.csv``; the rest lies in the run's folder.

    Args:
        name: the folder of these files, in the run's.
        identity: the run.
    """

    shows_images = False

    def __init__(
        self, *, name: str, identity: RunIdentity, say: Callable[[str], None] | None = None
    ) -> None:
        self.identity = identity
        self.logger = CSVLogger(str(identity.folder), name=name)

    def start(self) -> None:
        """Nothing: the first line opens the file."""

    def describe(self, settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
        """Into ``hparams.yaml``."""
        stand_ins = list(self.identity.stand_ins)
        self.logger.log_hyperparams(
            {"stand_ins": stand_ins, "settings": dict(settings), "protocol": dict(protocol)}
        )

    def log(self, metrics: Mapping[str, float], *, task: int, step: int) -> None:
        """A line, told from those of training by its ``task``."""
        axes = dict(zip(AXES, (step, task), strict=True))
        self.logger.log_metrics({**metrics, **axes}, step=step)

    def table(self, key: str, table: Table, *, task: int, step: int) -> None:
        """Not here: ``results.json`` and ``importance/`` hold them."""

    def image(self, key: str, pixels: np.ndarray, caption: str) -> None:
        """Not here."""

    def finish(self, results: Mapping[str, Any], adapter: Path | None) -> None:
        """Not here: ``results.json``."""

    def close(self, status: str, exit_status: int) -> None:
        """Write what is left."""
        self.logger.finalize(status)


class _OnSteps(TensorBoardLogger):
    """TensorBoard has an axis for the step: curves of the axes themselves would say nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        numbers = {name: value for name, value in metrics.items() if name not in AXES}
        super().log_metrics(numbers, step)


class TensorBoardTracker:
    """Scalars (of training over optimizer steps, the others over tasks), figures, settings.

    Args:
        name: the folder of the event files, in the run's; a resumed run goes on in it.
        identity: the run.
    """

    shows_images = True

    def __init__(
        self, *, name: str, identity: RunIdentity, say: Callable[[str], None] | None = None
    ) -> None:
        self.identity = identity
        folder = str(identity.folder)
        try:
            self.logger = _OnSteps(folder, name=name, version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard: "
                "pip install 'kif-lightning[tensorboard]'."
            ) from error
        settings = {name: _plain(value) for name, value in flat(dict(identity.settings)).items()}
        self.logger.hparams = self.settings = settings
        self.metrics: dict[str, float] = {}

    @property
    def writer(self) -> Any:
        """A ``SummaryWriter``."""
        return self.logger.experiment

    def start(self) -> None:
        """Nothing: the first number opens the file."""

    def describe(self, settings: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
        """As text; a run on what only stands for something real says so first."""
        if self.identity.stand_ins:
            self.writer.add_text("stand_ins", f"On {' and '.join(self.identity.stand_ins)}.")
        self.writer.add_text("protocol", f"```\n{json.dumps(protocol, indent=1)}\n```")

    def log(self, metrics: Mapping[str, float], *, task: int, step: int) -> None:
        """Over tasks."""
        self.logger.log_metrics(dict(metrics), step=task)

    def table(self, key: str, table: Table, *, task: int, step: int) -> None:
        """The score matrix as text; units are too many to be read here."""
        if key == MATRIX:
            rows = [[_cell(value) for value in row] for row in table.rows]
            self.writer.add_text(key, markdown_table(table.columns, rows), task)

    def image(self, key: str, pixels: np.ndarray, caption: str) -> None:
        """Under its key."""
        self.writer.add_image(key, pixels, dataformats="HWC")

    def finish(self, results: Mapping[str, Any], adapter: Path | None) -> None:
        """Keep the metrics for the end."""
        self.metrics = {f"{FINAL}{name}": value for name, value in results["metrics"].items()}

    def close(self, status: str, exit_status: int) -> None:
        """Settings beside final metrics: TensorBoard takes both but once, so they come last."""
        # Without any metric Lightning would leave out the settings, too.
        metrics = {**self.metrics, f"{FINAL}complete": float(status == "success")}
        self.logger.log_hyperparams({**self.settings, "status": status}, metrics)
        self.logger.finalize(status)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
