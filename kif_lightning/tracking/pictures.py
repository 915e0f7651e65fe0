"""The figures of a finished run as pixels."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kif_lightning.reporting.console import stamped
from kif_lightning.reporting.figures import RUN_FIGURES, RunFigure
from kif_lightning.reporting.figures.style import styled
from kif_lightning.reporting.run_record import RunRecord
from kif_lightning.tracking.keys import FIGURES

__all__ = ["RUN_FIGURES", "picture"]

DOTS_PER_INCH = 150


def picture(figure: RunFigure, record: RunRecord) -> tuple[str, np.ndarray, str] | None:
    """Key, (height, width, 3) bytes and caption; None of a figure that the run does not have."""
    with styled():
        drawn = figure.draw(record)
        if drawn is None:
            return None
        pixels = _pixels(drawn)
    caption = stamped(f"{figure.title}. {figure.caption}", figure.stand_ins(record))
    return f"{FIGURES}{figure.name}", pixels, caption


def _pixels(figure: Figure) -> np.ndarray:
    figure.set_dpi(DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
