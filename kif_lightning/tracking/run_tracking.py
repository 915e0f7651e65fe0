"""What the runner calls: a run told to its trackers as it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from kif_lightning import ranks
from kif_lightning.interruption import EXIT_STATUS, Interrupted
from kif_lightning.reporting.console import MOST_COLUMNS
from kif_lightning.reporting.run_record import RunRecord, read_run
from kif_lightning.run_state import RunState
from kif_lightning.storage import read_json
from kif_lightning.tracking import tables
from kif_lightning.tracking.identity import RunIdentity
from kif_lightning.tracking.keys import IMPORTANCE, MATRIX
from kif_lightning.tracking.tables import Table
from kif_lightning.tracking.trackers import Tracker

KEYBOARD = 130
"""The exit status of Ctrl-C, as shells know it."""


class RunTracking:
    """A run's trackers; without any it does nothing.

    Args:
        identity: the run.
        new_trackers: make the trackers, once the ranks know each other.
    """

    def __init__(
        self,
        *,
        identity: RunIdentity | None = None,
        new_trackers: Sequence[Callable[..., Tracker]] = (),
    ) -> None:
        self.identity = identity or RunIdentity(folder=Path(), settings={})
        self.new_trackers = new_trackers
        self.trackers: list[Tracker] = []

    @property
    def loggers(self) -> list[Logger]:
        """For Lightning's trainers."""
        return [tracker.logger for tracker in self.trackers]

    @contextmanager
    def running(self, stand_ins: Sequence[str]) -> Iterator[None]:
        """Open the trackers, and close them with how the run ended.

        Raises:
            UserError: a tracker cannot be had.
        """
        identity = replace(self.identity, stand_ins=tuple(stand_ins))
        self.trackers = [new(identity=identity) for new in self.new_trackers]
        ended, exit_status = "failed", 1
        with ExitStack() as opened:
            try:
                for tracker in self.trackers:
                    ranks.on_first(tracker.start)
                    if ranks.is_first():
                        opened.callback(lambda t: _close(t, ended, exit_status), tracker)
                yield
                ended, exit_status = "success", 0
            except Interrupted:
                ended, exit_status = "interrupted", EXIT_STATUS
                raise
            except KeyboardInterrupt:
                ended, exit_status = "interrupted", KEYBOARD
                raise

    def started(self, protocol: Callable[[], Mapping[str, Any]]) -> None:
        """Under which conditions its numbers arise."""
        self._on_first(lambda: self._describe(protocol()))

    def _describe(self, protocol: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.describe(self.identity.settings, protocol)

    def log(self, numbers: Mapping[str, float], *, task: int, step: int) -> None:
        """Numbers after so many tasks and optimizer steps."""

        def log() -> None:
            for tracker in self.trackers:
                tracker.log(numbers, task=task, step=step)

        self._on_first(log)

    def task_judged(self, state: RunState, tasks: Sequence[str], num_learnt: int) -> None:
        """What is known after the task that has just been evaluated.

        Args:
            state: of the run, the task's row being the score matrix's last.
            tasks: names of all T tasks.
            num_learnt: how many of them have been learnt.
        """
        self._on_first(lambda: self._tell_task(state, tasks, num_learnt))

    def _tell_task(self, state: RunState, tasks: Sequence[str], num_learnt: int) -> None:
        phase = len(state.score_matrix)
        numbers = {
            **tables.scores(tasks, state.score_matrix[-1]),
            **tables.transfer_so_far(state.score_matrix, num_learnt, state.untrained),
            **tables.probe_numbers(state.phases[-1].get("probe", {})),
            **tables.cost_so_far(state.phases),
        }
        found: dict[str, Table] = {}
        for name, boundary in self._boundaries(phase).items():
            numbers.update(tables.boundary_numbers(boundary))
            found[f"{IMPORTANCE}{name}"] = tables.importance_table(boundary)
        # Of many tasks the whole matrix after each were T^3 cells.
        if len(tasks) <= MOST_COLUMNS or phase == state.num_tasks:
            names = [record["name"] for record in state.phases]
            found[MATRIX] = tables.matrix_table(tasks, names, state.score_matrix)
        place = {"task": phase, "step": state.logged_steps}
        for tracker in self.trackers:
            tracker.log(numbers, **place)
            for key, table in found.items():
                tracker.table(key, table, **place)

    def _boundaries(self, phase: int) -> dict[str, Any]:
        folder = self.identity.folder / "importance"
        paths = sorted(folder.glob(f"{phase:02d}_*.json"))
        return {path.stem: read_json(path) for path in paths}

    def finished(self) -> None:
        """All that the complete run left in its folder; what cannot be told costs no run."""
        self._on_first(self._tell_end)

    def _tell_end(self) -> None:
        with _losing_only("the end of the run"):
            record = read_run(self.identity.folder)
            adapter = record.folder / "adapter"
            for tracker in self.trackers:
                with _losing_only(f"the final results ({_name(tracker)})"):
                    tracker.finish(record.results, adapter if adapter.is_dir() else None)
            showing = [tracker for tracker in self.trackers if tracker.shows_images]
            if showing:
                _show(record, showing)

    def _on_first(self, tell: Callable[[], None]) -> None:
        """The first rank tells; if it cannot, all fail rather than wait for it."""
        if self.trackers:
            ranks.on_first(tell)


def _show(record: RunRecord, showing: Sequence[Tracker]) -> None:
    # Within, as other runs need no matplotlib.
    from kif_lightning.tracking import pictures

    for figure in pictures.RUN_FIGURES:
        with _losing_only(f"the figure {figure.name}"):
            shown = pictures.picture(figure, record)
            if shown is None:
                continue
            for tracker in showing:
                with _losing_only(f"the figure {figure.name} ({_name(tracker)})"):
                    tracker.image(*shown)


def _close(tracker: Tracker, status: str, exit_status: int) -> None:
    """Whatever becomes of it, the run ends as it did."""
    with _losing_only(f"how the run ended, {status} ({_name(tracker)})"):
        tracker.close(status, exit_status)


@contextmanager
def _losing_only(what: str) -> Iterator[None]:
    """The run has ended, well or not, and its folder has what it left: only warn of a failure."""
    try:
        yield
    except Exception as error:
        logging.getLogger(__name__).warning(
            "Not told to the run's loggers: %s (%s: %s).", what, type(error).__name__, error
        )


def _name(tracker: Tracker) -> str:
    return type(tracker).__name__


def new_tracking(
    loggers: DictConfig, settings: Mapping[str, Any], folder: Path, say: Callable[[str], None]
) -> RunTracking:
    """The tracking of a config's ``logger`` group; nothing is opened yet.

    Args:
        loggers: name -> the tracker's settings.
        settings: the run's, resolved.
        folder: the run's.
        say: says one sentence to the user.
    """
    return RunTracking(
        identity=RunIdentity(folder=folder, settings=settings),
        new_trackers=[partial(instantiate(node), say=say) for node in loggers.values()],
    )
