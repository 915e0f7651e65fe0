"""What is trained on, phase by phase, and what has been learnt after each."""

from __future__ import annotations

from dataclasses import replace

from kif_lightning.benchmarks.streams import JointStream, SequentialStream
from tests.helpers.streams import toy_task

TASKS = [toy_task("colour", train=4), toy_task("shape", train=3, kind="generation")]


def test_one_after_another() -> None:
    stream = SequentialStream()
    assert stream.training_tasks(TASKS) == tuple(TASKS)
    assert [stream.num_seen(phase, 2) for phase in range(2)] == [1, 2]


def test_all_at_once() -> None:
    stream = JointStream()
    (task,) = stream.training_tasks(TASKS)
    rows = [row for one in TASKS for row in one.train]
    assert [(row.input, row.output) for row in task.train] == [(r.input, r.output) for r in rows]
    assert stream.num_seen(0, 2) == 2
    # Nothing but training is asked of it: no labels that would cap an answer, no test rows.
    assert (task.test, task.labels) == ((), ())
    assert task.name not in {one.name for one in TASKS}


def test_rows_of_all_tasks_keep_apart_ids() -> None:
    # Ids are unique within a task alone.
    twins = [toy_task("colour", train=4), toy_task("colour", train=4)]
    twins[1] = type(twins[1])(**{**twins[1].__dict__, "name": "colour again"})
    (task,) = JointStream().training_tasks(twins)
    ids = [row.id for row in task.train]
    assert len(set(ids)) == len(ids) == 8


def test_dev_rows_come_along() -> None:
    tasks = [replace(task, dev=task.test[:2]) for task in TASKS]
    (task,) = JointStream().training_tasks(tasks)
    assert [row.input for row in task.dev] == [row.input for one in tasks for row in one.dev]
    assert len({row.id for row in task.dev}) == 4
