"""What is told and drawn of one boundary fused again."""

from __future__ import annotations

import io
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.figures.style import styled
from kif_lightning.reporting.figures.what_if import draw_what_if, swept
from kif_lightning.reporting.what_if import note, show_what_if

OWN = {"rule": "soft", "tau": 0.15, "beta": 0.7}


def answer(scores: tuple[float, ...] = (10.0, 30.0, 50.0), **settings: Any) -> dict[str, Any]:
    return {
        "settings": {**OWN, **settings},
        "scores": list(scores),
        "average": sum(scores) / len(scores),
        "old_mean": sum(scores[:-1]) / (len(scores) - 1),
        "new": scores[-1],
        "mean_weight": 0.25,
        "entropy": 0.811,
    }


HARD = {**answer(), "settings": {"rule": "hard", "gamma": 0.7, "beta": 0.7}}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([answer()], None),
        ([answer(), answer(tau=0.5)], "tau"),
        ([answer(), answer(tau=0.5), answer(tau=0.9)], "tau"),
        ([answer(), answer(tau=0.5, beta=0.1), answer(tau=0.9, beta=0.1)], "tau"),
        ([answer(), answer(tau=0.5), answer(beta=0.1)], None),
        ([answer(), HARD], None),
        ([answer(), answer(tau=0.5), HARD], None),
        ([answer(), HARD, {**HARD, "settings": {**HARD["settings"], "gamma": 0.1}}], "gamma"),
    ],
)
def test_the_axis_is_the_one_number_that_was_swept(answers: Any, expected: str | None) -> None:
    assert swept(answers, OWN) == expected


def drawn(answers: list[dict[str, Any]]) -> Figure:
    with styled():
        return draw_what_if(answers, ["a", "b", "c"], OWN, ["stand-in data"])


def texts(figure: Any) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_scores_stand_over_the_swept_value_and_the_runs_own_is_marked() -> None:
    figure = drawn([answer(), answer((20, 40, 60), tau=0.9), answer((0, 0, 30), tau=0.01)])
    axes: Any = figure.axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["mean of all learnt"].get_xdata()) == [0.01, 0.15, 0.9]
    assert list(lines["mean of all learnt"].get_ydata()) == [10, 30, 40]
    assert list(lines["mean of old tasks"].get_ydata()) == [0, 20, 30]
    assert list(lines["new task"].get_ydata()) == [30, 50, 60]
    assert axes.get_xscale() == "log"
    rings = [line for line in axes.lines if line.get_markersize() == 11]
    assert [(list(ring.get_xdata()), list(ring.get_ydata())) for ring in rings] == [
        ([0.15], [30.0]), ([0.15], [20.0]), ([0.15], [50.0])
    ]  # fmt: skip
    told = texts(figure)
    for part in ("counterfactual, single boundary", "stand-in data", "Boundary 3 (c)"):
        assert part in told


def test_ways_of_several_kinds_stand_side_by_side() -> None:
    axes: Any = drawn([answer(), HARD]).axes[0]
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["soft\ntau=0.15\nbeta=0.7", "hard\ngamma=0.7\nbeta=0.7"]
    assert all(line.get_linestyle() == "None" for line in axes.lines if len(line.get_xdata()) == 2
               and line.get_label() in ("new task", "mean of all learnt"))  # fmt: skip


def test_the_run_of_another_kind_has_no_place_on_the_axis() -> None:
    other = {**HARD, "settings": {**HARD["settings"], "gamma": 0.1}}
    axes: Any = drawn([answer(), HARD, other]).axes[0]
    line = next(line for line in axes.lines if line.get_label() == "new task")
    assert list(line.get_xdata()) == [0.1, 0.7]
    assert not [line for line in axes.lines if line.get_markersize() == 11]
    assert "fused again: hard beta=0.7\n" in axes.get_title()


def test_the_table_says_what_it_is() -> None:
    said = io.StringIO()
    console = RunConsole(Console(file=said, width=200, highlight=False, soft_wrap=True))
    answers = [answer(), answer((20, 40, 60), tau=0.9)]
    show_what_if(answers, ["a", "b", "c"], OWN, [10, None, 50], ["stand-in model"], console)
    lines = [line.split() for line in said.getvalue().splitlines()]
    assert "counterfactual, single boundary (percent) - on stand-in model" in said.getvalue()
    own = "soft tau=0.15 beta=0.7 (the run's own) 30.00 20.00 50.00 0.250 0.811 10.0 30.0 50.0"
    assert own.split() in lines
    assert ["(as", "measured", "by", "the", "run)", "10.0", "50.0"] in lines
    assert "every later task would have started elsewhere" in said.getvalue()
    assert "chosen on the test" in said.getvalue()


def test_scores_of_held_out_rows_are_not_called_test_scores() -> None:
    told = note(["stand-in data", "held-out rows of train, not test"])
    assert "held-out rows of train: settings may be chosen by them" in told
    assert "test" not in told
