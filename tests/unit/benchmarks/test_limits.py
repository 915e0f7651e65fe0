"""From a task as its source has it to one of a run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kif_lightning.benchmarks.limits import limited
from kif_lightning.benchmarks.rows import write_arrow
from kif_lightning.benchmarks.table import RowTable
from kif_lightning.interfaces import Row, SourceTask, Split, Task


def source(folder: Path | None = None, *, closed: bool = True, dev: bool = False) -> SourceTask:
    """100 rows a split, in Arrow if there is a folder."""
    splits = {}
    for name in ("train", "test", *(["dev"] if dev else [])):
        outputs = ["a"] * 70 + ["b"] * 28 + ["c"] * 2
        rows = tuple(Row(id=f"{name}{i}", input="?", output=o) for i, o in enumerate(outputs))
        if folder is None:
            splits[name] = Split(rows=rows, sha256=f"sha of {name}")
        else:
            write_arrow(folder / name, iter(rows))
            splits[name] = Split(rows=RowTable.mapped(folder / name), sha256=f"sha of {name}")
    return SourceTask(
        name="t", kind="classification", metric="exact_match", splits=splits, closed_answers=closed
    )


def ids(task: Task) -> list[list[str]]:
    return [[row.id for row in split] for split in (task.train, task.test, task.dev)]


def limits(task: SourceTask, train: int | None, test: int | None, seed: int = 1) -> Task:
    return limited(task, train_rows=train, test_rows=test, seed=seed)


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("number", [1, 5, 30, 99, 100, 101, None])
def test_rows_in_arrow_are_drawn_as_rows_in_memory(
    tmp_path: Path, closed: bool, number: int | None
) -> None:
    held, mapped = source(closed=closed, dev=True), source(tmp_path, closed=closed, dev=True)
    first, second = limits(held, number, 7), limits(mapped, number, 7)
    assert ids(first) == ids(second)
    assert list(first.train) == list(second.train)
    assert (first.labels, first.sha256) == (second.labels, second.sha256)


def test_closed_answers_are_balanced_and_labels_are_all_of_train() -> None:
    closed, free = limits(source(), 1, 20), limits(source(closed=False), 30, 20)
    assert Counter(row.output for row in closed.test) == {"a": 9, "b": 9, "c": 2}
    assert (closed.labels, free.labels) == (("a", "b", "c"), ())
    assert Counter(row.output for row in free.train)["a"] > 10


def test_splits_have_draws_of_their_own_by_the_seed() -> None:
    first, again, other = (limits(source(), 10, 10, seed) for seed in (1, 1, 2))
    assert ids(first) == ids(again)
    assert ids(first)[0] != ids(other)[0]
    assert [name[5:] for name in ids(first)[0]] != [name[4:] for name in ids(first)[1]]


def test_what_the_task_says_goes_on_and_dev_is_whole() -> None:
    task = limited(source(dev=True), train_rows=1, test_rows=1, seed=0, force_metric="rouge_l")
    assert (task.name, task.kind, task.metric) == ("t", "classification", "rouge_l")
    assert len(task.dev) == 100
    assert task.sha256 == {s: f"sha of {s}" for s in ("train", "test", "dev")}
    assert limits(source(), 1, 1).dev == ()
