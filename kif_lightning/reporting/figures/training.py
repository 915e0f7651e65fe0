"""Figures of the training: loss and cost."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kif_lightning.reporting.figures.style import (
    COLOURS,
    MOST_NAMES,
    bar_style,
    legend_above,
    name_ticks,
    new_figure,
    room_for,
    short,
    width_for,
)
from kif_lightning.reporting.run_record import RunRecord

MOST_POINTS = 500
"""Of the curve; longer ones are drawn as means of neighbouring steps and their range."""
COSTS = {
    "train": (COLOURS[0], ""),
    "boundary": (COLOURS[1], "xxxx"),
    "evaluate": (COLOURS[4], "////"),
}


def training_curve(record: RunRecord) -> Figure | None:
    """Loss of each optimizer step on the run's axis; of long runs binned, never across tasks."""
    curves = [curve for curve in record.curves if curve["loss"]]
    if not curves:
        return None
    size = -(-sum(len(curve["loss"]) for curve in curves) // MOST_POINTS)
    figure = new_figure(8, 3.6)
    axes = figure.add_subplot()
    for place, curve in enumerate(curves):
        step, middle, low, high = binned(curve["first_step"], np.array(curve["loss"]), size)
        label = None
        if place == 0:
            label = "loss" if size == 1 else f"mean loss of {size} steps"
        colour = COLOURS[0] if place % 2 == 0 else COLOURS[5]
        axes.plot(step, middle, color=colour, linewidth=1, label=label)
        if len(step) == 1:
            axes.plot(step, middle, ".", color=colour, markersize=3)
        if size > 1:
            told = "their range" if place == 0 else None
            axes.fill_between(step, low, high, color=colour, alpha=0.25, linewidth=0, label=told)
    starts = [curve["first_step"] - 0.5 for curve in curves]
    ends = curves[-1]["first_step"] + len(curves[-1]["loss"]) - 0.5
    if len(curves) <= MOST_NAMES:
        for start, curve in zip(starts, curves, strict=True):
            axes.axvline(start, color="#777777", linestyle=":", linewidth=0.8)
            above = axes.get_xaxis_transform()
            axes.text(start, 1.01, short(curve["task"]), rotation=45, fontsize=7, transform=above)
    axes.set(xlim=(starts[0], ends), ylim=(0, None))
    axes.set(xlabel="optimizer step of the run", ylabel="training loss")
    if size > 1:
        axes.legend(loc="upper right", fontsize=8)
    return figure


def binned(
    first_step: int, loss: NDArray[np.float64], size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Middle step, mean, lowest and highest loss of each ``size`` steps; the last may be fewer."""
    starts = np.arange(0, len(loss), size)
    ends = np.append(starts[1:], len(loss))
    return (
        first_step + (starts + ends - 1) / 2,
        np.add.reduceat(loss, starts) / (ends - starts),
        np.minimum.reduceat(loss, starts),
        np.maximum.reduceat(loss, starts),
    )


def cost(record: RunRecord) -> Figure | None:
    """Stacked bars: the time that each phase took to train, at its boundary and to evaluate."""
    phases = record.results["phases"]
    if any("seconds" not in phase for phase in phases):  # an imported run
        return None
    seconds = {kind: np.array([phase["seconds"][kind] for phase in phases]) for kind in COSTS}
    longest = float(np.sum(list(seconds.values()), axis=0).max())
    scale, unit = next(
        (scale, unit)
        for scale, unit in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        if longest >= 2 * scale or scale == 1
    )
    figure = new_figure(width_for(len(phases)), 3.4)
    axes = figure.add_subplot()
    top = np.zeros(len(phases))
    for kind, (colour, hatch) in COSTS.items():
        height = seconds[kind] / scale
        label = f"{kind}: {height.sum():.3g} {unit}"
        style = bar_style(colour, hatch, len(phases))
        axes.bar(range(len(phases)), height, bottom=top, label=label, **style)
        top += height
    axes.set(xlim=room_for(len(phases)), ylabel=unit)
    name_ticks(axes.xaxis, record.phases)
    legend_above(axes, columns=3)
    return figure
