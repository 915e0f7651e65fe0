"""Transfer metrics on a matrix worked by hand."""

from __future__ import annotations

import pytest

from kif_lightning.metrics import FORMULAS, transfer_metrics
from kif_lightning.metrics.transfer import (
    PEER_FORMULAS,
    ScoreMatrix,
    average_so_far,
    forgetting_by_task,
    forgetting_rate,
    forgetting_rate_sapt,
    peer_variants,
)

MATRIX = [
    [70.0, 30.0, 10.0],
    [80.0, 60.0, 20.0],
    [75.0, 50.0, 90.0],
]
SINGLE = [75.0, 50.0, 85.0]
UNTRAINED = [5.0, 25.0, 15.0]
BY_HAND = {
    "average_performance": (75 + 50 + 90) / 3,
    "forgetting_rate": ((80 - 75) + (60 - 50)) / 2,  # the best of task 0 came after task 1
    "backward_transfer": ((75 - 70) + (50 - 60)) / 2,
    "forward_transfer_vs_single_task": ((70 - 75) + (60 - 50) + (90 - 85)) / 3,
    "forward_transfer_zero_shot": ((30 - 25) + (20 - 15)) / 2,
}


def test_by_hand() -> None:
    found = transfer_metrics(MATRIX, single_task=SINGLE, untrained=UNTRAINED)
    assert found == pytest.approx(BY_HAND, rel=1e-14)
    assert set(found) == set(FORMULAS)


def test_after_each_task_and_of_each_task() -> None:
    assert average_so_far(MATRIX) == pytest.approx([70, (80 + 60) / 2, (75 + 50 + 90) / 3])
    assert average_so_far([[None, 3.0], [1.0, None]]) == [None, None]
    assert forgetting_by_task(MATRIX) == [80 - 75, 60 - 50]
    assert forgetting_by_task([[1.0, None], [None, 2.0]]) == [None]
    assert forgetting_by_task([[42.0]]) == []


def test_two_tasks_that_gain() -> None:
    found = transfer_metrics([[40.0, 10.0], [55.0, 70.0]])
    assert found == {
        "average_performance": 62.5,
        "forgetting_rate": -15.0,  # the last row is not among the best: it can be negative
        "backward_transfer": 15.0,
    }


def test_one_task_has_a_performance_only() -> None:
    found = transfer_metrics([[42.0]], single_task=[40.0], untrained=[1.0])
    assert found == {"average_performance": 42.0}


@pytest.mark.parametrize("given", ["single_task", "untrained", None])
def test_a_metric_without_its_input_is_absent(given: str | None) -> None:
    inputs = {"single_task": SINGLE, "untrained": UNTRAINED}
    needs = {
        "single_task": "forward_transfer_vs_single_task",
        "untrained": "forward_transfer_zero_shot",
    }
    found = transfer_metrics(MATRIX, **({given: inputs[given]} if given else {}))
    absent = {metric for name, metric in needs.items() if name != given}
    assert set(found) == set(FORMULAS) - absent


@pytest.mark.parametrize(
    ("row", "column", "absent"),
    [
        (0, 2, set()),  # no metric reads it
        (0, 1, {"forward_transfer_zero_shot"}),
        (1, 2, {"forward_transfer_zero_shot"}),
        (1, 0, {"forgetting_rate"}),  # could have been the best
        (0, 0, {"forgetting_rate", "backward_transfer", "forward_transfer_vs_single_task"}),
        (2, 2, {"average_performance", "forward_transfer_vs_single_task"}),
        (2, 0, {"average_performance", "forgetting_rate", "backward_transfer"}),
    ],
)
def test_a_missing_score_takes_away_what_reads_it(row: int, column: int, absent: set[str]) -> None:
    matrix: list[list[float | None]] = [list(scores) for scores in MATRIX]
    matrix[row][column] = None
    found = transfer_metrics(matrix, single_task=SINGLE, untrained=UNTRAINED)
    expected = {name: value for name, value in BY_HAND.items() if name not in absent}
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("single_task", "untrained", "absent"),
    [
        ([75.0, None, 85.0], UNTRAINED, {"forward_transfer_vs_single_task"}),
        (SINGLE, [5.0, 25.0, None], {"forward_transfer_zero_shot"}),
        (SINGLE, [None, 25.0, 15.0], set()),  # the first task has nothing before it
    ],
)
def test_a_missing_score_of_another_run(
    single_task: list[float | None], untrained: list[float | None], absent: set[str]
) -> None:
    found = transfer_metrics(MATRIX, single_task=single_task, untrained=untrained)
    assert set(found) == set(FORMULAS) - absent


@pytest.mark.parametrize("matrix", [[], [[]], [[1.0], [2.0]], [[1.0, 2.0], [3.0]]])
def test_a_matrix_that_is_not_square(matrix: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="score matrix must be square"):
        transfer_metrics(matrix)


@pytest.mark.parametrize("name", ["single_task", "untrained"])
def test_a_vector_of_another_length(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must hold 3 scores, got 2"):
        transfer_metrics(MATRIX, **{name: [1.0, 2.0]})


def test_tasks_learnt_at_once_have_an_average_alone() -> None:
    assert transfer_metrics([[30.0, 60.0, 90.0]]) == {"average_performance": 60.0}
    assert transfer_metrics([[30.0, None]]) == {}


def test_peer_variants_by_hand() -> None:
    found = peer_variants(MATRIX)
    by_hand = {
        "backward_transfer_sapt": ((75 - 70) + (50 - 60)) / 3,
        "forgetting_rate_sapt": ((80 - 75) + (60 - 50)) / 2,
        "forward_transfer_sapt": (70 + 60 + 90) / 3 - 50.94,
    }
    assert found == pytest.approx(by_hand, rel=1e-12)
    assert found.keys() == PEER_FORMULAS.keys()
    assert not PEER_FORMULAS.keys() & FORMULAS.keys()


def test_peers_see_nothing_above_the_diagonal() -> None:
    # Our own row 0 has 95 on a task not learnt yet; padded rows do not.
    zero_shot: ScoreMatrix = [[70.0, 95.0, 10.0], *MATRIX[1:]]
    blank: ScoreMatrix = [[70.0, None, None], [80.0, 60.0, None], MATRIX[2]]
    assert peer_variants(zero_shot) == peer_variants(blank) == peer_variants(MATRIX)


def test_padding_with_zeros_matters_to_negative_scores_alone() -> None:
    negative = [[5.0, 0.0, 0.0], [4.0, -3.0, 0.0], [3.0, -7.0, 1.0]]
    assert forgetting_rate(negative) == ((5 - 3) + (-3 + 7)) / 2
    assert forgetting_rate_sapt(negative) == ((5 - 3) + (0 + 7)) / 2


def test_peer_variants_without_their_inputs() -> None:
    assert peer_variants([[50.0]]) == {}
    holes: ScoreMatrix = [[None, None, None], [80.0, 60.0, None], [75.0, 50.0, 90.0]]
    assert peer_variants(holes) == {}
    end_only: ScoreMatrix = [[70.0, None], [None, 60.0]]
    assert peer_variants(end_only) == pytest.approx({"forward_transfer_sapt": 65 - 50.94})
