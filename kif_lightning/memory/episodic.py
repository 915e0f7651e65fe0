"""A small memory: a seeded random share of each past task's train rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from kif_lightning.errors import require_between
from kif_lightning.interfaces import Row, Task
from kif_lightning.seeding import generator


class EpisodicMemory:
    """Keeps ``share`` of each task's train rows, of a classification task one a class at least.

    Args:
        share: of a task's train rows, in (0, 1] (KIF-M: 2%).
        seed: of the draw.

    Raises:
        UserError: a share out of range.
    """

    def __init__(self, *, share: float = 0.02, seed: int) -> None:
        require_between("memory.share", share, 0.0, 1.0, low_open=True)
        self.share = share
        self.seed = seed
        self.rows: dict[str, tuple[Row, ...]] = {}

    def budget(self, task: Task) -> int:
        """``max(share of the train rows, number of classes, 1)``, rounded to a whole row."""
        classes = len({row.output for row in task.train}) if task.labels else 1
        return max(round(self.share * len(task.train)), classes)

    def keep(self, task: Task) -> None:
        """Choose the rows of a task that has been learnt."""
        draw = generator(self.seed, task.name, "memory")
        classes = [row.output if task.labels else "" for row in task.train]
        chosen = set(choose_rows(classes, self.budget(task), draw))
        # In one pass: rows may lie on the disk.
        self.rows[task.name] = tuple(row for i, row in enumerate(task.train) if i in chosen)

    def state_dict(self) -> dict[str, Any]:
        """The rows: raw data of the tasks."""
        return {name: [asdict(row) for row in rows] for name, rows in self.rows.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.rows = {name: tuple(Row(**row) for row in rows) for name, rows in state.items()}


def choose_rows(classes: Sequence[str], number: int, draw: torch.Generator) -> list[int]:
    """Indices of ``number`` random rows, in ascending order, one of each class first.

    Args:
        classes: the class of each row; all equal: a uniform choice.
        number: at least the number of classes; all rows if there are no more.
        draw: where the randomness comes from.
    """
    order = torch.randperm(len(classes), generator=draw).tolist()
    firsts = list({classes[i]: i for i in reversed(order)}.values())
    others = [i for i in order if i not in set(firsts)]
    return sorted([*firsts, *others][:number])
