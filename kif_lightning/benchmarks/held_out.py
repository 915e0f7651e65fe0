"""Tasks that are evaluated on rows of their train split: for choosing settings without test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kif_lightning.benchmarks.own.benchmark import test_indices as drawn_indices
from kif_lightning.benchmarks.rows import take
from kif_lightning.errors import UserError, require_between, require_count
from kif_lightning.interfaces import Task


def held_out_tasks(
    tasks: Sequence[Task], *, most_rows: int = 100, most_share: float = 0.2
) -> tuple[Task, ...]:
    """The tasks with some train rows in place of their test rows; the others are trained on.

    Which rows is decided by a hash of the input: runs of all methods and, where no row limit is
    drawn by the seed, of all seeds hold out the same. Rows of the same input stay together, so no
    input of these rows is trained on; closed answers: the share of each answer.

    Args:
        tasks: their test rows are not looked at.
        most_rows: about so many a task, ...
        most_share: ... but of a small task no more than this share of its train rows.

    Raises:
        UserError: a number out of range, or a task with too few different inputs.
    """
    require_count("evaluation.held_out_rows", most_rows)
    require_between("evaluation.held_out_share", most_share, 0.0, 0.5, low_open=True)
    return tuple(_held_out(task, most_rows, most_share) for task in tasks)


def _held_out(task: Task, most_rows: int, most_share: float) -> Task:
    share = min(most_share, most_rows / len(task.train))
    try:
        chosen = drawn_indices(task.name, task.train, share, bool(task.labels))
    except UserError as error:
        raise UserError(
            f"Task {task.name} has {len(task.train)} train rows, too few different inputs to hold "
            f"{share:g} of them out (evaluation.rows=held_out): give it more train rows or "
            "evaluation.held_out_share a larger number."
        ) from error
    others = np.setdiff1d(np.arange(len(task.train)), chosen, assume_unique=True)
    return replace(task, train=take(task.train, others), test=take(task.train, chosen))
