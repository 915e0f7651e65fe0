"""Which step's weights and averages SelectBestStep puts back."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kif_lightning.callbacks import SelectBestStep
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker


def new_module(tracks: bool = True) -> Any:
    parameters = {"w": nn.Parameter(torch.zeros(3))}
    identification = Identification(tracker=ImportanceTracker()) if tracks else None
    if identification is not None:
        identification.begin_task()
    return SimpleNamespace(trainable_parameters=parameters, identification=identification)


def averages(module: Any) -> tuple[int, Tensor, Tensor]:
    tracker = module.identification.tracker
    return tracker.num_steps, tracker.sensitivity["w"].clone(), tracker.uncertainty["w"].clone()


def train(
    selection: SelectBestStep, module: Any, losses: list[float | None]
) -> list[tuple[int, Tensor, Tensor]]:
    """A step for each loss, whose number the weights become; None: no look. Averages by step."""
    selection.on_train_start(SimpleNamespace(), module)
    weight, seen = module.trainable_parameters["w"], []
    for step, loss in enumerate(losses, start=1):
        with torch.no_grad():
            weight.fill_(float(step))
        weight.grad = torch.full((3,), 0.1 * step)
        if module.identification is not None:
            module.identification.before_step(module.trainable_parameters)
            seen.append(averages(module))
        trainer: Any = SimpleNamespace(callback_metrics={"held_out_loss": loss}, global_step=step)
        if loss is not None:
            selection.on_validation_end(trainer, module)
    selection.on_train_end(trainer, module)
    return seen


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 1.0, 2.0, 1.5], 2),
        ([3.0, 2.0, 1.0], 3),
        ([1.0, 2.0, 1.0], 1),  # of equals the first
        ([None, 2.0, None, float("nan")], 2),
        ([float("nan"), 5.0, 6.0], 2),
    ],
)
@pytest.mark.parametrize("importance", ["selected", "last"])
def test_best_step_is_restored(losses: list[float | None], best: int, importance: Any) -> None:
    module = new_module()
    selection = SelectBestStep(importance=importance)
    seen = train(selection, module, losses)
    assert module.trainable_parameters["w"].tolist() == [float(best)] * 3
    step = best if importance == "selected" else len(losses)
    torch.testing.assert_close(averages(module), seen[step - 1], rtol=0, atol=0)
    assert not torch.equal(seen[0][1], seen[-1][1])


def test_parameters_stay_the_same_objects() -> None:
    module = new_module()
    weight = module.trainable_parameters["w"]
    train(SelectBestStep(), module, [1.0, 2.0])
    assert module.trainable_parameters["w"] is weight
    assert weight.requires_grad


def test_copies_are_released_and_each_task_starts_anew() -> None:
    module, selection = new_module(), SelectBestStep()
    train(selection, module, [0.5, 1.0])
    assert not selection._weights
    assert selection._averages is None
    train(selection, module, [9.0, 7.0, 8.0])  # worse than the task before, all of them
    assert module.trainable_parameters["w"].tolist() == [2.0] * 3


def test_without_importance_weights_are_restored() -> None:
    module = new_module(tracks=False)
    train(SelectBestStep(), module, [1.0, 2.0])
    assert module.trainable_parameters["w"].tolist() == [1.0] * 3


def test_no_look_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    module = new_module()
    with caplog.at_level(logging.WARNING):
        train(SelectBestStep(every_steps=40), module, [None, None])
    assert "No step was selected: the task has 2 optimizer steps, a look comes every 40" in (
        caplog.text
    )
    assert module.trainable_parameters["w"].tolist() == [2.0] * 3
    assert module.identification.tracker.num_steps == 2


def test_a_look_is_not_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(SelectBestStep(), new_module(), [2.0])
    assert not caplog.records


@pytest.mark.parametrize(
    "wrong", [{"num_held_out": 0}, {"every_steps": 0}, {"importance": "first"}]
)
def test_mistakes_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"selection\.{next(iter(wrong))} must"):
        SelectBestStep(**wrong)
