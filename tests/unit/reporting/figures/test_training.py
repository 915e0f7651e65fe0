"""What the figures of loss and cost show, read back from their axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kif_lightning.reporting.figures import training
from kif_lightning.reporting.run_record import RunRecord, read_run
from tests.helpers.fake_runs import fake_run


def of_curves(*losses: list[float]) -> RunRecord:
    curves: list[dict[str, Any]] = []
    start = 1
    for place, loss in enumerate(losses):
        curves.append({"task": f"task {place}", "first_step": start, "loss": loss})
        start += len(loss)
    return RunRecord(folder=Path(), results={}, boundaries=(), curves=tuple(curves))


def test_a_short_curve_shows_every_step_and_where_tasks_begin() -> None:
    figure = training.training_curve(of_curves([3.0, 2.0, 1.0], [5.0, 4.0]))
    assert figure is not None
    axes: Any = figure.axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert ([1, 2, 3], [3, 2, 1]) in drawn
    assert ([4, 5], [5, 4]) in drawn
    assert [x for x, y in drawn if y == [0, 1]] == [[0.5, 0.5], [3.5, 3.5]]  # upright, dotted
    assert [text.get_text() for text in axes.texts] == ["task 0", "task 1"]
    assert axes.get_xlim() == (0.5, 5.5)


def test_a_long_curve_is_binned_within_each_task() -> None:
    first, second = np.arange(1300.0), np.arange(700.0) + 5000
    figure = training.training_curve(of_curves(first.tolist(), second.tolist()))
    assert figure is not None
    axes: Any = figure.axes[0]
    curves = [line for line in axes.lines if line.get_linestyle() == "-"]
    size = 4  # 2000 steps, at most 500 points
    means = np.concatenate([np.asarray(line.get_ydata()) for line in curves])
    expected = np.concatenate([loss.reshape(-1, size).mean(1) for loss in (first, second)])
    np.testing.assert_allclose(means, expected)
    assert curves[0].get_xdata()[0] == 2.5  # the middle of steps 1 to 4
    assert curves[1].get_xdata()[0] == 1302.5
    assert curves[0].get_label() == "mean loss of 4 steps"
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0, 1299)


@pytest.mark.parametrize(("steps", "size"), [(7, 3), (9, 3), (1, 5), (4, 1)])
def test_bins_keep_the_mean_whatever_is_left_over(steps: int, size: int) -> None:
    loss = np.arange(steps) ** 2 * 1.0
    middle, mean, low, high = training.binned(11, loss, size)
    parts = [list(range(start, min(start + size, steps))) for start in range(0, steps, size)]
    np.testing.assert_allclose(middle, [11 + sum(part) / len(part) for part in parts])
    np.testing.assert_allclose(mean, [sum(loss[part]) / len(part) for part in parts])
    np.testing.assert_allclose(low, [loss[part[0]] for part in parts])
    np.testing.assert_allclose(high, [loss[part[-1]] for part in parts])


def test_a_single_step_is_a_point() -> None:
    figure = training.training_curve(of_curves([2.0], []))
    assert figure is not None
    assert any(line.get_marker() == "." for line in figure.axes[0].lines)


def test_no_curves_no_figure() -> None:
    assert training.training_curve(of_curves()) is None
    assert training.training_curve(of_curves([], [])) is None


def test_cost_is_stacked_by_phase(tmp_path: Path) -> None:
    figure = training.cost(read_run(fake_run(tmp_path, steps=0, fuses=False)))
    assert figure is not None
    axes: Any = figure.axes[0]
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axes.containers}
    assert heights == {
        "train: 33 seconds": [10, 11, 12],
        "boundary: 0.75 seconds": [0.25] * 3,
        "evaluate: 12 seconds": [2, 4, 6],
    }
    assert [bar.get_y() for bar in axes.containers[2]] == [10.25, 11.25, 12.25]
    assert len({c[0].get_hatch() for c in axes.containers}) == 3  # told apart in grey


@pytest.mark.parametrize(
    ("seconds", "unit", "height"),
    [(119.0, "seconds", 119.0), (120.0, "minutes", 2.0), (7200.0, "hours", 2.0)],
)
def test_long_phases_are_told_in_larger_units(seconds: float, unit: str, height: float) -> None:
    phase = {"name": "x", "seconds": {"train": seconds, "boundary": 0.0, "evaluate": 0.0}}
    run = RunRecord(folder=Path(), results={"phases": [phase]}, boundaries=(), curves=())
    figure = training.cost(run)
    assert figure is not None
    assert figure.axes[0].get_ylabel() == unit
    assert figure.axes[0].containers[0][0].get_height() == height


def test_an_imported_run_tells_no_times() -> None:
    run = RunRecord(folder=Path(), results={"phases": [{"name": "x"}]}, boundaries=(), curves=())
    assert training.cost(run) is None
