"""What the figures of importance and fusion show, read back from their axes."""

from __future__ import annotations

from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kif_lightning.reporting.figures import fusion_audit
from kif_lightning.reporting.figures.style import styled
from kif_lightning.reporting.run_record import RunRecord, read_run
from tests.helpers.fake_runs import fake_run, llama_units

UNITS = ["enc.0.q/rank:0", "enc.0.q/rank:1", "enc.1.q/rank:0", "enc.1.q/rank:1", "head"]
FIRST = {"number": 1, "task": "one", "unit_ids": UNITS, "current": [0.0, 1.0, 0.5, 0.5, 0.25]}
SECOND = {
    "number": 2,
    "task": "two",
    "unit_ids": UNITS,
    "current": [0.2, 0.4, 0.0, 1.0, 0.5],
    "weight": [0.5, 1.0, 0.25, 0.75, 0.0],
    "classes": [
        *("unimportant", "previous_specific", "task_shared", "unimportant", "current_specific"),
    ],
}


def record(*boundaries: dict[str, Any]) -> RunRecord:
    return RunRecord(folder=Path(), results={}, boundaries=boundaries, curves=())


def panels(axes: Any) -> dict[str, Any]:
    return {ax.get_title(): ax.images[0].get_array().tolist() for ax in axes if ax.get_title()}


def test_importance_is_the_mean_over_a_layer_and_module() -> None:
    figure = fusion_audit.importance(record(FIRST, SECOND))
    assert figure is not None
    assert panels(figure.axes) == {
        "enc.q": [[0.5, pytest.approx(0.3)], [0.5, 0.5]],  # layers x tasks
        "not in a layer": [[0.25, 0.5]],
    }
    named = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert named == ["one", "two"]
    assert [text.get_text() for text in figure.axes[1].get_yticklabels()] == ["head"]
    assert figure.axes[0].images[0].get_clim() == (1e-3, 1.0)


def test_units_of_one_task_alone_leave_the_others_empty() -> None:
    other = {**FIRST, "task": "two", "unit_ids": ["dec.0.q"], "current": [1.0]}
    figure = fusion_audit.importance(record(FIRST, other))
    assert figure is not None
    assert panels(figure.axes)["dec.q"] == [[None, 1.0]]


def test_where_the_past_was_kept() -> None:
    figure = fusion_audit.fusion_where(record(FIRST, SECOND))
    assert figure is not None
    assert panels(figure.axes) == {"enc.q": [[0.75], [0.5]], "not in a layer": [[0.0]]}
    assert figure.axes[0].images[0].get_clim() == (0.0, 1.0)  # as far as it goes, about 0.5
    same = {**SECOND, "weight": [0.5] * 5}
    figure = fusion_audit.fusion_where(record(same))
    assert figure is not None
    assert figure.axes[0].images[0].get_clim() == pytest.approx((0.45, 0.55))


def test_classes_are_counted() -> None:
    figure = fusion_audit.fusion_classes(record(FIRST, SECOND))
    assert figure is not None
    (axes,) = figure.axes
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axes.containers}
    assert heights == {
        "task-shared": [1],
        "previous-specific": [1],
        "current-specific": [1],
        "unimportant": [2],
    }
    assert [bar.get_y() for c in axes.containers for bar in c] == [0, 1, 2, 3]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["two"]  # not the first task
    looks = {(bar.get_facecolor(), bar.get_hatch()) for c in axes.containers for bar in c}
    assert len(looks) == 4
    assert len({bar.get_hatch() for c in axes.containers for bar in c}) == 4  # in grey, too


def test_the_weights_lie_in_their_bins_and_entropy_is_in_bits() -> None:
    figure = fusion_audit.fusion_weights(record(FIRST, SECOND))
    assert figure is not None
    axes: list[Any] = figure.axes
    upper, lower = axes[:2]
    column = [row[0] for row in upper.images[0].get_array().tolist()]
    assert len(column) == 21
    filled = {place: share for place, share in enumerate(column) if share is not None}
    assert filled == {
        0: 20.0,
        5: 20.0,
        10: 20.0,
        15: 20.0,
        20: 20.0,
    }  # floor(21 lam); 1 in the last
    left, right, bottom, top = upper.images[0].get_extent()
    assert (left, right, bottom, top) == (-0.5, 0.5, 1, 0)  # the first bin begins at 0 ...
    assert upper.get_ylim() == (0, 1)  # ... which is below
    quarter = -(0.25 * log2(0.25) + 0.75 * log2(0.75))
    assert list(lower.lines[0].get_ydata()) == [pytest.approx((1 + 0 + 2 * quarter + 0) / 5)]


def test_many_boundaries_are_numbered_as_their_tasks() -> None:
    many = [{**SECOND, "number": number} for number in range(2, 51)]
    figure = fusion_audit.fusion_classes(record(FIRST, *many))
    assert figure is not None
    (axes,) = figure.axes
    ticks = {int(text.get_text()): text.get_position()[0] for text in axes.get_xticklabels()}
    assert ticks == {2: 0, 10: 8, 20: 18, 30: 28, 40: 38, 50: 48}


def test_without_a_fused_boundary_there_is_importance_alone() -> None:
    null = {**FIRST, "weight": None, "classes": None}
    for run in (record(FIRST), record(null)):
        assert fusion_audit.importance(run) is not None
        for draw in (
            fusion_audit.fusion_classes,
            fusion_audit.fusion_weights,
            fusion_audit.fusion_where,
        ):
            assert draw(run) is None
    assert fusion_audit.importance(record()) is None


def test_all_importances_zero_can_be_drawn() -> None:
    figure = fusion_audit.importance(record({**FIRST, "current": [0.0] * 5}))
    assert figure is not None
    with styled():
        figure.canvas.draw()
    assert panels(figure.axes)["enc.q"] == [[0.0], [0.0]]


def test_a_seven_billion_model(tmp_path: Path) -> None:
    run = read_run(fake_run(tmp_path, num_tasks=2, unit_ids=llama_units(32, 8), steps=0))
    figure = fusion_audit.importance(run)
    assert figure is not None
    shown = panels(figure.axes)
    assert len(shown) == 7
    values = np.array(run.boundaries[1]["current"]).reshape(32, 7, 8).mean(-1)
    np.testing.assert_allclose(np.array(shown["mlp.down_proj"])[:, 1], values[:, 6], rtol=1e-12)
