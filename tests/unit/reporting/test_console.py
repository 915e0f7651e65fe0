"""What is shown of the score matrix while a run goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kif_lightning.reporting.console import MOST_COLUMNS, RunConsole, not_evaluated


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


def show(
    said: io.StringIO, num_tasks: int, *rows: list[float | None], stand_ins: tuple[str, ...] = ()
) -> None:
    console = RunConsole(Console(file=said, width=400, soft_wrap=True))
    console.stand_ins = stand_ins
    names = [f"task{i}" for i in range(num_tasks)]
    console.scores_so_far(names, rows, None, names, len(rows))


def test_a_matrix_that_fits_is_shown_whole(said: io.StringIO) -> None:
    rest: list[float | None] = [None] * (MOST_COLUMNS - 1)
    show(said, MOST_COLUMNS, [12.5, *rest], [30.0, 62.5, *rest[1:]])
    for part in ("task0", "task1", "12.5", "30.0", "62.5"):
        assert part in said.getvalue()


def test_of_a_wider_one_the_last_row_is_told_in_a_line(said: io.StringIO) -> None:
    rest: list[float | None] = [None] * MOST_COLUMNS
    show(said, MOST_COLUMNS + 1, [12.5, *rest], [30.0, 61.0, *rest[1:]])
    assert said.getvalue() == "Scores after task 2 (task1): 45.5% on average over 2 tasks.\n"


def test_what_is_not_learnt_yet_does_not_count_and_stand_ins_are_told(said: io.StringIO) -> None:
    rest: list[float | None] = [None] * (MOST_COLUMNS - 1)
    show(said, MOST_COLUMNS + 1, [12.5, 99.0, *rest], stand_ins=("stand-in data",))
    told = "Scores after task 1 (task0): 12.5% on average over 1 tasks - on stand-in data.\n"
    assert said.getvalue() == told


def test_a_row_without_scores_says_nothing(said: io.StringIO) -> None:
    show(said, MOST_COLUMNS + 1, [None] * (MOST_COLUMNS + 1))
    assert said.getvalue() == ""


def test_what_was_not_evaluated_is_told_and_never_a_blank(said: io.StringIO) -> None:
    show(said, 3, [None, None, None], [40.0, 60.0, None])
    lines = [line.split() for line in said.getvalue().splitlines()]
    assert ["1", "task0", "-"] in lines
    assert ["2", "task1", "40.0", "60.0"] in lines
    assert said.getvalue().endswith("-: not evaluated\n")


def test_metrics_that_are_absent_have_a_reason(said: io.StringIO) -> None:
    names = [{"name": f"task{i}"} for i in range(12)]
    console = RunConsole(Console(file=said, width=400, soft_wrap=True))
    results = {"metrics": {}, "formulas": {}, "tasks": names, "stand_ins": ["stand-in data"]}
    console.final({**results, "score_matrix": [[None] * 10 + [50.0, 70.0]]})
    told = "task7 and 2 more, so metrics over all 12 tasks are absent; the mean of the other scores"
    assert said.getvalue().endswith(f"{told} (2) is 60.0% - on stand-in data.\n")
    assert "Transfer metrics" not in said.getvalue()
    assert not_evaluated({"tasks": names[:1], "score_matrix": [[1.0]]}) == ""
