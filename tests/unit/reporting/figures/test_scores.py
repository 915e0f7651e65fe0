"""What the figures of the score matrix show, read back from their axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from kif_lightning.reporting.figures import scores
from kif_lightning.reporting.figures.style import styled
from kif_lightning.reporting.run_record import RunRecord, read_run
from tests.helpers.fake_runs import fake_run

MATRIX = [
    [70.0, 30.0, None],
    [80.0, 60.5, 20.0],
    [75.0, 62.5, 90.0],
]


def record(folder: Path, **settings: Any) -> RunRecord:
    return read_run(fake_run(folder, steps=0, fuses=False, **settings))


def drawn(figure: Figure | None) -> tuple[Any, Any]:
    """Laid out and rendered, too: a figure that cannot be is no figure."""
    assert figure is not None
    with styled():
        figure.canvas.draw()
    return figure, figure.axes[0]


def cells(axes: Any) -> list[list[float | None]]:
    array = axes.images[0].get_array()
    assert isinstance(array, np.ma.MaskedArray)
    return array.tolist()  # masked: None


def frames(axes: Any) -> list[tuple[int, int]]:
    """(row, column) of the framed cells."""
    found = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [(round(p.get_y() + 0.44), round(p.get_x() + 0.44)) for p in found]


def labels(axes: Any) -> tuple[list[str], list[str]]:
    return (
        [text.get_text() for text in axes.get_xticklabels()],
        [text.get_text() for text in axes.get_yticklabels()],
    )


def test_the_matrix_shows_every_number_at_its_place(tmp_path: Path) -> None:
    _, axes = drawn(scores.score_matrix(record(tmp_path, matrix=MATRIX)))
    assert cells(axes) == MATRIX
    assert set(frames(axes)) == {(0, 0), (1, 1), (2, 2)}
    printed = {tuple(map(int, t.get_position()[::-1])): t.get_text() for t in axes.texts}
    assert printed == {
        (i, j): f"{value:g}" for i, row in enumerate(MATRIX) for j, value in enumerate(row) if value
    }
    assert labels(axes) == (["task_a", "task_b", "task_c"],) * 2
    assert axes.yaxis.get_inverted()  # the first phase on top
    assert axes.images[0].get_clim() == (0, 100)


def test_what_was_not_evaluated_is_hatched_and_has_no_number(tmp_path: Path) -> None:
    _, axes = drawn(scores.score_matrix(record(tmp_path, matrix=MATRIX)))
    assert axes.patch.get_hatch()
    assert not any(text.get_position() == (2, 0) for text in axes.texts)
    assert axes.images[0].cmap.get_bad()[3] == 0  # see-through


def test_zero_is_a_score(tmp_path: Path) -> None:
    _, axes = drawn(scores.score_matrix(record(tmp_path, num_tasks=1, matrix=[[0.0]])))
    assert cells(axes) == [[0.0]]
    assert [text.get_text() for text in axes.texts] == ["0"]


def test_the_untrained_model_stands_above(tmp_path: Path) -> None:
    run = record(tmp_path, matrix=MATRIX)
    run = RunRecord(
        folder=run.folder,
        results={**run.results, "untrained": [5.0, 6.0, 7.0]},
        boundaries=(),
        curves=(),
    )
    _, axes = drawn(scores.score_matrix(run))
    assert cells(axes) == [[5.0, 6.0, 7.0], *MATRIX]
    assert labels(axes)[1] == ["(untrained)", "task_a", "task_b", "task_c"]
    assert set(frames(axes)) == {(1, 0), (2, 1), (3, 2)}


def test_tasks_learnt_at_once_are_one_row_without_a_diagonal(tmp_path: Path) -> None:
    run = record(tmp_path, joint=True, num_tasks=4)
    _, axes = drawn(scores.score_matrix(run))
    assert cells(axes) == run.matrix
    assert frames(axes) == []
    assert labels(axes)[1] == ["all_tasks"]
    for draw in (scores.trajectories, scores.average_performance, scores.forgetting):
        assert draw(run) is None


def test_a_hundred_tasks_are_numbered_not_named(tmp_path: Path) -> None:
    run = record(tmp_path, num_tasks=100, test_rows=2)
    _, axes = drawn(scores.score_matrix(run))
    assert cells(axes) == run.matrix
    assert len(axes.texts) == 0
    assert labels(axes)[0] == ["1", *(str(n) for n in range(10, 101, 10))]
    places = axes.get_xticks()
    assert [int(place) + 1 for place in places] == [int(text) for text in labels(axes)[0]]


def test_an_untrained_row_does_not_shift_the_numbers(tmp_path: Path) -> None:
    run = record(tmp_path, num_tasks=50, test_rows=2)
    before = {**run.results, "untrained": [0.0] * 50}
    run = RunRecord(folder=run.folder, results=before, boundaries=(), curves=())
    _, axes = drawn(scores.score_matrix(run))
    places = axes.get_yticks()
    assert [int(place) for place in places] == [int(text) for text in labels(axes)[1]]


def test_trajectories_are_the_columns(tmp_path: Path) -> None:
    figure, _ = drawn(scores.trajectories(record(tmp_path, matrix=MATRIX)))
    lines = [axes.lines[0] for axes in figure.axes]
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3]] * 3
    columns = np.array(MATRIX, dtype=float).T
    np.testing.assert_array_equal([line.get_ydata() for line in lines], columns)
    assert [axes.get_title() for axes in figure.axes] == ["1 task_a", "2 task_b", "3 task_c"]
    shaded = [axes.patches[0].get_bbox().x1 for axes in figure.axes]  # until it is learnt
    assert shaded == [0.5, 1.5, 2.5]
    assert lines[0].get_color() != lines[1].get_color() == lines[2].get_color()


def test_many_trajectories_share_a_panel_where_the_first_stands_out(tmp_path: Path) -> None:
    run = record(tmp_path, num_tasks=30, test_rows=5)
    _, axes = drawn(scores.trajectories(run))
    columns = np.array(run.matrix, dtype=float).T
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), columns[0])
    others = axes.collections[0].get_segments()
    assert len(others) == 29
    for j, segment in enumerate(others, start=1):  # from when each was learnt
        np.testing.assert_array_equal(segment[:, 0], range(j + 1, 31))
        np.testing.assert_array_equal(segment[:, 1], columns[j, j:])


def test_average_performance_so_far_and_when_learnt(tmp_path: Path) -> None:
    _, axes = drawn(scores.average_performance(record(tmp_path, matrix=MATRIX)))
    when_learnt, now = axes.lines
    np.testing.assert_allclose(now.get_ydata(), [70, (80 + 60.5) / 2, (75 + 62.5 + 90) / 3])
    np.testing.assert_allclose(when_learnt.get_ydata(), [70, (70 + 60.5) / 2, (70 + 60.5 + 90) / 3])
    assert [text.get_text() for text in axes.texts] == ["AP 75.8"]
    assert axes.texts[0].xy == pytest.approx((2, 227.5 / 3))


def test_an_average_of_unknown_scores_is_not_drawn(tmp_path: Path) -> None:
    matrix = [[50.0, None], [None, 90.0]]
    _, axes = drawn(scores.average_performance(record(tmp_path, num_tasks=2, matrix=matrix)))
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [50.0, np.nan])
    assert len(axes.texts) == 0  # no AP


def test_forgetting_is_the_best_earlier_score_minus_the_final_one(tmp_path: Path) -> None:
    _, axes = drawn(scores.forgetting(record(tmp_path, matrix=MATRIX)))
    bars = axes.patches
    assert [bar.get_height() for bar in bars] == [80.0 - 75.0, 60.5 - 62.5]
    assert [bool(bar.get_hatch()) for bar in bars] == [False, True]  # the second gained
    assert [text.get_text() for text in axes.texts] == ["5", "-2"]
    assert labels(axes)[0] == ["task_a", "task_b"]
    rate = next(line for line in axes.lines if line.get_label() == "mean 1.5")
    assert list(rate.get_ydata()) == [1.5, 1.5]


def test_unknown_forgetting_has_a_question_mark(tmp_path: Path) -> None:
    matrix = [[50.0, None, None], [None, 60.0, None], [40.0, 30.0, 90.0]]
    _, axes = drawn(scores.forgetting(record(tmp_path, matrix=matrix)))
    said = {text.get_text(): text.xy[0] for text in axes.texts if text.get_text()}
    assert said == {"30": 1.0, "?": 0}
    np.testing.assert_array_equal([bar.get_height() for bar in axes.patches], [np.nan, 30])
    assert len(axes.lines) == 1  # zero, but no mean


def test_unknown_forgetting_is_marked_among_many_tasks(tmp_path: Path) -> None:
    run = record(tmp_path, num_tasks=30, test_rows=5)
    run.matrix[28][3] = None
    _, axes = drawn(scores.forgetting(run))
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("?", 3)]
    assert np.isnan(axes.patches[3].get_height())


def test_forgetting_that_is_nowhere_known_has_no_figure(tmp_path: Path) -> None:
    matrix = [[50.0, None], [None, 60.0]]
    assert scores.forgetting(record(tmp_path, num_tasks=2, matrix=matrix)) is None


def test_one_task_has_a_matrix_only(tmp_path: Path) -> None:
    run = record(tmp_path, num_tasks=1)
    _, axes = drawn(scores.score_matrix(run))
    assert cells(axes) == run.matrix
    for draw in (scores.trajectories, scores.average_performance, scores.forgetting):
        assert draw(run) is None
