"""Figures of the score matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from kif_lightning.metrics.transfer import average_so_far, forgetting_by_task
from kif_lightning.reporting.figures.style import (
    ANNOTATED,
    COLOURS,
    colour_bar,
    colour_on,
    heat_map,
    legend_above,
    line_style,
    name_ticks,
    new_figure,
    print_scores,
    room_for,
    short,
    width_for,
)
from kif_lightning.reporting.run_record import RunRecord

MULTIPLES = 24
"""Tasks that get a panel each."""
PER_CENT = Normalize(0, 100)


def score_matrix(record: RunRecord) -> Figure:
    """Heat map, one row a phase (first the untrained model, if evaluated), one column a task."""
    untrained = [row for row in [record.results.get("untrained")] if row is not None]
    before = len(untrained)
    values = _numbers([*untrained, *record.matrix])
    names = [*(["(untrained)"] * before), *record.phases]
    cell = 0.42 if len(record.tasks) <= ANNOTATED else max(0.08, 8.4 / len(record.tasks))
    figure = new_figure(
        min(11.0, max(4.2, 2.2 + cell * values.shape[1])),
        min(10.0, max(2.2, 1.7 + 0.8 * cell * values.shape[0])),
    )
    axes = figure.add_subplot()
    image = heat_map(axes, values, PER_CENT)
    diagonal = {(k + before, k) for k in range(len(values) - before)} if _one_by_one(record) else ()
    for row, column in diagonal:
        colour = colour_on(values[row, column])
        frame = Rectangle((column - 0.44, row - 0.44), 0.88, 0.88, fill=False, edgecolor=colour)
        frame.set_linewidth(1.2 if len(record.tasks) <= ANNOTATED else 0.5)
        axes.add_patch(frame)
    print_scores(axes, values)
    name_ticks(axes.xaxis, record.tasks)
    name_ticks(axes.yaxis, names, numbers=range(1 - before, len(record.phases) + 1))
    axes.set(xlabel="scored on", ylabel="after learning")
    axes.spines[["top", "right"]].set_visible(True)
    colour_bar(figure, image, axes, "score (percent)")
    return figure


def trajectories(record: RunRecord) -> Figure | None:
    """Each task's score after each phase: a panel a task, or all in one if there are many."""
    if not _one_by_one(record) or len(record.tasks) < 2:
        return None
    values = _numbers(record.matrix)
    many = len(record.tasks) > MULTIPLES
    return _all_in_one(record.tasks, values) if many else _one_panel_each(record.tasks, values)


def _one_panel_each(tasks: Sequence[str], values: NDArray[np.float64]) -> Figure:
    count = len(tasks)
    columns = min(5, count)
    rows = -(-count // columns)
    figure = new_figure(max(4.5, 1.75 * columns + 0.4), 1.25 * rows + 0.8)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    after = np.arange(1, count + 1)
    for place, axes in enumerate(grid):
        if place >= count:
            axes.set_visible(False)
            continue
        axes.axvspan(0.5, place + 0.5, color="#ececec", linewidth=0)
        axes.plot(after, values[:, place], clip_on=False, **_of_task(place))
        axes.set_title(f"{place + 1} {short(tasks[place], 20)}", fontsize=8, pad=3)
        if place + columns >= count:
            axes.xaxis.set_tick_params(labelbottom=True)
    first = figure.axes[0]
    first.set(xlim=(0.5, count + 0.5), ylim=(0, 100))
    first.set_yticks([0, 50, 100])
    first.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supylabel("score (percent)", fontsize=9)
    figure.axes[(rows - 1) * columns].set_xlabel("after task number")
    return figure


def _all_in_one(tasks: Sequence[str], values: NDArray[np.float64]) -> Figure:
    figure = new_figure(8, 3.8)
    axes = figure.add_subplot()
    after = np.arange(1, len(values) + 1)
    others = [np.column_stack([after, values[:, j]])[j:] for j in range(1, len(tasks))]
    grey = LineCollection(others, colors="#b5b5b5", linewidths=0.5, label="the other tasks")
    axes.add_collection(grey)
    own = {**_of_task(0), "label": f"task 1: {short(tasks[0])}", "markevery": len(tasks) // 12}
    axes.plot(after, values[:, 0], **own)
    axes.set(ylim=(0, 100), xlabel="after task number", ylabel="score (percent)")
    axes.set_xlim(0.5, len(tasks) + 0.5)
    legend_above(axes, columns=2)
    return figure


def _of_task(place: int) -> dict[str, Any]:
    """The first task stands out: its trajectory is what papers print."""
    style = {"marker": "o", "markersize": 2.5, "linewidth": 1.2, "color": COLOURS[0]}
    return {**style, "color": COLOURS[5], "linewidth": 2.2} if place == 0 else style


def average_performance(record: RunRecord) -> Figure | None:
    """Mean over the tasks learnt so far after each, beside what they scored when just learnt."""
    if not _one_by_one(record) or len(record.tasks) < 2:
        return None
    matrix = record.matrix
    now = _numbers([average_so_far(matrix)])[0]
    learnt = np.diagonal(_numbers(matrix))
    when_learnt = np.cumsum(learnt) / np.arange(1, len(learnt) + 1)
    figure = new_figure(width_for(len(matrix)), 3.4)
    axes = figure.add_subplot()
    every = max(1, len(matrix) // 25)
    label = "mean of the same tasks' scores when each was just learnt"
    axes.plot(when_learnt, label=label, markevery=every, **line_style(1))
    axes.plot(now, label="mean over the tasks learnt so far", markevery=every, **line_style(0))
    final = record.results["metrics"].get("average_performance")
    if final is not None:
        axes.annotate(
            f"AP {final:.1f}",
            (len(matrix) - 1, final),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set(ylim=(0, 100), xlim=(-0.5, len(matrix) - 0.5))
    axes.set(xlabel="after learning", ylabel="score (percent)")
    name_ticks(axes.xaxis, record.phases)
    legend_above(axes)
    return figure


def forgetting(record: RunRecord) -> Figure | None:
    """Bars, one a task but the last; a question mark where it is not known, None: nowhere known."""
    if not _one_by_one(record) or len(record.tasks) < 2:
        return None
    names = record.tasks[:-1]
    (heights,) = _numbers([forgetting_by_task(record.matrix)])
    if np.isnan(heights).all():
        return None
    gained = heights < 0
    figure = new_figure(width_for(len(names)), 3.4)
    axes = figure.add_subplot()
    bars = axes.bar(
        range(len(names)),
        heights,
        color=[COLOURS[2] if gain else COLOURS[5] for gain in gained],
        hatch=["xxxx" if gain else "" for gain in gained],
        edgecolor="black",
        linewidth=0.5,
    )
    if len(names) <= ANNOTATED:
        axes.bar_label(bars, [f"{value:.3g}" for value in heights], fontsize=7, padding=2)
    for place in np.flatnonzero(np.isnan(heights)):
        axes.annotate("?", (place, 0), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    rate = record.results["metrics"].get("forgetting_rate")
    if rate is not None:
        axes.axhline(rate, color="black", linestyle="--", linewidth=1, label=f"mean {rate:.1f}")
        legend_above(axes)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(1.15 * min(np.nanmin(heights), 0) - 0.5, 1.15 * max(np.nanmax(heights), 4))
    axes.set(xlim=room_for(len(names)), ylabel="best earlier score - final (points)")
    name_ticks(axes.xaxis, names)
    return figure


def _one_by_one(record: RunRecord) -> bool:
    """Tasks were learnt one after another, not all at once."""
    return len(record.phases) == len(record.tasks)


def _numbers(matrix: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Not evaluated: NaN."""
    return np.array(matrix, dtype=np.float64)
