"""One progress bar within the task; plain lines where there is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from kif_lightning import ranks


class TaskProgress(Callback):
    """Shows training steps, then evaluation batches, under the run's bar over tasks.

    On a terminal, and in a notebook that can show one, a tqdm bar; elsewhere a line every tenth of
    the work, at most one every ``seconds_between_lines``. ``hidden``: nothing at all.
    """

    def __init__(
        self, *, label: str, seconds_between_lines: float = 15.0, hidden: bool = False
    ) -> None:
        self.label = label
        self.hidden = hidden
        self.seconds_between_lines = seconds_between_lines
        self._bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over the task's micro-batches."""
        self._open("train", int(trainer.num_training_batches) * (trainer.max_epochs or 1))
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if done:
            self._bar.update(done)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One micro-batch done."""
        self._bar.update(1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar over all test batches."""
        self._open("evaluate", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """One test batch done."""
        self._bar.update(1)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()

    def _open(self, phase: str, total: int) -> None:
        terminal = is_live()
        self._bar = tqdm(
            total=total,
            desc=f"{self.label} {phase}",
            leave=not terminal,
            dynamic_ncols=terminal,
            position=1 if terminal else 0,
            mininterval=0.2 if terminal else self.seconds_between_lines,
            miniters=None if terminal else max(1, total // 10),
            ascii=not terminal,
            file=sys.stderr,
            disable=self.hidden or not ranks.is_first(),
        )


def is_live() -> bool:
    """Whether a bar can be drawn again in its place: on a terminal, and as a notebook's widget."""
    widget = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return widget or sys.stderr.isatty()
