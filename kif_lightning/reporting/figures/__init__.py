"""Figures of runs, drawn from what they left in their folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from kif_lightning.reporting.run_record import RunRecord


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
    draw: Callable[[RunRecord], Figure | None]


RUN_FIGURES: tuple[RunFigure, ...] = ()
