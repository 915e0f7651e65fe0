"""What the runner calls: a run told to its trackers as it goes."""

from __future__ import annotations

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
from kif_lightning.reporting.run_record import read_run
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
                        opened.callback(lambda t: t.close(ended, exit_status), tracker)
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
        """All that the complete run left in its folder."""
        self._on_first(self._tell_end)

    def _tell_end(self) -> None:
        # Within, as runs without a tracker need no matplotlib.
        from kif_lightning.tracking.pictures import pictures

        record = read_run(self.identity.folder)
        adapter = record.folder / "adapter"
        for tracker in self.trackers:
            tracker.finish(record.results, adapter if adapter.is_dir() else None)
        for key, pixels, caption in pictures(record):
            for tracker in self.trackers:
                tracker.image(key, pixels, caption)

    def _on_first(self, tell: Callable[[], None]) -> None:
        """The first rank tells; if it cannot, all fail rather than wait for it."""
        if self.trackers:
            ranks.on_first(tell)


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
