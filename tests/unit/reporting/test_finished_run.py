from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from kif_lightning.errors import UserError
from kif_lightning.reporting.finished_run import FinishedRun
from tests.helpers.fake_runs import STAND_INS, fake_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return FinishedRun.open(fake_run(tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="module")
def results(run: FinishedRun) -> dict:
    return json.loads((run.folder / "results.json").read_text())


def test_the_matrix_and_the_metrics_are_those_written(run: FinishedRun, results: dict) -> None:
    matrix = run.score_matrix()
    found = [[None if pd.isna(x) else x for x in row] for row in matrix.to_numpy().tolist()]
    assert found == results["score_matrix"]
    assert run.metrics == results["metrics"]
    assert matrix.loc["task_b", "task_a"] == results["score_matrix"][1][0]


def test_scores_are_the_matrix_row_by_row(run: FinishedRun, results: dict) -> None:
    measured = [s for row in results["score_matrix"] for s in row if s is not None]
    scores = run.scores()
    assert list(scores["score"]) == measured
    assert list(scores["after"]) == ["task_a", *["task_b"] * 2, *["task_c"] * 3]


def test_tasks_when_learnt_and_at_the_end(run: FinishedRun, results: dict) -> None:
    matrix, tasks = results["score_matrix"], run.tasks()
    assert list(tasks["name"]) == ["task_a", "task_b", "task_c"]
    assert list(tasks["just_learnt"]) == [matrix[i][i] for i in range(3)]
    assert list(tasks["at_the_end"]) == matrix[-1]
    assert tasks["best_before_the_last"][0] == max(matrix[0][0], matrix[1][0])
    assert pd.isna(tasks["best_before_the_last"][2])
    changes = (tasks["at_the_end"] - tasks["just_learnt"])[:-1]
    assert changes.mean() == pytest.approx(run.metrics["backward_transfer"])


@pytest.mark.parametrize(("after", "on"), [("task_c", "task_a"), (3, 1), ("3", "task_a")])
def test_predictions_by_name_and_number(
    run: FinishedRun, results: dict, after: str | int, on: str | int
) -> None:
    answers = run.predictions(after=after, on=on)
    assert answers["score"].mean() == pytest.approx(results["score_matrix"][2][0])
    assert answers["prompt"].notna().all()


@pytest.mark.parametrize(
    ("after", "on", "told"),
    [
        ("task_a", "task_c", "no answers to task_c after task_a"),
        (0, 1, r"after must be .* \(1 to 3\), got 0"),
        (1, "task_d", "on must be .* got 'task_d'"),
    ],
)
def test_what_is_not_there_is_told(
    run: FinishedRun, after: str | int, on: str | int, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        run.predictions(after=after, on=on)


def test_units_are_the_importance_files(run: FinishedRun) -> None:
    units = run.units()
    assert set(units[units["after"] == "task_a"]["weight"].isna()) == {True}
    written = json.loads(next((run.folder / "importance").glob("02_*.json")).read_text())
    second = run.units(after=2)
    assert list(second["unit"]) == written["unit_ids"]
    for column in ("score", "current", "accumulated", "previous", "weight", "classes"):
        assert list(second[column]) == written[column]


def test_a_method_without_units_says_so(tmp_path: Path) -> None:
    plain = FinishedRun.open(fake_run(tmp_path / "run", fuses=False, method="seq_lora"))
    with pytest.raises(UserError, match="seq_lora measures no importance"):
        plain.units()


def test_losses_on_the_runs_own_axis(run: FinishedRun) -> None:
    losses = run.losses()
    assert list(losses["step"]) == list(range(1, 19))
    assert list(losses["task"].unique()) == ["task_a", "task_b", "task_c"]


def test_no_frame_loses_its_stamp(run: FinishedRun) -> None:
    stamp = ", ".join(STAND_INS)
    frames = [
        *(run.scores(), run.tasks(), run.units(), run.losses()),
        run.predictions(after=1, on=1),
    ]
    for frame in frames:
        assert set(frame["stand_ins"]) == {stamp}
    for frame in (*frames, run.score_matrix()):
        assert frame.attrs["stand_ins"] == STAND_INS
    told = "stand-in data and stand-in model"
    assert told in repr(run.score_matrix())
    assert told in repr(run)
    assert told in run._repr_html_()


def test_without_stand_ins_none_are_told(tmp_path: Path) -> None:
    real = FinishedRun.open(fake_run(tmp_path / "run", stand_ins=()))
    assert "stand-in" not in repr(real) + real._repr_html_() + repr(real.score_matrix())


def test_tasks_learnt_at_once(tmp_path: Path) -> None:
    joint = FinishedRun.open(fake_run(tmp_path / "run", joint=True, fuses=False))
    assert joint.score_matrix().shape == (1, 3)
    assert joint.tasks()["just_learnt"].isna().all()
    assert list(joint.tasks()["at_the_end"]) == list(joint.score_matrix().iloc[0])


def test_html_is_escaped(tmp_path: Path) -> None:
    odd = FinishedRun.open(fake_run(tmp_path / "run", method="<b>"))
    assert "<b> on" not in odd._repr_html_()


def test_a_figure_by_its_name(run: FinishedRun) -> None:
    assert run.figure("score_matrix").axes
    with pytest.raises(UserError, match="must be 'score_matrix' or"):
        run.figure("matrix")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Of the third task alone; two were learnt, and scored, in an earlier run."""
    matrix = [[90.0, None, None], [80.0, 70.0, None], [None, None, 60.0]]
    folder = fake_run(tmp_path_factory.mktemp("runs") / "run", matrix=matrix)
    for number in (1, 2):
        next((folder / "importance").glob(f"0{number}_*.json")).unlink()
    return FinishedRun.open(folder)


def test_an_extended_run_has_its_own_boundaries(extended: FinishedRun) -> None:
    for after in (3, "task_c"):
        assert set(extended.units(after=after)["after"]) == {"task_c"}
    for after in (1, "task_b"):
        with pytest.raises(UserError, match="learnt in a run before this one"):
            extended.units(after=after)


def test_an_extended_run_says_what_it_lacks(extended: FinishedRun) -> None:
    with pytest.raises(UserError, match="not in this folder"):
        extended.predictions(after=2, on=1)
    with pytest.raises(UserError, match="not evaluated then"):
        extended.predictions(after=3, on=1)
    for text in (repr(extended), extended._repr_html_()):
        assert "Not evaluated at the end: task_a, task_b" in text


def test_a_frame_without_rows_has_its_columns(tmp_path: Path) -> None:
    bare = FinishedRun.open(fake_run(tmp_path / "run", steps=0, matrix=[[None] * 3] * 3))
    assert list(bare.losses()) == ["task", "step", "loss", "stand_ins"]
    assert list(bare.scores()) == ["after", "task", "score", "stand_ins"]


def test_the_stamp_is_in_the_matrix_file_too(run: FinishedRun) -> None:
    assert "stand-in data and stand-in model" in run.score_matrix().to_csv().splitlines()[0]


def test_runs_can_be_keys(run: FinishedRun) -> None:
    assert {run: 1}[run] == 1
