from __future__ import annotations

import pytest

from kif_lightning.tracking import tables


def boundary(num_modules: int, ranks: int) -> dict[str, object]:
    """Unit u of u = 0, 1, ... has score u; the first half of each module is shared."""
    units = [f"m{m}/rank:{r}" for m in range(num_modules) for r in range(ranks)]
    numbers = [float(u) for u in range(len(units))]
    kinds = ["task_shared" if u % ranks < ranks - 1 else "unimportant" for u in range(len(units))]
    return {
        "unit_ids": units,
        **dict.fromkeys(("score", "current", "accumulated", "previous"), numbers),
        "weight": [0.5] * len(units),
        "classes": kinds,
    }


def test_transfer_so_far_looks_at_the_learnt_tasks_alone() -> None:
    # Task 3 has been scored before it was learnt: it counts for nothing yet.
    matrix = [[80.0, 10.0, None], [60.0, 90.0, 20.0]]
    assert tables.transfer_so_far(matrix, 2, None) == {
        "transfer/average_performance": 75.0,
        "transfer/forgetting_rate": 20.0,
        "transfer/backward_transfer": -20.0,
    }
    zero_shot = tables.transfer_so_far(matrix, 2, [1.0, 4.0, 3.0])
    assert zero_shot["transfer/forward_transfer_zero_shot"] == 6.0
    assert tables.transfer_so_far(matrix[:1], 1, None) == {"transfer/average_performance": 80.0}
    # All at once: one row, every task learnt.
    assert tables.transfer_so_far([[1.0, 2.0, 6.0]], 3, None) == {
        "transfer/average_performance": 3.0
    }


def test_scores_that_were_not_measured_are_absent() -> None:
    assert tables.scores(["a", "b"], [None, 0.0]) == {"score/b": 0.0}
    # Their metrics, too: the diagonal alone tells no average at the end.
    assert tables.transfer_so_far([[50.0, None], [None, 70.0]], 2, None) == {}


def test_seconds_of_the_last_task_and_of_all() -> None:
    phases = [{"seconds": {"train": 2.0, "evaluate": 1.0}}, {"seconds": {"train": 4.0}}]
    assert tables.cost_so_far(phases) == {"cost/train_seconds": 4.0, "cost/total_seconds": 7.0}


def test_numbers_of_a_boundary() -> None:
    found = tables.boundary_numbers(boundary(2, 4))
    assert found["boundary/mean_weight_of_the_past"] == 0.5
    assert found["boundary/units_task_shared"] == 6
    assert found["boundary/units_unimportant"] == 2
    assert found["boundary/units_previous_specific"] == 0
    assert tables.boundary_numbers({"score": [1.0]}) == {}


def test_each_unit_is_a_row() -> None:
    table = tables.importance_table(boundary(2, 2))
    assert table.title == "4 units"
    assert table.rows[3] == ["m1/rank:1", "m1", 3.0, 3.0, 3.0, 3.0, 0.5, "unimportant"]
    first = boundary(1, 2)
    for absent in ("previous", "weight", "classes"):
        del first[absent]  # the first task fuses nothing
    table = tables.importance_table(first)
    assert table.columns == ["unit", "module", "score", "current", "accumulated", "class"]
    assert table.rows[0] == ["m0/rank:0", "m0", 0.0, 0.0, 0.0, None]


def test_of_very_many_units_each_module_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_UNITS", 5)
    table = tables.importance_table(boundary(2, 3))
    assert "6 units are more than 5" in table.title
    assert table.columns[:3] == ["module", "units", "mean score"]
    assert [row[:3] for row in table.rows] == [["m0", 3, 1.0], ["m1", 3, 4.0]]
    assert table.rows[1][-2:] == [0.5, "task_shared"]
