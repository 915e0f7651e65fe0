"""Reading a run's folder: what is missing is empty, what is damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kif_lightning.errors import UserError
from kif_lightning.reporting.run_record import read_run

NUMBERS = (9, 10, 99, 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of an earlier version, with nothing but results."""
    names = [{"name": "sea"}, {"name": "land"}]
    results = {
        "schema_version": 2,
        "metrics": {},
        "protocol": {},
        "tasks": names,
        "phases": names,
        "score_matrix": [[50.0, None], [25.0, 75.0]],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_what_a_run_did_not_keep_is_empty(folder: Path) -> None:
    record = read_run(folder)
    assert (record.tasks, record.phases) == (["sea", "land"], ["sea", "land"])
    assert record.matrix[1] == [25.0, 75.0]
    assert record.boundaries == record.curves == ()
    assert record.predictions(1, 0) == []
    assert record.inputs(0) == {}
    assert record.stand_ins == []


def test_files_come_in_the_order_of_learning(folder: Path) -> None:
    (folder / "curves").mkdir()
    for number in reversed(NUMBERS):
        (folder / "curves" / f"{number:02d}_t.json").write_text(json.dumps({"task": number}))
    (folder / "curves" / "notes.json").write_text("{}")  # somebody's own
    curves = read_run(folder).curves
    assert [(curve["task"], curve["number"]) for curve in curves] == [(n, n) for n in NUMBERS]


def test_predictions_are_of_the_phase_and_the_task(folder: Path) -> None:
    (folder / "predictions").mkdir()
    lines = '{"id": "7", "prediction": "x\u2028y", "score": 0.0}\n'
    (folder / "predictions" / "after_02_land__on_01_sea.jsonl").write_text(lines)
    record = read_run(folder)
    assert [line["prediction"] for line in record.predictions(1, 0)] == ["x\u2028y"]
    assert record.predictions(0, 0) == []


def test_no_run_and_damaged_files_are_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no results\.json in .*run it to the end first"):
        read_run(folder / "elsewhere")
    (folder / "test_rows").mkdir()
    for damaged in ('{"id": "1", "inp', "7"):
        (folder / "test_rows" / "01_sea.jsonl").write_text(damaged)
        with pytest.raises(UserError, match=r"01_sea\.jsonl is damaged"):
            read_run(folder).inputs(0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema_version": 1}, r"version 2, got 1 in .*results\.json, made by an earlier version"),
        ({"schema_version": None}, "got None in .*an earlier version"),
        ({"schema_version": 3}, "got 3 in .*another version"),
        ({"metrics": None, "tasks": "sea"}, "damaged .no usable tasks, metrics."),
        ({"phases": [{"name": "sea"}, {}]}, "damaged .no usable phases."),
    ],
)
def test_results_that_cannot_be_used_are_told(
    folder: Path, change: dict[str, object], told: str
) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=told):
        read_run(folder)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"damaged \(expected a JSON object, got \[\]\)"):
        read_run(folder)
