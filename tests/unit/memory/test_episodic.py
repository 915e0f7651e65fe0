"""Which rows of a past task are kept."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row, Task
from kif_lightning.memory import EpisodicMemory, choose_rows
from kif_lightning.storage import load_state, save_state


def make_task(number: int, classes: int = 0, name: str = "colour") -> Task:
    """``classes``: of a classification task, row i of class i % classes; 0: a generation task."""
    rows = tuple(
        Row(id=f"{i}", input=f"{name} {i}", output=f"c{i % classes if classes else i}")
        for i in range(number)
    )
    return Task(
        name=name,
        kind="classification" if classes else "generation",
        metric="exact_match",
        train=rows,
        test=(),
        labels=tuple(f"c{i}" for i in range(classes)),
        sha256={},
    )


def kept(memory: EpisodicMemory, task: Task) -> tuple[Row, ...]:
    memory.keep(task)
    return memory.rows[task.name]


@pytest.mark.parametrize(
    ("share", "rows", "classes", "expected"),
    [
        (0.02, 1000, 4, 20),
        (0.02, 140, 2, 3),  # 2.8
        (0.02, 110, 2, 2),  # 2.2
        (0.02, 100, 14, 14),  # the classes are the minimum
        (0.02, 1000, 0, 20),
        (0.02, 140, 0, 3),
        (0.02, 30, 0, 1),  # 0.6
        (0.02, 10, 0, 1),  # 0.2, but one row at least
        (0.02, 10, 1, 1),
        (0.5, 10, 2, 5),
        (1.0, 7, 3, 7),
        (1.0, 7, 0, 7),
    ],
)
def test_number_of_rows(share: float, rows: int, classes: int, expected: int) -> None:
    task, memory = make_task(rows, classes), EpisodicMemory(share=share, seed=1)
    found = kept(memory, task)
    assert len(found) == memory.budget(task) == expected
    assert set(found) <= set(task.train)
    assert [int(row.id) for row in found] == sorted({int(row.id) for row in found})
    if classes:
        assert len({row.output for row in found}) == classes


def test_every_class_is_kept_however_rare() -> None:
    task = make_task(400, 2)
    rare = dataclasses.replace(task.train[317], output="rare")
    rows = (*task.train[:317], rare, *task.train[318:])
    task = dataclasses.replace(task, train=rows)
    for seed in range(10):
        found = kept(EpisodicMemory(seed=seed), task)
        assert len(found) == 8
        assert {row.output for row in found} == {"c0", "c1", "rare"}
        assert rare in found


def test_classes_are_those_of_the_rows_there_are() -> None:
    # A row limit may leave a label of the whole file without a row.
    task = dataclasses.replace(make_task(20, 2), labels=("c0", "c1", "c2"))
    assert EpisodicMemory(seed=1).budget(task) == 2
    assert len(kept(EpisodicMemory(seed=1), task)) == 2


def test_choice_is_a_function_of_seed_and_task_alone() -> None:
    task, other = make_task(500, 3), make_task(300, name="shape")
    alone = EpisodicMemory(seed=4)
    expected = kept(alone, task)
    later = EpisodicMemory(seed=4)
    later.keep(other)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert kept(later, task) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert list(later.rows) == ["shape", "colour"]
    assert kept(EpisodicMemory(seed=5), task) != expected
    renamed = kept(EpisodicMemory(seed=4), dataclasses.replace(task, name="form"))
    assert renamed != expected


@pytest.mark.parametrize("classes", [0, 3])
def test_every_row_is_as_likely_as_its_like(classes: int) -> None:
    """12 rows, 6 kept, 400 seeds: each row is kept 200 times on average, +- 10 (one sigma)."""
    task = make_task(12, classes)
    counts = Counter(
        row.id for seed in range(400) for row in kept(EpisodicMemory(share=0.5, seed=seed), task)
    )
    assert len(counts) == 12
    assert all(150 < number < 250 for number in counts.values()), counts


def test_extra_rows_beyond_one_a_class_are_uniform() -> None:
    """9 of 10 rows are of class a: with b's row sure, a's share 3 places: 400 * 3 / 9 times."""
    classes = ["a"] * 9 + ["b"]
    found = [choose_rows(classes, 4, torch.Generator().manual_seed(s)) for s in range(400)]
    counts = Counter(i for rows in found for i in rows)
    assert counts[9] == 400
    assert all(85 < counts[i] < 185 for i in range(9)), counts


def test_more_rows_than_there_are() -> None:
    draw = torch.Generator().manual_seed(0)
    assert choose_rows(["a", "b", "a"], 9, draw) == [0, 1, 2]


def test_as_many_rows_as_classes_is_one_of_each() -> None:
    classes = list("aaabbbbccccc")
    for seed in range(20):
        found = choose_rows(classes, 3, torch.Generator().manual_seed(seed))
        assert [classes[i] for i in found] == ["a", "b", "c"]


def test_state_comes_back_from_disk(tmp_path: Path) -> None:
    memory = EpisodicMemory(seed=1)
    for task in (make_task(120, 3), make_task(150, name="a/b é\n")):
        memory.keep(task)
    save_state(tmp_path / "state", memory.state_dict())
    other = EpisodicMemory(seed=1)
    other.load_state_dict(load_state(tmp_path / "state"))
    assert other.rows == memory.rows
    assert list(other.rows) == list(memory.rows)
    assert all(isinstance(rows, tuple) for rows in other.rows.values())
    empty = EpisodicMemory(seed=1)
    empty.load_state_dict(EpisodicMemory(seed=1).state_dict())
    assert empty.rows == {}


@pytest.mark.parametrize("share", [0, 0.0, -0.1, 1.01, float("nan"), "much", None])
def test_share_out_of_range_is_told(share: Any) -> None:
    with pytest.raises(UserError, match=r"memory\.share"):
        EpisodicMemory(share=share, seed=1)
