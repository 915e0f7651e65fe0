"""Figures of the task boundaries: importance of the skill units and how they were fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kif_lightning.metrics.entropy import mean_binary_entropy
from kif_lightning.reporting.figures.style import (
    COLOURS,
    SHARE_MAP,
    bar_style,
    colour_bar,
    heat_map,
    legend_above,
    line_style,
    name_ticks,
    new_figure,
    room_for,
    short,
    width_for,
)
from kif_lightning.reporting.figures.unit_places import ELSEWHERE, Place, places
from kif_lightning.reporting.run_record import Boundary, RunRecord

CLASSES = {
    "task_shared": ("task-shared", COLOURS[2], "xxxx"),
    "previous_specific": ("previous-specific", COLOURS[4], "////"),
    "current_specific": ("current-specific", COLOURS[1], "\\\\\\\\"),
    "unimportant": ("unimportant", "#efefef", ""),
}
BINS = 21
"""An odd number: 0.5, plain averaging, lies within a bin."""
LABELLED = 16
Panels = dict[str, dict[int | str, NDArray[np.float64]]]
"""Module -> layer (or the name of what has none) -> a value a boundary; NaN: nothing there."""


def importance(record: RunRecord) -> Figure | None:
    """Mean normalised score of this task's units by module, layer and task."""
    if not record.boundaries:
        return None
    norm = LogNorm(1e-3, 1.0, clip=True)
    panels = by_place(record.boundaries, "current")
    return _panels(record.boundaries, panels, norm, "mean importance (0.001: or less)")


def fusion_where(record: RunRecord) -> Figure | None:
    """Mean share of the past in the fused units by module, layer and task."""
    fused = _fused(record)
    if not fused:
        return None
    panels = by_place(fused, "weight")
    values = np.array([row for rows in panels.values() for row in rows.values()])
    reach = max(0.05, float(np.nanmax(np.abs(values - 0.5))))
    norm = Normalize(0.5 - reach, 0.5 + reach)
    return _panels(fused, panels, norm, "mean share of the past, lam")


def fusion_classes(record: RunRecord) -> Figure | None:
    """Stacked bars: how many units are of which class at each boundary."""
    fused = _fused(record, "classes")
    if not fused:
        return None
    figure = new_figure(width_for(len(fused)), 3.6)
    axes = figure.add_subplot()
    top = np.zeros(len(fused))
    total = max(len(boundary["classes"]) for boundary in fused)
    for name, (label, colour, hatch) in CLASSES.items():
        counts = np.array([boundary["classes"].count(name) for boundary in fused])
        style = bar_style(colour, hatch, len(fused))
        bars = axes.bar(range(len(fused)), counts, bottom=top, label=label, **style)
        if len(fused) <= LABELLED:
            shown = [str(count) if count >= 0.07 * total else "" for count in counts]
            for text in axes.bar_label(bars, shown, label_type="center", fontsize=7):
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
        top += counts
    axes.set(xlim=room_for(len(fused)), ylabel=f"skill units (of {total})")
    axes.set_xlabel("boundary after")
    _name_boundaries(axes, fused)
    legend_above(axes, columns=4)
    return figure


def fusion_weights(record: RunRecord) -> Figure | None:
    """Histogram of lam at each boundary, and below it the mean entropy of the choice."""
    fused = _fused(record)
    if not fused:
        return None
    edges = np.linspace(0, 1, BINS + 1)
    weights = [np.array(boundary["weight"], dtype=np.float64) for boundary in fused]
    shares = np.array([100 * np.histogram(lam, edges)[0] / lam.size for lam in weights]).T
    figure = new_figure(width_for(len(fused)) + 0.6, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    some = np.where(shares > 0, shares, np.nan)
    image = heat_map(upper, some, LogNorm(0.1, 100, clip=True), SHARE_MAP)
    image.set_extent((-0.5, len(fused) - 0.5, 1, 0))
    upper.set(ylim=(0, 1), ylabel="share of the past, lam")
    upper.patch.set(hatch="")
    colour_bar(figure, image, upper, "units (percent)")
    lower.plot([mean_binary_entropy(boundary["weight"]) for boundary in fused], **line_style(0))
    lower.set(ylim=(0, 1.05), ylabel="mean entropy (bits)")
    lower.axhline(1, color="#777777", linestyle=":", linewidth=0.8)
    upper.set_xlim(-0.5, len(fused) - 0.5)
    _name_boundaries(lower, fused)
    lower.set_xlabel("boundary after")
    return figure


def by_place(boundaries: Sequence[Boundary], key: str) -> Panels:
    """Mean of a column of the boundaries over the units of each module and layer."""
    found: Panels = {}
    known: tuple[list[str], list[Place]] = ([], [])
    for number, boundary in enumerate(boundaries):
        if boundary["unit_ids"] != known[0]:
            known = (boundary["unit_ids"], places(boundary["unit_ids"]))
        grouped: dict[Place, list[float]] = {}
        for place, value in zip(known[1], boundary[key], strict=True):
            grouped.setdefault(place, []).append(value)
        for place, values in grouped.items():
            rows = found.setdefault(place.module, {})
            row = rows.setdefault(place.row, np.full(len(boundaries), np.nan))
            row[number] = sum(values) / len(values)
    return found


def _panels(boundaries: Sequence[Boundary], panels: Panels, norm: Normalize, label: str) -> Figure:
    """A heat map a module: layers x tasks."""
    modules = sorted(panels, key=lambda module: module == ELSEWHERE)  # that one last
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    wide = min(2.4, max(1.9, 0.14 * len(boundaries)))
    high = min(2.6, max(0.8, 0.09 * max(len(found) for found in panels.values())))
    figure = new_figure(max(5.0, 1.2 + (wide + 0.2) * columns), 1.5 + rows * (high + 0.3))
    grid = figure.subplots(rows, columns, squeeze=False).flat
    images = []
    for place, (module, axes) in enumerate(zip(modules, grid, strict=False)):
        found = panels[module]
        names = list(found) if module == ELSEWHERE else sorted(found, key=int)
        values = np.array([found[name] for name in names])
        images.append(heat_map(axes, values, norm))
        axes.set_title(short(module, 28), fontsize=7, pad=3)
        _name_rows(axes, names)
        axes.set_xticks([])
        if place + columns >= len(panels):
            _name_boundaries(axes, boundaries, size=6, angle=90)
    for axes in figure.axes[len(panels) :]:
        axes.set_visible(False)
    colour_bar(figure, images[0], figure.axes[: len(panels)], label)
    if modules[0] != ELSEWHERE:
        figure.supylabel("layer", fontsize=9)
    return figure


def _name_rows(axes: Axes, names: Sequence[int | str]) -> None:
    """Layers by some of their numbers, what has none by name."""
    if any(isinstance(name, str) for name in names):
        axes.yaxis.tick_right()
        name_ticks(axes.yaxis, [str(name) for name in names], size=6)
    else:
        every = -(-len(names) // 8)
        axes.set_yticks(range(0, len(names), every), [str(n) for n in names[::every]], fontsize=7)


def _fused(record: RunRecord, key: str = "weight") -> list[Boundary]:
    """The first task's boundary has nothing to fuse."""
    return [boundary for boundary in record.boundaries if boundary.get(key) is not None]


def _name_boundaries(
    axes: Axes, boundaries: Sequence[Boundary], size: float = 8, angle: float = 45
) -> None:
    tasks = [boundary["task"] for boundary in boundaries]
    numbers = [boundary["number"] for boundary in boundaries]
    name_ticks(axes.xaxis, tasks, numbers=numbers, size=size, angle=angle)
