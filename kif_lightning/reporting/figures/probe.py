"""General ability through the stream: score and loss on rows that belong to no task."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kif_lightning.reporting.console import STAND_IN_PROBE
from kif_lightning.reporting.figures.style import (
    line_style,
    name_ticks,
    new_figure,
    short,
    width_for,
)
from kif_lightning.reporting.run_record import RunRecord


def general_ability(record: RunRecord) -> Figure | None:
    """Loss above, score below, before the first phase and after each; None without a probe."""
    probe = record.results.get("probe")
    if probe is None:
        return None
    points = [probe["untrained"], *probe["after"]]
    names = ["before", *record.phases]
    figure = new_figure(width_for(len(names)), 4.4)
    above, below = figure.subplots(2, 1, sharex=True)
    # The rows may stand for real ones where neither the run's data nor its model does.
    told = f"probe {short(probe['name'])}{f', {STAND_IN_PROBE}' if probe['stand_in'] else ''}"
    above.set_title(f"{probe['rows']} rows of no task ({told})", loc="left", fontsize=8)
    _line(above, [point["loss"] for point in points], place=5)
    above.set_ylabel("loss (lower is better)\nnats per answer token", fontsize=8)
    scores = [point["score"] for point in points]
    _line(below, scores, place=0)
    below.set_ylabel(
        f"score (higher is better)\n{probe['metric'].replace('_', ' ')}, %", fontsize=8
    )
    below.set_ylim(0, max(10, 1.25 * max(scores)))
    name_ticks(below.xaxis, names, numbers=range(len(names)))
    return figure


def _line(axes: Axes, values: Sequence[float | None], *, place: int) -> None:
    """The values, with the first one as a level to compare with; what is not finite is a gap."""
    heights = [nan if value is None else value for value in values]
    axes.plot(range(len(heights)), heights, **line_style(place))
    axes.margins(y=0.25)
    if isfinite(heights[0]):
        axes.axhline(heights[0], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    for index in (0, len(heights) - 1):
        if isfinite(heights[index]):
            axes.annotate(
                f"{heights[index]:.2f}",
                (index, heights[index]),
                textcoords="offset points",
                xytext=(0, 6),
                ha="center",
                fontsize=7,
            )
