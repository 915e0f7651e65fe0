"""General ability as a figure: the record's own numbers, gaps, stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kif_lightning.reporting.figures.probe import general_ability
from kif_lightning.reporting.figures.style import save, styled
from kif_lightning.reporting.run_record import RunRecord

PROBE: dict[str, Any] = {
    "name": "general",
    "stand_in": True,
    "rows": 64,
    "metric": "exact_match",
    "sha256": "abc",
    "untrained": {"score": 50.0, "loss": 2.0},
    "after": [{"score": 40.0, "loss": 2.5}, {"score": 30.0, "loss": None}],
}


def record(probe: dict[str, Any] | None, stand_ins: tuple[str, ...] = ()) -> RunRecord:
    results: dict[str, Any] = {
        "stand_ins": list(stand_ins),
        "tasks": [{"name": "colour"}, {"name": "shape"}],
        "phases": [{"name": "colour"}, {"name": "shape"}],
        "score_matrix": [[1.0, None], [2.0, 3.0]],
    }
    if probe is not None:
        results["probe"] = probe
    return RunRecord(folder=Path(), results=results, boundaries=(), curves=())


def drawn(**changed: Any) -> Any:
    with styled():
        return general_ability(record({**PROBE, **changed}, ("stand-in data",)))


def test_a_run_without_a_probe_has_no_such_figure() -> None:
    assert general_ability(record(None)) is None


def test_both_lines_are_the_records_numbers() -> None:
    above, below = drawn().axes
    losses, scores = (axes.lines[0].get_ydata().tolist() for axes in (above, below))
    assert losses[:2] == [2.0, 2.5]
    assert losses[2] != losses[2]  # a gap
    assert scores == [50.0, 40.0, 30.0]
    assert [axes.lines[1].get_ydata()[0] for axes in (above, below)] == [2.0, 50.0]
    assert [label.get_text() for label in below.get_xticklabels()] == ["before", "colour", "shape"]
    assert "lower is better" in above.get_ylabel()
    assert below.get_ylim()[0] == 0


@pytest.mark.parametrize(("stands_in", "more"), [(True, ", stand-in probe"), (False, "")])
def test_rows_that_only_stand_for_a_measurement_say_so(stands_in: bool, more: str) -> None:
    above, _ = drawn(stand_in=stands_in).axes
    assert above.get_title("left") == f"64 rows of no task (probe general{more})"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_it_is_saved_even_without_one_finite_loss(tmp_path: Path, ending: str) -> None:
    nowhere = {"score": 0.0, "loss": None}
    figure = drawn(untrained=nowhere, after=[nowhere, nowhere])
    with styled():
        save(figure, tmp_path / f"a.{ending}")
    assert (tmp_path / f"a.{ending}").stat().st_size > 1000


def test_many_phases_are_numbered_and_a_long_name_is_cut() -> None:
    phases = [{"name": f"{number} {'x' * 60}"} for number in range(1, 61)]
    looks = [{"score": 1.0, "loss": 1.0}] * 60
    for number in (2, 60):
        run = record({**PROBE, "after": looks[:number]})
        run = RunRecord(
            folder=Path(),
            results={**run.results, "phases": phases[:number]},
            boundaries=(),
            curves=(),
        )
        figure = general_ability(run)
        assert figure is not None
        assert figure.get_figwidth() <= 9
        said = [label.get_text() for label in figure.axes[1].get_xticklabels()]
        if number == 60:
            assert said == ["0", "10", "20", "30", "40", "50", "60"]
            assert list(figure.axes[1].get_xticks()) == [0, 10, 20, 30, 40, 50, 60]
        assert max(map(len, said)) <= 22
