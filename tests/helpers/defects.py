"""A clean task as its source has it, to plant defects in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kif_lightning.interfaces import Row, SourceTask, Split

LABELS = ("round", "square")


def row(row_id: str, text: str, output: str = "round") -> Row:
    return Row(id=row_id, input=text, output=output)


@dataclass
class Draft:
    """A task to spoil: lists of rows; 40 of train, 10 of dev, 20 of test, half of each label."""

    splits: dict[str, list[Row]] = field(
        default_factory=lambda: {
            name: [
                row(f"{name}{i}", f"What shape has thing {name} {i}?", LABELS[i % 2])
                for i in range(number)
            ]
            for name, number in (("train", 40), ("dev", 10), ("test", 20))
        }
    )
    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    num_problems: dict[str, int] = field(default_factory=dict)
    """Where it is not the number of ``problems``."""
    kind: Any = "classification"
    closed_answers: bool = True

    def relabel(self, words: Mapping[str, str], *splits: str) -> None:
        """Put other label words in the place of some."""
        for name in splits or tuple(self.splits):
            self.splits[name] = [
                row(r.id, r.input, words.get(r.output, r.output)) for r in self.splits[name]
            ]

    def change(self, split: str, place: int, **texts: str) -> None:
        """Change a row."""
        old = self.splits[split][place]
        new = {"id": old.id, "input": old.input, "output": old.output, **texts}
        self.splits[split][place] = Row(**new)

    def _split(self, name: str, rows: list[Row]) -> Split:
        told = self.problems.get(name, ())
        number = self.num_problems.get(name, len(told))
        return Split(rows=tuple(rows), sha256="", problems=told, num_problems=number)

    def task(self) -> SourceTask:
        """The task as it now stands."""
        return SourceTask(
            name="shapes",
            kind=self.kind,
            metric="exact_match" if self.closed_answers else "rouge_l",
            splits={name: self._split(name, rows) for name, rows in self.splits.items()},
            closed_answers=self.closed_answers,
        )


def spoilt(*spoils: Callable[[Draft], None], **settings: Any) -> SourceTask:
    """A task with those defects alone."""
    draft = Draft(**settings)
    for spoil in spoils:
        spoil(draft)
    return draft.task()
