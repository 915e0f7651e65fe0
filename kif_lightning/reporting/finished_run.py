"""A finished run as data frames: what its folder holds, for notebooks and own analyses.

Every number keeps its stamp: long tables have a column ``stand_ins``, the score matrix names them
in its corner, and all frames carry them in ``attrs["stand_ins"]``.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from kif_lightning.errors import UserError, nearest_names, require_choice
from kif_lightning.metrics.transfer import best_by_task
from kif_lightning.reporting.console import not_evaluated, stamped
from kif_lightning.reporting.figures import RUN_FIGURES
from kif_lightning.reporting.figures.style import styled
from kif_lightning.reporting.run_record import Boundary, RunRecord, read_run
from kif_lightning.reporting.run_report import save_report

UNIT_COLUMNS = ("score", "current", "accumulated", "previous", "weight", "classes")
"""Of an importance file, one entry a unit; fusion's are absent after the first task."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class FinishedRun:
    """A run that has ended, read from its folder; nothing in it is changed but by :meth:`report`.

    A task is named by its name or by its number in the order of learning, from 1.
    """

    record: RunRecord

    @classmethod
    def open(cls, folder: str | Path) -> FinishedRun:
        """Read a run's folder.

        Raises:
            UserError: there is no run, it has not ended, or a file is damaged.
        """
        return cls(record=read_run(Path(folder)))

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.record.folder

    @property
    def results(self) -> Mapping[str, Any]:
        """The content of results.json: protocol, matrix, phases, cost, software."""
        return self.record.results

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """What only stands for something real in its numbers; say so beside them."""
        return tuple(self.record.stand_ins)

    @property
    def metrics(self) -> dict[str, float]:
        """Transfer metrics by name, in percent or points; those that do not apply are absent."""
        return dict(self.results["metrics"])

    def score_matrix(self) -> pd.DataFrame:
        """Percent on each task (columns) after each phase of learning (rows); NaN: not measured."""
        record = self.record
        frame = pd.DataFrame(
            record.matrix,
            # Shown, it is the columns' name that is whole; in a file there is the index's alone.
            index=pd.Index(record.phases, name=stamped("after", self.stand_ins)),
            columns=pd.Index(record.tasks, name=stamped("percent", self.stand_ins)),
            dtype="float64",
        )
        frame.attrs["stand_ins"] = self.stand_ins
        return frame

    def scores(self) -> pd.DataFrame:
        """The same, a score a row: after, task, score (percent); those not measured are absent."""
        rows = (
            {"after": phase, "task": task, "score": score}
            for phase, row in zip(self.record.phases, self.record.matrix, strict=True)
            for task, score in zip(self.record.tasks, row, strict=True)
            if score is not None
        )
        return self._frame(rows, ["after", "task", "score"])

    def tasks(self) -> pd.DataFrame:
        """A row a task: what it is, its score when just learnt, before at best, and at the end.

        In percent; NaN where not measured. Of tasks learnt at once only the end is known; the last
        task has no best before it.
        """
        matrix = self.record.matrix
        one_by_one = len(matrix) == len(self.record.tasks)
        bests = [*best_by_task(matrix), None] if one_by_one else [None] * len(self.record.tasks)
        return self._frame(
            {
                **{key: value for key, value in about.items() if not isinstance(value, dict)},
                "just_learnt": matrix[place][place] if one_by_one else None,
                "best_before_the_last": bests[place],
                "at_the_end": matrix[-1][place],
            }
            for place, about in enumerate(self.results["tasks"])
        )

    def predictions(self, *, after: str | int, on: str | int) -> pd.DataFrame:
        """Answers to a task's test rows: id, prompt, prediction, reference, score (percent).

        Args:
            after: the phase of learning they were given after.
            on: the task asked.

        Raises:
            UserError: no such task, or it was not evaluated then.
        """
        phase = _place("after", after, self.record.phases)
        task = _place("on", on, self.record.tasks)
        answers = self.record.predictions(phase, task)
        if not answers:
            scored = self.record.matrix[phase][task] is not None
            why = (
                "they are not in this folder, but in that of the run that learnt "
                f"{self.record.phases[phase]}"
                if scored
                else "it was not evaluated then (evaluation.matrix says what is)"
            )
            raise UserError(
                f"There are no answers to {self.record.tasks[task]} after "
                f"{self.record.phases[phase]}: {why}."
            )
        prompts = self.record.inputs(task)
        keys = ("prediction", "reference", "score")
        return self._frame(
            {"id": row["id"], "prompt": prompts.get(row["id"]), **{key: row[key] for key in keys}}
            for row in answers
        )

    def units(self, *, after: str | int | None = None) -> pd.DataFrame:
        """Importance and fusion, a row for each skill unit at each task boundary.

        Columns: after (task), unit; score (as measured); current, accumulated and previous (min-max
        to 0..1: of this task, of all so far, of those before); weight (1 keeps the unit as it was
        before the task, 0 takes what the task made of it); classes. NaN in the last three after the
        first task, which has nothing to be fused with.

        Args:
            after: one boundary alone; None: all.

        Raises:
            UserError: no such boundary, or the method identifies nothing.
        """
        boundaries: Sequence[Boundary] = self.record.boundaries
        if not boundaries:
            raise UserError(
                f"Method {self._method} measures no importance of skill units: run one that does, "
                "as method=kif."
            )
        if after is not None:
            place = _place("after", after, self.record.phases)
            boundaries = [one for one in boundaries if one["number"] == place + 1]
            if not boundaries:
                raise UserError(
                    f"{self.record.phases[place]} was learnt in a run before this one: its "
                    "importance is in that run's folder."
                )
        return self._frame(
            {
                "after": boundary["task"],
                "unit": unit,
                **{key: boundary[key][place] if key in boundary else None for key in UNIT_COLUMNS},
            }
            for boundary in boundaries
            for place, unit in enumerate(boundary["unit_ids"])
        )

    def losses(self) -> pd.DataFrame:
        """Training loss of each optimizer step: task, step (from 1 over the whole run), loss."""
        rows = (
            {"task": curve["task"], "step": curve["first_step"] + place, "loss": loss}
            for curve in self.record.curves
            for place, loss in enumerate(curve["loss"])
        )
        return self._frame(rows, ["task", "step", "loss"])

    def figure(self, name: str) -> Figure:
        """One of the report's figures.

        Raises:
            UserError: there is no such figure, or the run has nothing to show in it.
        """
        known = {figure.name: figure for figure in RUN_FIGURES}
        require_choice("The figure's name", name, known)
        with styled():
            drawn = known[name].draw(self.record)
        if drawn is None:
            raise UserError(f"The run has nothing to show in the figure {name}: choose another.")
        return drawn

    def report(self) -> Path:
        """Write the run's report.html into its folder; returns its path.

        Raises:
            UserError: the folder cannot be written.
        """
        return save_report(self.record)

    @cached_property
    def _method(self) -> str:
        return str(self.results["protocol"].get("method"))

    def _frame(
        self, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """With the stamp; ``columns``: those there are even without rows."""
        frame = pd.DataFrame(list(rows), columns=columns)
        frame["stand_ins"] = ", ".join(self.stand_ins)
        frame.attrs["stand_ins"] = self.stand_ins
        return frame

    def _title(self) -> str:
        benchmark = self.results["protocol"].get("benchmark", "unknown data")
        text = f"{self._method} on {benchmark}, {len(self.record.tasks)} tasks"
        return stamped(text, self.stand_ins)

    def _told(self) -> str:
        """The metrics, or why there are none."""
        metrics = [f"{name} {value:.1f}" for name, value in self.metrics.items()]
        return ", ".join(metrics) or not_evaluated(self.results)

    def __repr__(self) -> str:
        return f"<Run: {self._title()}; {self._told()}; {self.folder}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.1f}</td></tr>"
            for name, value in self.metrics.items()
        )
        return (
            f"<b>{html.escape(self._title())}</b><table>{rows}</table>"
            f"{html.escape(not_evaluated(self.results))}<br>"
            f"<code>{html.escape(str(self.folder))}</code>"
        )


def _place(what: str, given: str | int, names: Sequence[str]) -> int:
    """Place from 0 of a task named by its name or its number from 1."""
    if given in names:
        return list(names).index(str(given))
    if str(given).isdecimal() and 1 <= int(given) <= len(names):
        return int(given) - 1
    raise UserError(
        f"{what} must be the name of a task or its number (1 to {len(names)}), got {given!r}: "
        f"{nearest_names(str(given), names)}."
    )
