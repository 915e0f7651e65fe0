"""Figures of runs, drawn from what they left in their folders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from kif_lightning.errors import require_choice
from kif_lightning.reporting.console import stand_in_parts
from kif_lightning.reporting.figures import fusion_audit, probe, scores, training
from kif_lightning.reporting.figures.style import FORMATS, save, say_stand_ins, styled
from kif_lightning.reporting.run_record import RunRecord

Draw = Callable[[RunRecord], Figure | None]


@dataclass(frozen=True, kw_only=True)
class RunFigure:
    """One figure of a run.

    ``draw`` gives None where the run has nothing of the kind; it is called within
    :func:`~kif_lightning.reporting.figures.style.styled`.
    """

    name: str
    """Of its files."""
    title: str
    caption: str
    """How to read it, in a sentence or two."""
    draw: Draw
    of_rows: bool = True
    """Whether it shows what became of the rows that were scored: held-out ones are told then."""

    def stand_ins(self, record: RunRecord) -> Sequence[str]:
        """What only stands for something real in it."""
        return record.stand_ins if self.of_rows else stand_in_parts(record.stand_ins)


def _figure(name: str, title: str, draw: Draw, caption: str, *, of_rows: bool = True) -> RunFigure:
    """All figures tell their title, the run and its stand-ins: none can forget it."""

    def told(record: RunRecord) -> Figure | None:
        figure = draw(record)
        if figure is not None:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
            say_stand_ins(figure, about.stand_ins(record), _run(record))
        return figure

    about = RunFigure(name=name, title=title, caption=caption, draw=told, of_rows=of_rows)
    return about


def _run(record: RunRecord) -> str:
    """Whose numbers these are; an imported run may not have all of it."""
    protocol = record.results["protocol"]
    keys = ("method", "backbone", "benchmark", "order_name")
    told = [str(protocol[key]) for key in keys if protocol.get(key) is not None]
    seed = [f"seed {protocol['seed']}"] if protocol.get("seed") is not None else []
    return ", ".join([*told, *seed, *(["imported"] if protocol.get("imported") else [])])


RUN_FIGURES: tuple[RunFigure, ...] = (
    _figure(
        "score_matrix",
        "Score of each task after each learnt task",
        scores.score_matrix,
        "A row is the model after a phase of learning, a column a task's score in percent. Framed, "
        "where tasks were learnt one by one: the task just learnt; to its right: those not learnt "
        "yet. Hatched: not evaluated.",
    ),
    _figure(
        "trajectories",
        "Each task's score through the stream",
        scores.trajectories,
        "How well a task is still done as others are learnt; shaded: before it was learnt. The "
        "first task (orange) has the longest history, the trajectory that papers show.",
    ),
    _figure(
        "average_performance",
        "Average performance as tasks arrive",
        scores.average_performance,
        "Solid: mean score of the tasks learnt so far; its last point is AP. Dashed: what the same "
        "tasks scored when each was just learnt. The gap is what was lost since, or gained.",
    ),
    _figure(
        "forgetting",
        "Forgetting of each task",
        scores.forgetting,
        "max over j <= i < T-1 of a[i][j] - a[T-1][j]: a task's best score before the last task "
        "was learnt, minus its final one. Below zero (hatched): it gained. Dashed: the mean. The "
        "last task could not be forgotten yet. A question mark: a score that it needs is missing.",
    ),
    _figure(
        "general_ability",
        "General ability",
        probe.general_ability,
        "The model is asked rows that belong to no task, before the first task and after each. "
        "Loss: how unlikely it finds the right answers, which moves for every model; score: how "
        "many it gives. The dotted line is the model before the stream. Loss above it and score "
        "below it: the stream has cost ability that no task asks for. Loss can also fall, as a "
        "model learns to answer in few words. Where tasks have weights of their own, those of the "
        "newest task answer.",
        of_rows=False,
    ),
    _figure(
        "importance",
        "Which parts of the model each task needed",
        fusion_audit.importance,
        "Importance of the skill units, normalised to 0..1 over all units of a task, then averaged "
        "over the units of a layer and module. Colours are logarithmic.",
        of_rows=False,
    ),
    _figure(
        "fusion_classes",
        "Classes of the skill units at each boundary",
        fusion_audit.fusion_classes,
        "Important to past tasks and this one (task-shared), to one side only, or to neither. "
        "A number is left out where its bar is too low for it.",
        of_rows=False,
    ),
    _figure(
        "fusion_weights",
        "How decidedly old and new weights were fused",
        fusion_audit.fusion_weights,
        "Above: share of units by lam, the share of the past in the fused weights (0: only the new "
        "task, 1: only the past); the darker the more, on a logarithmic scale; white: none. "
        "Below: mean binary entropy of lam; 1 bit is plain averaging, 0 a hard choice.",
        of_rows=False,
    ),
    _figure(
        "fusion_where",
        "Where the past was kept",
        fusion_audit.fusion_where,
        "Mean lam over the units of a layer and module: bright parts kept the past, dark ones took "
        "the new task's weights. The colours span what occurs, 0.5 in the middle.",
        of_rows=False,
    ),
    _figure(
        "training_curve",
        "Training loss",
        training.training_curve,
        "Loss of each optimizer step, penalties included; dotted lines: a new task begins. Of long "
        "runs: means of neighbouring steps, shaded from their lowest to their highest.",
        of_rows=False,
    ),
    _figure(
        "cost",
        "Time of each phase",
        training.cost,
        "Training, the work at the task boundary (identification, fusion, replay) and evaluation.",
        of_rows=False,
    ),
)


def save_figures(record: RunRecord, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write every figure that the run has as ``folder/<name>.<format>``; gives the paths.

    Raises:
        UserError: a format other than those of :data:`~.style.FORMATS`.
        OSError: the folder cannot be written.
    """
    require_formats(formats)
    written = []
    with styled():
        for one in RUN_FIGURES:
            try:
                figure = one.draw(record)
                if figure is None:
                    continue
                for ending in formats:
                    path = folder / f"{one.name}.{ending}"
                    save(figure, path)
                    written.append(path)
            except OSError:
                raise
            except Exception as error:  # the other figures are worth having
                tell_failure(one.name, record.folder, error)
    return written


def require_formats(formats: Sequence[str]) -> None:
    """Refuse any other than those of :data:`~.style.FORMATS`."""
    for ending in formats:
        require_choice("The format of figures", ending, FORMATS)


def tell_failure(name: str, of: object, error: Exception) -> str:
    """Warn that a figure could not be drawn; gives why, in a line."""
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    logging.getLogger(__name__).warning(
        "The figure %s of %s could not be drawn (%s).", name, of, why
    )
    return why
