"""The fit of the fusion's weights on a linear model whose best mix is known."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kif_lightning.callbacks import FittedFusion, FusionWithReplay, KnowledgeFusion
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Row
from kif_lightning.kif import ImportanceTracker, MeanRule, matrix_units

PAST, PRESENT, WRONG = "past", "present", "wrong"


class Model(nn.Module):
    """Past rows are right while ``old`` is 0, present ones once ``new`` is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.old = nn.Parameter(torch.zeros(3))
        self.new = nn.Parameter(torch.zeros(2))
        self.dropout = nn.Dropout(0.5)
        self.trainable_parameters = dict(self.named_parameters())
        self.identification = Identification(tracker=ImportanceTracker())
        self.device = torch.device("cpu")
        self.broken = False

    def transfer_batch_to_device(self, batch: Any, device: Any, index: int) -> Any:
        return batch

    def row_loss(self, batch: Any) -> Tensor:
        assert not self.training, "a loss with dropout is another one at each look"
        distances = {
            PAST: self.old.square().sum(),
            PRESENT: (self.new - 1.0).square().sum(),
            WRONG: 9 * ((self.old - 1.0).square().sum() + self.new.square().sum()),
        }
        total = torch.stack([distances[row.input] for row in batch["rows"]]).sum()
        return total * float("nan") if self.broken else total


class Data:
    """The memory's rows of two past tasks and the present task's."""

    batch_size = 4
    task_index = 2
    seed = 1
    task = SimpleNamespace(name="third")

    def __init__(self, memory: int = 4) -> None:
        self.memory_rows = tuple(Row(id=str(i), input=PAST, output="") for i in range(memory))
        self.asked: list[list[str]] = []

    def training_rows(self) -> Sequence[Row]:
        return [Row(id=str(i), input=PRESENT, output="") for i in range(50)]

    def row_steps(self, rows: Sequence[Row], purpose: str) -> Iterator[list[Any]]:
        """Each step in two micro-batches and a filler, which would undo the fit if it counted."""
        self.asked.append([row.input for row in rows])
        filler = [Row(id="", input=WRONG, output="")] * len(rows)
        parts = [(rows[:2], 1.0), (rows[2:], 1.0), (filler, 0.0)]
        while True:
            yield [
                {"rows": part, "weight": weight, "step_tokens": len(rows)} for part, weight in parts
            ]


def boundary(
    fusion: KnowledgeFusion, model: Model, data: Data, tasks: int = 2
) -> dict[str, Tensor]:
    """Tasks that move all weights from 0 to 1 each; the weights before the last one's fusion."""
    trainer: Any = SimpleNamespace(
        datamodule=data, precision_plugin=SimpleNamespace(forward_context=nullcontext)
    )
    for _ in range(tasks):
        model.identification.begin_task()
        fusion.on_train_start(trainer, model)  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.grad = torch.rand_like(parameter)
            with torch.no_grad():
                parameter.copy_(torch.ones_like(parameter))
        model.identification.before_step(model.trainable_parameters)
        after = {n: p.detach().clone() for n, p in model.named_parameters()}
        if fusion.snapshot:
            fusion.snapshot = {n: torch.zeros_like(p) for n, p in after.items()}
        fusion.on_train_end(trainer, model)  # type: ignore[arg-type]
    return after


def fitted(**settings: Any) -> FittedFusion:
    return FittedFusion(rule=MeanRule(), units=matrix_units, **settings)


def test_units_that_the_past_needs_go_back_and_those_the_present_needs_stay() -> None:
    fusion, model, data = fitted(fit_epochs=20), Model(), Data()
    model.train()
    after = boundary(fusion, model, data)
    assert fusion.boundary is not None
    assert fusion.boundary.weight is not None
    old, new = fusion.boundary.weight.tolist()
    assert old > 0.9
    assert new < 0.1
    # The snapshot is zero: what is left of the present weights is 1 - lam of them.
    expected = {"old": (1 - old) * after["old"], "new": (1 - new) * after["new"]}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name].float())
    assert model.training
    assert model.dropout.training
    assert fusion.outer_steps == 40, "20 times over 6 rows, 4 a step"


def test_of_the_task_as_many_rows_are_asked_as_are_kept_of_a_past_one() -> None:
    data = Data(memory=5)
    boundary(fitted(), Model(), data)
    (rows,) = data.asked
    assert (rows.count(PAST), rows.count(PRESENT)) == (5, 3)


def test_without_memory_rows_the_rules_weights_are_kept() -> None:
    fusion, data = fitted(), Data(memory=0)
    boundary(fusion, Model(), data)
    assert data.asked == []
    assert fusion.boundary is not None
    assert fusion.boundary.weight is not None
    assert fusion.boundary.weight.tolist() == [0.5, 0.5]


def test_steps_with_a_broken_gradient_change_nothing_and_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fusion, model = fitted(), Model()
    model.broken = True
    with caplog.at_level(logging.WARNING):
        boundary(fusion, model, Data())
    assert fusion.boundary is not None
    assert fusion.boundary.weight is not None
    torch.testing.assert_close(fusion.boundary.weight, torch.full((2,), 0.5).double())
    assert "6 of 6 steps of the fusion's fit had a non-finite gradient" in caplog.text


@pytest.mark.parametrize(("key", "value"), [("fit_epochs", 0), ("fit_lr", 0.0)])
def test_values_out_of_range_are_told(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"fusion.{key}"):
        fitted(**{key: value})


def test_a_replay_beside_it_is_refused() -> None:
    with pytest.raises(UserError, match="got FittedFusion"):
        FusionWithReplay(fusion=fitted())
