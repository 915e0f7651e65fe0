"""Scores after one boundary, over the ways it was fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kif_lightning.reporting.figures.style import line_style, new_figure, say_stand_ins, short
from kif_lightning.reporting.what_if import LABEL, Answer, Settings, words

SERIES = {"average": "mean of all learnt", "old_mean": "mean of old tasks", "new": "new task"}
LOG_FROM = 20
"""Ratio of the largest to the smallest value from which the axis is logarithmic."""


def swept(answers: Sequence[Answer], original: Settings) -> str | None:
    """The one number that all answers but the run's own differ in; None: they differ otherwise."""
    others = [answer["settings"] for answer in answers if answer["settings"] != original]
    if len({frozenset(settings) for settings in others}) != 1:
        return None
    differing = [key for key in others[0] if len({settings[key] for settings in others}) > 1]
    if len(others) == 1:  # then by what it differs in from the run's own
        differing = [key for key in others[0] if others[0][key] != original.get(key)]
    numeric = len(differing) == 1 and isinstance(others[0][differing[0]], float)
    return differing[0] if numeric else None


def held(answers: Sequence[Answer], original: Settings) -> dict[str, Any]:
    """Settings that all of a sweep share, beside the number that was swept; empty without one."""
    key = swept(answers, original)
    other: Settings = next((a["settings"] for a in answers if a["settings"] != original), {})
    return {} if key is None else {name: other[name] for name in other if name != key}


def draw_what_if(
    answers: Sequence[Answer], names: Sequence[str], original: Settings, stand_ins: Sequence[str]
) -> Figure:
    """Mean over the learnt tasks, the old ones' mean and the new one's score; call it in styled().

    Over the number that was swept, or over the ways of fusing side by side. The run's own way is a
    dotted line over all others, and a ring where it has a place on the axis.

    Args:
        answers: at least one; the run's own among them.
        names: of the tasks learnt so far.
        original: the run's own settings.
        stand_ins: told on the figure.
    """
    key = swept(answers, original)
    own = next(answer for answer in answers if answer["settings"] == original)
    shared = held(answers, original)
    shown = list(answers) if key is None else _on_axis(answers, key, shared)
    # Side by side, each way's settings stand under it in lines.
    figure = new_figure(max(5.6, 0.0 if key else 1.0 * len(shown)), 4.0 if key else 4.4)
    axes = figure.add_subplot()
    places = _places(axes, shown, key)
    for number, (series, label) in enumerate(SERIES.items()):
        style = line_style(number)
        if key is None:
            style["linestyle"] = "none"  # nothing lies between two ways
        axes.plot(places, [answer[series] for answer in shown], label=label, **style)
        axes.axhline(own[series], color=style["color"], linestyle=":", linewidth=0.8)
        for place in [place for place, a in zip(places, shown, strict=True) if a is own]:
            axes.plot(place, own[series], "o", markersize=11, fillstyle="none", color="black")
    if own in shown:
        axes.plot([], [], "o", markersize=9, fillstyle="none", color="black", label="the run's own")
    axes.margins(y=0.12)
    axes.set_xlabel(f"{key or 'fusion'} (dotted lines: the run's own, {words(original)})")
    axes.set_ylabel("score (percent)")
    way = f": {words(shared)}" if shared else ""
    axes.set_title(f"Boundary {len(names)} ({short(names[-1])}) fused again{way}\n{LABEL}")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    say_stand_ins(figure, stand_ins)
    return figure


def _on_axis(answers: Sequence[Answer], key: str, shared: Settings) -> list[Answer]:
    """Those that differ in the swept number alone, by its size."""
    shown = [a for a in answers if {**a["settings"], key: None} == {**shared, key: None}]
    return sorted(shown, key=lambda answer: float(answer["settings"][key]))


def _places(axes: Axes, shown: Sequence[Answer], key: str | None) -> Sequence[Any]:
    """Where each stands on the x axis, which is labelled."""
    if key is None:
        labels = [words(answer["settings"]).replace(" ", "\n") for answer in shown]
        axes.set_xticks(range(len(shown)), labels, fontsize=8)
        axes.set_xlim(-0.5, len(shown) - 0.5)
        return range(len(shown))
    places = [answer["settings"][key] for answer in shown]
    if places[0] > 0 and places[-1] / places[0] >= LOG_FROM:
        axes.set_xscale("log")
    axes.set_xticks(places, [f"{value:g}" for value in places], minor=False)
    axes.minorticks_off()
    return places
