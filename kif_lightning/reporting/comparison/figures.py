"""The figures of a comparison, drawn from its contents alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kif_lightning.metrics.transfer import average_so_far
from kif_lightning.reporting.comparison.contents import AP, Contents, blocks, final_scores
from kif_lightning.reporting.comparison.tables import NOT_THE_SAME
from kif_lightning.reporting.figures.style import (
    COLOURS,
    MARKERS,
    clean,
    colour_bar,
    heat_map,
    line_style,
    name_ticks,
    new_figure,
    print_scores,
    say_stand_ins,
    short,
)

HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo", "+++", "---")
MOST_PANELS = 6
LONGEST = 44
"""Characters of a method's label."""
MOST_LINES = 8
"""Of methods in one panel: more are not told apart."""
Groups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class ComparisonFigure:
    """One figure; ``draw`` gives None where there is nothing of the kind to show."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """How to read it."""
    draw: Callable[[Contents], Figure | None]


def drawn(figure: ComparisonFigure, found: Contents) -> Figure | None:
    """The figure, with what must be said on it of stand-ins and of different protocols."""
    made = figure.draw(found)
    if made is not None:
        say_stand_ins(made, found["stand_ins"])
        if found["variants"]:
            made.suptitle(NOT_THE_SAME, fontsize=9, fontweight="bold")
    return made


def _room(labels: Iterable[str]) -> float:
    """Inches that the longest of them takes."""
    return 0.075 * max(len(short(label, LONGEST)) for label in labels)


def _placed(label: str, *places: str) -> str:
    """A method's label with its backbone or order, where there are several."""
    name = short(label, LONGEST)
    return f"{name} ({clean(', '.join(places))})" if places else name


def _scored(groups: Groups) -> Groups:
    return [group for group in groups if AP in group["metrics"]]


def _panels(
    found: Contents, size: Callable[[Groups], tuple[float, float]], *, share_y: bool = True
) -> Any:
    """A figure with one panel a backbone and order, and (axes, groups) of each."""
    shown = [(b, o, g) for b, o, groups in blocks(found) if (g := _scored(groups))]
    if not shown:
        return None, []
    left_out = shown[MOST_PANELS:]
    shown = shown[:MOST_PANELS]
    columns = 1 if len(shown) == 1 else 2
    rows = -(-len(shown) // columns)
    sizes = [size(groups) for _, _, groups in shown]
    figure = new_figure(columns * max(w for w, _ in sizes), rows * max(h for _, h in sizes))
    # The same scales everywhere: panels are looked at side by side.
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=share_y).ravel()
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    panels = []
    for axes, (backbone, order, groups) in zip(grid, shown, strict=False):
        if len(shown) > 1:
            axes.set_title(clean(f"{backbone}, {order}"), loc="left")
        panels.append((axes, groups))
    if left_out:
        _say_left_out(grid[len(shown) - 1], f"{len(left_out)} more pairs of backbone and order")
    return figure, panels


def _say_left_out(axes: Axes, what: str) -> None:
    axes.annotate(
        f"not drawn: {clean(what)} (all numbers: comparison.json)",
        (1, 1.01), xycoords="axes fraction", ha="right", va="bottom", fontsize=6,
    )  # fmt: skip


def _styles(found: Contents) -> dict[str, dict[str, Any]]:
    """The same colour, dash and marker of a method in all panels."""
    labels = dict.fromkeys(g["label"] for _, _, groups in blocks(found) for g in groups)
    return {label: line_style(place) for place, label in enumerate(labels)}


def final_dots(found: Contents) -> Figure | None:
    """Methods from top to bottom: each seed a dot, the mean with whiskers of a deviation."""
    figure, panels = _panels(
        found,
        lambda groups: (5.6 + _room(g["label"] for g in groups), 0.9 + 0.3 * len(groups)),
        share_y=False,
    )
    for axes, groups in panels:
        for place, group in enumerate(groups):
            values = [run["metrics"][AP] for run in group["runs"]]
            told = group["metrics"][AP]
            axes.errorbar(
                told["average"], place, xerr=told["standard_deviation"], color="black",
                marker="|", markersize=13, markeredgewidth=2, capsize=3, linewidth=1, zorder=2,
            )  # fmt: skip
            axes.plot(
                values, [place] * len(values), "o", color=COLOURS[0], alpha=0.65, markersize=5,
                linestyle="", zorder=3,
            )  # fmt: skip
            axes.annotate(
                f"{told['average']:.1f}  n={told['n']}", (1.01, place),
                xycoords=("axes fraction", "data"), va="center", fontsize=7,
            )  # fmt: skip
        _methods_on_y(axes, [group["label"] for group in groups])
        axes.set_xlabel("AP at the end (percent)")
    return figure


def _methods_on_y(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [short(label, LONGEST) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)


def bars_by_backbone(found: Contents) -> Figure | None:
    """Groups of bars, one a backbone; bars of methods, over the orders that all of them have."""
    bars: dict[str, dict[str, tuple[float, float | None, int]]] = {}
    orders_of: dict[str, list[str]] = {}
    without: list[str] = []
    for backbone in found["backbones"]:
        scored = [g for g in _scored(found["groups"]) if g["backbone"] == backbone]
        by_label: dict[str, dict[str, Any]] = {}
        for group in scored:
            by_label.setdefault(group["label"], {})[group["order"]] = group["metrics"][AP]
        common = [o for o in found["orders"] if all(o in v for v in by_label.values())]
        if not by_label or not common:
            without += [backbone] if by_label else []
            continue
        orders_of[backbone] = common
        bars[backbone] = {label: _bar([v[o] for o in common]) for label, v in by_label.items()}
    if not bars:
        return None
    labels = list(dict.fromkeys(label for values in bars.values() for label in values))
    labels.sort(key=lambda label: -mean(v[label][0] for v in bars.values() if label in v))
    many = len(labels) > MOST_LINES
    wide = max(3.5, 0.8 + len(bars) * (0.5 + 0.34 * len(labels)))
    figure = new_figure(wide + 0.6 + _room(labels), 3.4)
    axes = figure.subplots()
    width = 0.85 / len(labels)
    for place, label in enumerate(labels):
        for at, values in enumerate(bars.values()):
            if label not in values:
                continue
            height, deviation, _ = values[label]
            x = at + (place - (len(labels) - 1) / 2) * width
            axes.bar(
                x, height, 0.92 * width, yerr=deviation, capsize=2, edgecolor="black",
                linewidth=0.6, color=COLOURS[place % 6], alpha=0.85,
                hatch=HATCHES[(place + place // 6) % len(HATCHES)],
                label=short(label, LONGEST) if at == _first_with(label, bars) else None,
                error_kw={"linewidth": 1},
            )  # fmt: skip
            top = height + (deviation or 0)
            axes.annotate(f"{height:.0f}", (x, top), (0, 2), textcoords="offset points",
                          ha="center", fontsize=6)  # fmt: skip
    axes.set_xticks(range(len(bars)), [_with_orders(b, orders_of[b], found) for b in bars])
    axes.set_ylabel("AP at the end (percent)")
    axes.set_ylim(0, None)
    if without:
        _say_left_out(axes, f"{', '.join(without)}, no order of all its methods")
    figure.legend(loc="outside right upper", fontsize=7 if many else 8)
    return figure


def _bar(values: Sequence[Mapping[str, Any]]) -> tuple[float, float | None, int]:
    """Height, whisker and n: over orders where there are several, else over seeds."""
    if len(values) == 1:
        return values[0]["average"], values[0]["standard_deviation"], values[0]["n"]
    means = [value["average"] for value in values]
    return mean(means), stdev(means), len(means)


def _first_with(label: str, bars: Mapping[str, Mapping[str, Any]]) -> int:
    return next(place for place, values in enumerate(bars.values()) if label in values)


def _with_orders(backbone: str, orders: Sequence[str], found: Contents) -> str:
    if len(found["orders"]) == 1:
        return clean(backbone)
    told = orders[0] if len(orders) == 1 else f"mean of {len(orders)} orders"
    return f"{clean(backbone)}\n({clean(told)})"


def _lines(
    found: Contents, course: Callable[[Sequence[Sequence[float | None]]], list[float | None]]
) -> Figure | None:
    """A line a method, its mean over the seeds, with a band from the lowest to the highest seed."""
    figure, panels = _panels(found, lambda groups: (5 + _room(g["label"] for g in groups), 3.4))
    styles = _styles(found)
    baseline = (found["paired"] or {}).get("baseline")
    labelled: dict[str, Any] = {}
    for axes, groups in panels:
        whole = [g for g in groups if all(len(run["scores"]) > 1 for run in g["runs"])]
        # The best, and always what the others are held against.
        shown = sorted(whole, key=lambda g: g["label"] != baseline)[:MOST_LINES]
        for group in shown:
            courses = [course(run["scores"]) for run in group["runs"]]
            columns = [(i, c) for i, c in enumerate(zip(*courses, strict=True), 1) if None not in c]
            if not columns:
                continue
            x = [i for i, _ in columns]
            style = styles[group["label"]]
            (line,) = axes.plot(x, [mean(c) for _, c in columns], linewidth=1.4, **style)
            if len(courses) > 1:
                low, high = [min(c) for _, c in columns], [max(c) for _, c in columns]
                axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)
            labelled.setdefault(group["label"], line)
        if len(whole) > len(shown):
            _say_left_out(axes, f"{len(whole) - len(shown)} methods of lower AP")
        axes.set_xlabel("tasks learnt")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 102)
        axes.grid(linewidth=0.4, alpha=0.5)
    if not labelled:
        return None
    for axes, _ in panels:
        axes.set_ylabel("percent")
    names = [short(label, LONGEST) for label in labelled]
    figure.legend(labelled.values(), names, loc="outside right upper", fontsize=8)
    return figure


def average_as_tasks_arrive(found: Contents) -> Figure | None:
    """Mean score of the tasks learnt so far, as tasks arrive."""
    return _lines(found, average_so_far)


def first_task(found: Contents) -> Figure | None:
    """Score of the first task as others arrive."""
    return _lines(found, lambda matrix: [row[0] for row in matrix])


def final_by_task(found: Contents) -> Figure | None:
    """Methods by tasks: the scores at the end, means over the seeds; rows of one order a panel."""
    shown = [(b, o, g) for b, o, groups in blocks(found) if (g := _scored(groups))]
    left_out, shown = shown[MOST_PANELS:], shown[:MOST_PANELS]
    if not shown:
        return None
    tasks = max(len(found["orders"][order]) for _, order, _ in shown)
    heights = [0.26 * len(groups) + 1.3 for _, _, groups in shown]
    room = _room(group["label"] for _, _, groups in shown for group in groups)
    figure = new_figure(1.9 + room + min(11, 0.42 * tasks), sum(heights))
    grid = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights).ravel()
    image: Any = None
    for axes, (backbone, order, groups) in zip(grid, shown, strict=True):
        names = found["orders"][order]
        # Not evaluated: NaN.
        cells = np.array([final_scores(group) for group in groups], dtype=np.float64)
        image = heat_map(axes, cells, Normalize(0, 100))
        axes.set_yticks(range(len(groups)), [short(group["label"], LONGEST) for group in groups])
        name_ticks(axes.xaxis, [f"{i} {name}" for i, name in enumerate(names, 1)], size=7)
        axes.spines[:].set_visible(False)
        print_scores(axes, cells)
        if len(shown) > 1:
            axes.set_title(clean(f"{backbone}, {order}"), loc="left")
    if left_out:
        _say_left_out(grid[-1], f"{len(left_out)} more pairs of backbone and order")
    colour_bar(figure, image, list(grid), "percent")  # a longer label would not fit beside two rows
    return figure


def cost_and_score(found: Contents) -> Figure | None:
    """Seconds of a run against AP at the end; one point a seed."""
    figure, panels = _panels(found, lambda groups: (5 + _room(g["label"] for g in groups), 3.4))
    styles = _styles(found)
    labelled: dict[str, Any] = {}
    for axes, groups in panels:
        for group in groups:
            if group["seconds"] is None:
                continue
            x = [run["cost"]["seconds"]["total"] / 60 for run in group["runs"]]
            y = [run["metrics"][AP] for run in group["runs"]]
            place = list(styles).index(group["label"])
            (dots,) = axes.plot(
                x, y, linestyle="", marker=MARKERS[place % len(MARKERS)], markersize=6, alpha=0.8,
                color=COLOURS[(place + place // len(MARKERS)) % len(COLOURS)],
                fillstyle="full" if place < len(MARKERS) else "none",
            )  # fmt: skip
            labelled.setdefault(group["label"], dots)
        axes.set_xlabel("minutes of a run, training and evaluation")
        axes.set_ylabel("AP at the end (percent)")
        axes.set_xlim(0, None)
        axes.grid(linewidth=0.4, alpha=0.5)
    if not labelled:
        return None
    names = [short(label, LONGEST) for label in labelled]
    figure.legend(labelled.values(), names, loc="outside right upper", fontsize=7)
    return figure


def paired_differences(found: Contents) -> Figure | None:
    """Intervals of the difference from the baseline, each seed a dot."""
    paired = found["paired"]
    entries = [entry for entry in (paired or {}).get("entries", []) if entry["seeds"]]
    if not entries:
        return None
    several = len(blocks(found)) > 1
    figure = new_figure(6 + _room(entry["label"] for entry in entries), 1.0 + 0.32 * len(entries))
    axes = figure.subplots()
    axes.axvline(0, color="black", linewidth=0.8, linestyle="--")
    for place, entry in enumerate(entries):
        if pooled := entry["pooled"]:
            axes.plot([pooled["low"], pooled["high"]], [place] * 2, color="black", linewidth=1.6)
            axes.plot(pooled["difference"], place, "|", color="black", markersize=13,
                      markeredgewidth=2)  # fmt: skip
        values = [seed["difference"] for seed in entry["seeds"]]
        axes.plot(values, [place] * len(values), "o", color=COLOURS[0], alpha=0.65, markersize=5)
    _methods_on_y(axes, [e["label"] for e in entries])
    if several:
        labels = [_placed(e["label"], e["backbone"], e["order"]) for e in entries]
        axes.set_yticks(range(len(entries)), labels)
    axes.set_xlabel(f"AP minus that of {short(paired['baseline'], LONGEST)} (percent points)")
    return figure


def order_study(found: Contents) -> Figure | None:
    """Each order's mean AP a mark, the range a line."""
    study = found["order_study"]
    if not study:
        return None
    study = sorted(study, key=lambda entry: (entry["backbone"], -entry["average"]))
    several = len({entry["backbone"] for entry in study}) > 1
    figure = new_figure(6 + _room(entry["label"] for entry in study), 1.2 + 0.32 * len(study))
    axes = figure.subplots()
    for place, entry in enumerate(study):
        axes.plot([entry["smallest"], entry["largest"]], [place] * 2, color="0.6", zorder=1)
        axes.plot(entry["average"], place, "|", color="black", markersize=13, markeredgewidth=2)
    for number, name in enumerate(found["orders"]):
        points = [(e["orders"][name], y) for y, e in enumerate(study) if name in e["orders"]]
        if points:
            axes.plot(
                *zip(*points, strict=True), linestyle="", label=clean(name), markersize=6,
                alpha=0.8, marker=MARKERS[number % len(MARKERS)],
                color=COLOURS[number % len(COLOURS)],
            )  # fmt: skip
    labels = [_placed(e["label"], *[e["backbone"]] * several) for e in study]
    _methods_on_y(axes, labels)
    axes.set_yticks(range(len(study)), labels)
    axes.set_xlabel("AP at the end (percent), mean over the seeds of an order")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


FIGURES: tuple[ComparisonFigure, ...] = (
    ComparisonFigure(
        name="average_performance",
        title="Average performance (AP) by method",
        caption="Each dot is a seed, the upright bar their mean, the whiskers one standard "
        "deviation between seeds (none for one seed); n: how many seeds. Further right is better.",
        draw=final_dots,
    ),
    ComparisonFigure(
        name="average_performance_by_backbone",
        title="AP by backbone",
        caption="Bars are methods, groups are backbones. The whisker is one standard deviation: "
        "between seeds where there is one order, between the orders' means where there are "
        "several; of those, only orders that all methods of the backbone were run in.",
        draw=bars_by_backbone,
    ),
    ComparisonFigure(
        name="average_as_tasks_arrive",
        title="AP as tasks arrive",
        caption="The mean score over the tasks learnt so far. Lines are means over seeds, bands go "
        "from the lowest to the highest seed. A line that falls forgets, or meets harder tasks.",
        draw=average_as_tasks_arrive,
    ),
    ComparisonFigure(
        name="first_task",
        title="What is left of the first task",
        caption="The score on the first task after each further one; lines and bands as above. "
        "A flat line forgets nothing.",
        draw=first_task,
    ),
    ComparisonFigure(
        name="final_scores_by_task",
        title="Score of each task at the end",
        caption="Rows are methods, the best first; columns are tasks in the order of learning, the "
        "last learnt at the right. Means over seeds.",
        draw=final_by_task,
    ),
    ComparisonFigure(
        name="cost_and_performance",
        title="What it costs",
        caption="Each point is a run: its minutes on the machine it ran on, and its AP. Up and to "
        "the left is better. Runs of different machines, or beside other work, differ in time "
        "alone.",
        draw=cost_and_score,
    ),
    ComparisonFigure(
        name="paired_differences",
        title="Paired differences from the baseline",
        caption="The line is the interval over resampled test rows of the difference averaged over "
        "seeds; dots are the seeds' differences. A line clear of zero is no chance of the test "
        "rows; dots on both sides of zero may still be the training's chance.",
        draw=paired_differences,
    ),
    ComparisonFigure(
        name="order_study",
        title="How much the order of tasks matters",
        caption="Each mark is an order, averaged over its seeds; the upright bar is the mean over "
        "orders, the grey line the range.",
        draw=order_study,
    ),
)
