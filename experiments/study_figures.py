"""Figures that several studies want, of runs as studies.py reads them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from studies import AVERAGE, BACKWARD, LEARNT, Run, best_first, mean_matrix

from kif_lightning.reporting.figures.style import (
    COLOURS,
    MARKERS,
    colour_bar,
    heat_map,
    legend_above,
    line_style,
    name_ticks,
    new_figure,
    print_scores,
    say_stand_ins,
)

COLUMNS = 3
"""Panels beside each other."""


def _say_stand_ins(figure: Figure, runs: Sequence[Run]) -> None:
    say_stand_ins(figure, sorted({name for run in runs for name in run.stand_ins}))


def usual_figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """Name -> the two figures that every study of methods has; none without runs."""
    if not runs:
        return {}
    return {
        "scores": scores_by_method(runs),
        "learning_and_forgetting": learning_and_forgetting(runs),
    }


def scores_by_method(runs: Sequence[Run]) -> Figure:
    """AP at the end: a mark for each run, by its seed, and an upright bar at the method's mean."""
    methods = best_first(runs)
    seeds = sorted({run.seed for run in runs})
    figure = new_figure(6.0, 1.4 + 0.22 * len(methods))
    axes = figure.add_subplot()
    for place, own in enumerate(methods.values()):
        axes.plot(mean(run.metrics[AVERAGE] for run in own), place, "|", color="black", ms=12)
    for number, seed in enumerate(seeds):
        points = [
            (run.metrics[AVERAGE], place)
            for place, own in enumerate(methods.values())
            for run in own
            if run.seed == seed
        ]
        style = {**line_style(number), "linestyle": "none"}
        axes.plot(*zip(*points, strict=True), label=f"seed {seed}", alpha=0.8, **style)
    name_ticks(axes.yaxis, list(methods))
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel("average performance at the end, percent")
    legend_above(axes, columns=len(seeds))
    _say_stand_ins(figure, runs)
    return figure


def learning_and_forgetting(runs: Sequence[Run]) -> Figure:
    """What each method learns, across, against what it keeps: to the upper right is better."""
    figure = new_figure(6.5, 5.0)
    axes = figure.add_subplot()
    for place, (method, own) in enumerate(best_first(runs).items()):
        points = [(run.metric(LEARNT), run.metric(BACKWARD)) for run in own]
        across, up = zip(*points, strict=True)
        if None in across or None in up:
            continue  # all tasks at once: there is nothing to forget
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        axes.scatter(across, up, s=10, color=colour, marker=marker, alpha=0.5)
        middle = mean(across), mean(up)
        axes.scatter(*middle, s=40, color=colour, marker=marker)
        axes.annotate(method, middle, xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.margins(x=0.12)
    axes.set_xlabel("score of a task when just learnt, percent")
    axes.set_ylabel("backward transfer at the end, points (below 0: forgotten)")
    _say_stand_ins(figure, runs)
    return figure


def score_maps(runs: Sequence[Run]) -> Figure:
    """The score matrix of each method, means over the seeds: rows after a task, columns of one."""
    shown = {method: own for method, own in best_first(runs).items() if len(own[0].matrix) > 1}
    rows = -(-len(shown) // COLUMNS)
    figure = new_figure(7.5, 0.6 + 1.9 * rows)
    every = figure.subplots(rows, COLUMNS, squeeze=False).flat
    norm = Normalize(0, 100)
    used = []
    for axes, (method, own) in zip(every, shown.items(), strict=False):
        values = np.array(mean_matrix(own), dtype=np.float64)
        picture = heat_map(axes, values, norm)
        print_scores(axes, values)
        name_ticks(axes.xaxis, own[0].tasks)
        name_ticks(axes.yaxis, [f"after {task}" for task in own[0].tasks])
        axes.set_title(method)
        used.append(axes)
    for axes in list(figure.axes)[len(used) :]:
        axes.remove()
    colour_bar(figure, picture, used, "percent")
    _say_stand_ins(figure, runs)
    return figure
