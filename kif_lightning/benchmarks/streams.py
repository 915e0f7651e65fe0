"""How a benchmark's tasks are learnt: one after another, or all at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kif_lightning.interfaces import Row, Task


class SequentialStream:
    """One task after another, in the benchmark's order: continual learning."""

    at_once = False

    def training_tasks(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """The tasks themselves."""
        return tuple(tasks)

    def num_seen(self, phase: int, num_tasks: int) -> int:
        """Tasks up to this one."""
        return phase + 1


class JointStream:
    """All tasks at once, their rows shuffled together: the upper bound of continual learning."""

    at_once = True

    def training_tasks(self, tasks: Sequence[Task]) -> tuple[Task, ...]:
        """One task with all train and dev rows and no test rows."""
        joint = Task(
            name="all_tasks",
            kind="generation",
            metric="",
            train=_told_apart((task.name, task.train) for task in tasks),
            test=(),
            dev=_told_apart((task.name, task.dev) for task in tasks),
            labels=(),
            sha256={},
        )
        return (joint,)

    def num_seen(self, phase: int, num_tasks: int) -> int:
        """All of them."""
        return num_tasks


def _told_apart(named: Iterable[tuple[str, Sequence[Row]]]) -> tuple[Row, ...]:
    """The rows of several tasks, their ids unique among all."""
    return tuple(
        Row(id=f"{name}/{row.id}", input=row.input, output=row.output)
        for name, rows in named
        for row in rows
    )
