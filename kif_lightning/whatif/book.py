"""What has been found of one boundary: its results file, table and figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from kif_lightning.metrics.entropy import mean_binary_entropy
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.figures.style import FORMATS, save, styled
from kif_lightning.reporting.figures.what_if import draw_what_if, held, swept
from kif_lightning.reporting.what_if import BETA_NOTE, LABEL, note, show_what_if, words
from kif_lightning.storage import read_json, write_json
from kif_lightning.whatif.ways import Way

Row = Sequence[float | None]


@dataclass(kw_only=True)
class Book:
    """Answers by the key of their way to fuse, written as soon as each is known.

    Args:
        path: the results file.
        tasks: names of the tasks learnt by then.
        own: the run's own way.
        run_row: what the run measured there; None: not yet.
        stand_ins: what only stands for something real.
        conditions: what the scores depend on beside the way; answers under others do not count.
    """

    path: Path
    tasks: Sequence[str]
    own: Way
    run_row: Row | None
    stand_ins: Sequence[str]
    conditions: Mapping[str, Any]
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def open(self) -> str | None:
        """Take up what was found before; a sentence if that does not count any more."""
        if not self.path.is_file():
            return None
        found = read_json(self.path)
        if found["conditions"] == self.conditions:
            self.answers = found["answers"]
            return None
        return (
            f"What {self.path} holds was found on another device, with other packages or of other "
            "weights: it is evaluated anew."
        )

    def add(self, way: Way, scores: Sequence[float], share: Tensor) -> None:
        """Note and write one answer.

        Args:
            way: of fusing.
            scores: percent on each task learnt by then.
            share: fusion weights (U,).
        """
        self.answers[way.key] = {
            "settings": way.settings,
            "scores": list(scores),
            "average": sum(scores) / len(scores),
            "old_mean": sum(scores[:-1]) / (len(scores) - 1),
            "new": scores[-1],
            "mean_weight": float(share.mean()),
            "entropy": mean_binary_entropy(share.tolist()),
        }
        self._write()

    def _write(self) -> None:
        content = {
            "label": LABEL,
            "notes": [note(self.stand_ins), BETA_NOTE],
            "stand_ins": list(self.stand_ins),
            "task": self.tasks[-1],
            "tasks": list(self.tasks),
            "run_settings": self.own.settings,
            "run_row": self.run_row,
            "original_equals_run": self.equals_run,
            "conditions": dict(self.conditions),
            "answers": self.answers,
        }
        write_json(self.path, content)

    @property
    def equals_run(self) -> bool | None:
        """Whether the run's own way gives exactly the run's own scores; None: not known."""
        if not self._measured or self.own.key not in self.answers:
            return None
        return not self._differing()

    @property
    def _measured(self) -> int:
        """How many scores there are to compare with."""
        return sum(score is not None for score in self.run_row or ())

    def _differing(self) -> list[str]:
        here = self.answers[self.own.key]["scores"]
        return [
            f"{name} {there:g} there, {score:g} here"
            for name, there, score in zip(self.tasks, self.run_row or (), here, strict=True)
            if there is not None and there != score
        ]

    def check(self) -> str:
        """Whether the numbers are the run's, in a sentence."""
        if self.equals_run is None:
            return "The run has no scores after this boundary: its own row cannot be compared."
        if self.equals_run:
            return f"Fused again as the run did: exactly the run's own {self._measured} scores."
        return (
            f"Warning: fused again as the run did, the scores are NOT the run's own "
            f"({'; '.join(self._differing())}), as on another device or with other packages: "
            "compare the rows below with each other alone."
        )

    def show(self, ways: Sequence[Way], console: RunConsole) -> None:
        """The table of these ways, and what the file now says of the run's own row."""
        self._write()
        console.say(self.check())
        shown = [self.answers[way.key] for way in ways]
        original = self.own.settings
        show_what_if(shown, self.tasks, original, self.run_row, self.stand_ins, console)

    def draw(self, ways: Sequence[Way]) -> list[Path]:
        """The figure of these ways in every format; nothing for the run's own way alone."""
        shown = [self.answers[way.key] for way in ways]
        if len(shown) < 2:
            return []
        original = self.own.settings
        shared = words(held(shown, original)).replace(" ", ",")
        name = f"by_{swept(shown, original) or 'settings'}{shared and f'__{shared}'}"
        paths = [self.path.parent / f"{name}.{ending}" for ending in FORMATS]
        with styled():
            figure = draw_what_if(shown, self.tasks, original, self.stand_ins)
            for path in paths:
                save(figure, path)
        return paths
