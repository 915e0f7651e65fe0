"""When SelectBestStep looks, which step it puts back, and when it ends a task's training."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kif_lightning.callbacks import SelectBestStep
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker

TOKENS = (1, 3)  # of the two batches that each look sees


class Learner(nn.Module):
    """One weight, and held-out losses as told."""

    def __init__(self, tracks: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.dropout = nn.Dropout()
        self.trainable_parameters = {"w": self.weight}
        self.identification: Any = Identification(tracker=ImportanceTracker()) if tracks else None
        if self.identification is not None:
            self.identification.begin_task()
        self.device, self.logged_steps, self.loss = "there", 0, 0.0
        self.looks = 0

    def transfer_batch_to_device(self, batch: Any, device: str, index: int) -> Any:
        return {**batch, "on": device}

    def row_loss(self, batch: Any) -> Tensor:
        assert batch["on"] == "there"
        assert not torch.is_grad_enabled()
        assert not any(part.training for part in self.modules())
        self.looks += 1
        # The sum over tokens; the batches differ, the mean over all tokens is the loss told.
        return torch.tensor({1: -2.0, 3: 2.0}[batch["step_tokens"]] + 2 * self.loss)


class Notes:
    """A logger."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def log_metrics(self, metrics: Any, step: int) -> None:
        assert metrics.keys() == {"held_out_loss", "running_step"}
        self.losses[step] = metrics["held_out_loss"]


def averages(module: Any) -> tuple[int, Tensor, Tensor]:
    tracker = module.identification.tracker
    return tracker.num_steps, tracker.sensitivity["w"].clone(), tracker.uncertainty["w"].clone()


def new_trainer(planned: int) -> Any:
    batches = [{"step_tokens": tokens} for tokens in TOKENS]
    return SimpleNamespace(
        global_step=0,
        loggers=[Notes()],
        precision_plugin=SimpleNamespace(val_step_context=nullcontext),
        datamodule=SimpleNamespace(selection_dataloader=lambda: batches),
        estimated_stepping_batches=planned,
        should_stop=False,
    )


def train(
    selection: SelectBestStep, module: Any, losses: list[float], parts: int = 2
) -> tuple[Any, list[tuple[int, Tensor, Tensor]]]:
    """A step for each held-out loss, whose number the weights become; the averages by step."""
    trainer = new_trainer(len(losses))
    selection.on_train_start(trainer, module)
    weight, seen = module.trainable_parameters["w"], []
    for step, loss in enumerate(losses, start=1):
        for part in range(parts):
            if part == parts - 1:
                with torch.no_grad():
                    weight.fill_(float(step))
                weight.grad = torch.full((3,), 0.1 * step)
                if module.identification is not None:
                    module.identification.before_step(module.trainable_parameters)
                    seen.append(averages(module))
                trainer.global_step = module.logged_steps = step
            module.loss = loss
            selection.on_train_batch_end(trainer, module, None, None, part)
        if trainer.should_stop:
            break
    selection.on_train_end(trainer, module)
    return trainer, seen


def each_step(**options: Any) -> SelectBestStep:
    return SelectBestStep(**{"num_held_out": 5, "every_steps": 1, **options})


NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 1.0, 2.0, 1.5], 2),
        ([3.0, 2.0, 1.0], 3),
        ([1.0, 2.0, 1.0], 1),  # of equals the first
        ([NAN, 5.0, 6.0], 2),
    ],
)
@pytest.mark.parametrize("importance", ["selected", "last"])
def test_best_step_is_restored(losses: list[float], best: int, importance: Any) -> None:
    module, selection = Learner(), each_step(importance=importance)
    trainer, seen = train(selection, module, losses)
    assert module.trainable_parameters["w"].tolist() == [float(best)] * 3
    assert (selection.selected_step, selection.stopped_early) == (best, False)
    step = best if importance == "selected" else len(losses)
    torch.testing.assert_close(averages(module), seen[step - 1], rtol=0, atol=0)
    assert not torch.equal(seen[0][1], seen[-1][1])
    expected = dict(enumerate(losses, start=1))
    assert trainer.loggers[0].losses == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7])])
def test_a_look_comes_once_at_each_multiple(every: int, steps: list[int], parts: int) -> None:
    module, selection = Learner(), each_step(every_steps=every)
    trainer, _ = train(selection, module, [float(10 - step) for step in range(1, 8)], parts)
    assert trainer.loggers[0].losses == pytest.approx({step: 10.0 - step for step in steps})
    assert module.looks == len(TOKENS) * len(steps)
    assert selection.selected_step == steps[-1]
    assert module.training
    assert module.dropout.training


@pytest.mark.parametrize(
    ("losses", "patience", "steps", "selected"),
    [
        ([3.0, 2.0, 4.0, 5.0, 1.0], 1, 3, 2),
        ([3.0, 2.0, 4.0, 5.0, 1.0], 2, 4, 2),
        ([3.0, 2.0, 4.0, 5.0, 1.0], 3, 5, 5),
        ([3.0, 2.0, 4.0, 5.0, 6.0, 7.0], None, 6, 2),
        ([3.0, 4.0, 2.0, 4.0, 1.0, 4.0], 2, 6, 5),  # each lower loss starts the count anew
        ([2.0, 2.0, 2.0], 1, 2, 1),  # an equal loss is no lower one
        ([2.0, NAN, NAN, 1.0], 2, 3, 1),
    ],
)
def test_patience_ends_the_training(
    losses: list[float], patience: int | None, steps: int, selected: int
) -> None:
    module, selection = Learner(), each_step(patience=patience)
    trainer, _ = train(selection, module, losses)
    assert trainer.global_step == steps
    assert selection.stopped_early == (steps < len(losses))
    assert selection.selected_step == selected
    assert module.trainable_parameters["w"].tolist() == [float(selected)] * 3


def test_patience_that_ends_with_the_last_step_stopped_nothing() -> None:
    module, selection = Learner(), each_step(patience=1)
    trainer, _ = train(selection, module, [1.0, 2.0])
    assert trainer.should_stop
    assert not selection.stopped_early


def test_parameters_stay_the_same_objects() -> None:
    module = Learner()
    train(each_step(), module, [1.0, 2.0])
    assert module.trainable_parameters["w"] is module.weight
    assert module.weight.requires_grad


def test_copies_are_released_and_each_task_starts_anew() -> None:
    module, selection = Learner(), each_step(patience=2)
    train(selection, module, [0.5, 1.0, 1.0, 1.0])
    assert selection.stopped_early
    assert not selection._weights
    assert selection._averages is None
    train(selection, module, [9.0, 10.0, 7.0, 8.0])  # worse than the task before, all of them
    assert module.trainable_parameters["w"].tolist() == [3.0] * 3
    assert (selection.selected_step, selection.stopped_early) == (3, False)


def test_without_importance_weights_are_restored() -> None:
    module = Learner(tracks=False)
    train(each_step(), module, [1.0, 2.0])
    assert module.trainable_parameters["w"].tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("every", "losses", "told"),
    [
        (40, [1.0, 1.0], "the task has 2 optimizer steps, a look comes every 40"),
        (1, [NAN, NAN], "none of 2 held-out losses was finite"),
    ],
)
def test_no_selected_step_is_warned_about(
    every: int, losses: list[float], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    module, selection = Learner(), each_step(every_steps=every)
    with caplog.at_level(logging.WARNING):
        train(selection, module, losses)
    assert f"No step was selected: {told}" in caplog.text
    assert module.trainable_parameters["w"].tolist() == [2.0] * 3
    assert module.identification.tracker.num_steps == 2
    assert (selection.selected_step, selection.stopped_early) == (None, False)


def test_a_look_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(each_step(), Learner(), [2.0])
    assert not caplog.records


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_held_out": 0},
        {"every_steps": 0},
        {"importance": "first"},
        {"rows": "test"},
        {"patience": 0},
        {"num_held_out": None, "held_out_share": 0.0},
        {"num_held_out": None, "held_out_share": 1.5},
    ],
)
def test_mistakes_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"selection\.{list(wrong)[-1]} .*must"):
        each_step(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({}, "num_held_out=None and held_out_share=None: set exactly one"),
        ({"num_held_out": 9, "held_out_share": 0.1}, "=9 and held_out_share=0.1: set exactly one"),
        (
            {"rows": "dev", "num_held_out": 9},
            "rows=dev holds .* got num_held_out=9 .* both to null",
        ),
        ({"rows": "dev", "held_out_share": 0.1}, "held_out_share=0.1: set both to null"),
    ],
)
def test_rows_are_held_out_by_number_or_share(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        SelectBestStep(**wrong)


@pytest.mark.parametrize(
    "right", [{"num_held_out": 1}, {"held_out_share": 0.1}, {"rows": "dev"}, {"held_out_share": 1}]
)
def test_one_way_is_enough(right: dict[str, Any]) -> None:
    SelectBestStep(**right)
