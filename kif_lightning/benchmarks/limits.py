"""From a task as its source has it to one of a run: row limits and label words."""

from __future__ import annotations

from kif_lightning.benchmarks.rows import distinct_outputs, limit_rows
from kif_lightning.interfaces import SourceTask, Task
from kif_lightning.seeding import generator


def limited(
    source: SourceTask,
    *,
    train_rows: int | None,
    test_rows: int | None,
    seed: int,
    force_metric: str | None = None,
) -> Task:
    """The task with at most so many rows a split, drawn by the seed, balanced over closed answers.

    Args:
        source: with train and test.
        train_rows: None: all.
        test_rows: None: all.
        seed: of the draws.
        force_metric: instead of the task's own.
    """
    limits = {"train": train_rows, "test": test_rows}
    rows = {
        split: limit_rows(
            source.splits[split].rows,
            limit,
            balanced=source.closed_answers,
            generator=generator(seed, source.name, f"{split} rows"),
        )
        for split, limit in limits.items()
    }
    train = source.splits["train"].rows
    dev = source.splits.get("dev")
    return Task(
        name=source.name,
        kind=source.kind,
        metric=force_metric or source.metric,
        train=rows["train"],
        test=rows["test"],
        dev=() if dev is None else dev.rows,
        labels=distinct_outputs(train) if source.closed_answers else (),
        sha256={name: split.sha256 for name, split in source.splits.items()},
    )
