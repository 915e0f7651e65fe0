"""The bundled stream as a benchmark: the grammars' rows, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any

from kif_lightning.benchmarks.limits import limited
from kif_lightning.benchmarks.mini.tasks import TASKS, MiniTask
from kif_lightning.benchmarks.orders import check_known, resolve_order
from kif_lightning.benchmarks.rows import require_limits, sha256_of
from kif_lightning.interfaces import Row, SourceTask, Split, Task

DATA_SEED = "long_sequence_mini/1"
"""Of all rows, whatever the run's seed: results of different seeds are on the same data."""
POOL = {"test": 300, "train": 1000}
"""Rows of a split before any limit; test is drawn first, and train draws what test has not."""


class MiniBenchmark:
    """Generated stand-ins for the Long Sequence benchmark's 15 tasks, balanced over their labels.

    Args:
        name: the config's name.
        orders: order name -> task names.
        order: a name of ``orders``, or the task names themselves.
        train_rows: at most so many train rows a task, class-balanced; None: all 1000.
        test_rows: the same for test; None: all 300.
        seed: of the row limits.

    Raises:
        UserError: an unknown order or task, limits below 1.
    """

    stand_in = True
    provenance: Mapping[str, Any] = MappingProxyType({"source": "generated"})

    def __init__(
        self,
        *,
        name: str,
        orders: Mapping[str, Sequence[str]],
        order: str | Sequence[str],
        train_rows: int | None = None,
        test_rows: int | None = None,
        seed: int = 0,
    ) -> None:
        require_limits(train_rows, test_rows)
        self.name = name
        self.order_name, names = resolve_order(order, orders)
        known = {task.name: task for task in TASKS}
        check_known(names, list(known), f"the bundled stream {name}")
        self.tasks: tuple[Task, ...] = tuple(
            limited(source_task(known[n]), train_rows=train_rows, test_rows=test_rows, seed=seed)
            for n in names
        )


def draw_rows(task: MiniTask) -> dict[str, tuple[Row, ...]]:
    """Split -> all its rows; no input occurs twice, within a split or across them."""
    seen: set[str] = set()
    return {split: tuple(_draw(task, split, number, seen)) for split, number in POOL.items()}


def _draw(task: MiniTask, split: str, number: int, seen: set[str]) -> list[Row]:
    random = Random(f"{DATA_SEED}/{task.name}/{split}")
    rows: list[Row] = []
    while len(rows) < number:
        label = task.labels[len(rows) % len(task.labels)]
        text = task.prompt(random, label)
        if text not in seen:
            seen.add(text)
            rows.append(Row(id=f"{task.name}-{split}-{len(rows)}", input=text, output=label))
    return rows


def source_task(task: MiniTask) -> SourceTask:
    """All rows of a generated task."""
    return SourceTask(
        name=task.name,
        kind="classification",
        metric="exact_match",
        splits={
            split: Split(rows=rows, sha256=sha256_of(rows))
            for split, rows in draw_rows(task).items()
        },
        closed_answers=True,
    )
