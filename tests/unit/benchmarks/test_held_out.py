"""Rows of train in place of test rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from kif_lightning.benchmarks.held_out import held_out_tasks
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row, Task


class Forbidden(Sequence[Row]):
    """Test rows that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("test rows were counted")

    def __getitem__(self, place: Any) -> Any:
        raise AssertionError("test rows were read")


def task(num_rows: int, *, repeated: int = 1, labels: tuple[str, ...] = ("no", "yes")) -> Task:
    rows = tuple(
        Row(
            id=str(i),
            input=f"question {i // repeated}",
            output="yes" if (i // repeated) % 4 == 0 else "no",
        )
        for i in range(num_rows)
    )
    return Task(
        name="asked",
        kind="classification",
        metric="exact_match",
        train=rows,
        test=Forbidden(),
        labels=labels,
        sha256={"train": "1", "test": "2"},
    )


@pytest.mark.parametrize(("num_rows", "held_out"), [(1000, 100), (400, 80), (20, 4)])
def test_about_so_many_but_no_more_than_a_share(num_rows: int, held_out: int) -> None:
    given = task(num_rows)
    (found,) = held_out_tasks([given], most_rows=100, most_share=0.2)
    assert len(found.test) == held_out
    assert {row.id for row in found.train} | {row.id for row in found.test} == {
        row.id for row in given.train
    }
    assert len(found.train) == num_rows - held_out
    answers = Counter(row.output for row in found.test)
    assert answers == {"no": 3 * held_out // 4, "yes": held_out // 4}, "of each class its share"
    assert (found.labels, found.sha256) == (given.labels, given.sha256)


def test_rows_of_the_same_input_stay_together() -> None:
    (found,) = held_out_tasks([task(300, repeated=3, labels=())], most_rows=30)
    held_out = {row.input for row in found.test}
    assert len(held_out) == 10
    assert held_out.isdisjoint(row.input for row in found.train)


def test_the_same_again_and_whatever_the_rows_order() -> None:
    given = task(200)
    turned = [
        held_out_tasks([Task(**{**vars(given), "train": rows})])[0]
        for rows in (given.train, given.train[::-1])
    ]
    one, other = ({row.id for row in found.test} for found in turned)
    assert one == other


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"most_rows": 0}, "evaluation.held_out_rows must be .* at least 1, got 0"),
        ({"most_share": 0.9}, "evaluation.held_out_share must lie in"),
        ({"most_share": 0}, "evaluation.held_out_share must lie in"),
    ],
)
def test_numbers_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        held_out_tasks([task(50)], **settings)


def test_too_few_inputs() -> None:
    with pytest.raises(UserError, match=r"asked has 3 train rows.*more train rows or"):
        held_out_tasks([task(3, repeated=3)])
