"""Scores of the test rows, task by task, while Lightning's ``test`` goes through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from kif_lightning import ranks
from kif_lightning.interfaces import Row, Task
from kif_lightning.interruption import Interrupted, Interruption
from kif_lightning.metrics import TextScore
from kif_lightning.storage import write_json_lines


class TaskScores(Callback):
    """Scores each task as soon as its last batch is answered, and writes every prediction.

    The ranks answer different rows; all of them get all answers and score the rows in their order.

    Args:
        tasks: of the dataloaders, in their order.
        new_score: makes the metric of a name.
        path: where the predictions of a task's name go.
        stamp: added to every prediction.
        scored: called with a dataloader's place and its task's score in percent.
        interruption: asked after every batch.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[Task],
        new_score: Callable[[str], TextScore],
        path: Callable[[int], Path],
        stamp: dict[str, Any],
        scored: Callable[[int, float], None],
        interruption: Interruption,
    ) -> None:
        self.tasks = tasks
        self.new_score = new_score
        self.path = path
        self.stamp = stamp
        self.scored = scored
        self.interruption = interruption
        self.losses: dict[int, float | None] = {}
        """Place -> mean over its rows of the loss, where the module measured it; not finite: None.
        """

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has just taken SIGTERM for itself."""
        self.interruption.listen()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After a task's last batch: its score; stop if asked to."""
        if batch_idx + 1 == trainer.num_test_batches[dataloader_idx]:
            module: Any = pl_module
            losses = module.answer_losses[dataloader_idx]
            self._score(dataloader_idx, module.answers[dataloader_idx], losses)
        if ranks.any_rank(self.interruption.requested is not None)[0]:
            raise Interrupted

    def _score(self, place: int, own_answers: dict[int, str], own_losses: dict[int, float]) -> None:
        task = self.tasks[place]
        answers: dict[int, str] = {}
        losses: dict[int, float] = {}
        for some_answers, some_losses in ranks.gathered((own_answers, own_losses)):
            answers.update(some_answers)
            losses.update(some_losses)
        texts = [answers[row] for row in range(len(task.test))]
        score: Any = self.new_score(task.metric)
        # Every rank has all rows: a torchmetrics object must not add them up over the ranks.
        score.distributed_available_fn = _never
        score.update(texts, [row.output for row in task.test])
        value = float(score.compute())
        records = [
            {
                "id": row.id,
                "prediction": text,
                "reference": row.output,
                "score": row_score,
                **({"loss": _number(losses[index])} if losses else {}),
                **self.stamp,
            }
            for index, (row, text, row_score) in enumerate(
                zip(task.test, texts, score.row_scores(), strict=True)
            )
        ]
        if losses:
            # In the order of rows: the sum must not depend on who answered which.
            self.losses[place] = _number(sum(losses[i] for i in range(len(losses))) / len(losses))
        ranks.on_first(lambda: write_json_lines(self.path(place), records))
        self.scored(place, value)


def keep_inputs(path: Path, rows: Sequence[Row]) -> None:
    """The prompts that predictions belong to, written once."""
    if ranks.is_first() and not path.is_file():
        write_json_lines(path, ({"id": row.id, "input": row.input} for row in rows))


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if isfinite(value) else None


def _never() -> bool:
    return False
