"""Data parallel training in two processes against one process on the same global batches.

All that two processes do is done by one pair of them: they take long to start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from kif_lightning import ranks
from kif_lightning.callbacks import FittedFusion, MagnitudeMask, RecurrentFusion
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Task
from kif_lightning.kif import ImportanceTracker, MeanRule, lora_rank_units
from tests.helpers.fits import BreaksAt, Squares, TinyFit, assert_near
from tests.helpers.processes import in_processes
from tests.helpers.streams import toy_task, unequal_task

DATA_PARALLEL = {"strategy": "ddp", "devices": 2}
TASK = toy_task(test=9)  # 19 train rows: 8 8 3; 9 test rows: 4 4 1
FITS: dict[str, dict[str, Any]] = {
    "whole shares": {},  # 4 4 | 4 4 | 3 and a filler
    "accumulated": {"micro": 2, "epochs": 2},  # 2 2 2 2 | 2 2 2 2 | 2 1
    "row by row": {"micro": 1, "penalise": True, "clip": 0.5},  # ... | 1 1 1 and a filler
    "means": {"micro": 1, "penalise": True, "module_options": {"loss_mean": "micro_batches"}},
    "full": {"micro": 2, "full": True},
    "masked": {"micro": 1, "mask": True},
    "parted": {
        "task": unequal_task(test=9),
        "data_options": {"length_grouping": "within_step", "pass_overhead": 8},
    },
    "fitted": {"micro": 1, "fitted": True},  # 8 | 8 | 1 and a filler
    "recurrent": {"micro": 1, "outer": True},  # its model also answers
}


class BreaksInTheSecond(BreaksAt):
    """In the second process alone; in the first all calls are good ones."""

    def __call__(self, context: Any) -> Tensor:
        if ranks.rank() == 0:
            self.calls.clear()
        return super().__call__(context)


def new_fit(
    folder: Path,
    *,
    micro: int | None = None,
    penalise: bool = False,
    mask: bool = False,
    outer: bool = False,
    fitted: bool = False,
    broken: Sequence[int] | None = None,
    where: str = "loss",
    module_options: Any = None,
    task: Task = TASK,
    **options: Any,
) -> TinyFit:
    callbacks: list[Callback] = []
    if mask:
        callbacks = [MagnitudeMask()]
        callbacks[0].load_state_dict({"tasks_learnt": 1})
    if outer:
        recurrent = RecurrentFusion(tracker=ImportanceTracker(), num_inner_steps=2)
        callbacks = [recurrent]
    penalties: list[Any] = [Squares()] if penalise else []
    if broken is not None:
        penalties = [BreaksInTheSecond(broken, where)]
    settings = {"penalties": penalties, **(module_options or {})}
    settings["identification"] = Identification(tracker=ImportanceTracker())
    fit = TinyFit(
        folder, micro=micro, task=task, callbacks=callbacks, module_options=settings, **options
    )
    if outer or fitted:
        fit.data.memory_rows = tuple(toy_task("shape", train=11).train)  # 8 3
    if fitted:
        parameters = fit.adapter.trainable(fit.module.model)
        fusion = FittedFusion(rule=MeanRule(), units=lora_rank_units, fit_epochs=1)
        units = lora_rank_units(parameters)
        # As after a first task.
        state = {"unit_ids": list(units.ids), "accumulated": torch.arange(len(units))}
        fusion.load_state_dict(state)
        fit.callbacks = [fusion]
        fit.data.training_tasks, fit.data.task_index = (task, task), 1
    return fit


def trained(fit: TinyFit) -> dict[str, Any]:
    """What the training left in this process."""
    weights = {name: p.clone() for name, p in fit.fit().items()}
    tracker, counts = fit.module.identification.tracker, fit.module.counts  # type: ignore[union-attr]
    outer = [c for c in fit.callbacks if isinstance(c, RecurrentFusion)]
    return {
        "weights": weights,
        "averages": [
            tracker.sensitivity,
            tracker.uncertainty,
            *(c.tracker.sensitivity for c in outer),
        ],
        "losses": counts.losses,
        "steps": (counts.optimizer_steps, counts.skipped_steps, tracker.num_steps),
        "outer steps": [(c.outer_steps, c.skipped_outer_steps) for c in outer]
        + [c.outer_steps for c in fit.callbacks if isinstance(c, FittedFusion)],
    }


def answered(fit: TinyFit) -> list[dict[int, str]]:
    fit.module.begin_evaluation(2)
    loaders = fit.data.evaluation_dataloaders([0, 0])
    fit.trainer.test(fit.module, dataloaders=loaders, verbose=False)
    return fit.module.answers


def work(folder: Path) -> dict[str, Any]:
    """All of it, in one of two processes."""
    shared: dict[str, Any] = {"trainer_options": DATA_PARALLEL}
    found: dict[str, Any] = {}
    for name, options in FITS.items():
        fit = new_fit(folder, **options, **shared)
        found[name] = trained(fit)
    found["answers"] = answered(fit)
    for where in ("loss", "gradient"):
        # The second of three steps, in the second of this process's two micro-batches.
        fit = new_fit(folder, micro=2, broken=[3], where=where, **shared)
        found[f"broken {where}"] = trained(fit)
    # Two inner steps, two outer ones: the first of these.
    fit = new_fit(folder, broken=[2], where="gradient", outer=True, **shared)
    found["broken outer"] = trained(fit)
    return found


@pytest.fixture(scope="module")
def both(tiny_t5: Path) -> list[dict[str, Any]]:
    return in_processes(work, tiny_t5, join=False)


@pytest.mark.parametrize("name", FITS)
def test_two_processes_train_as_one(tiny_t5: Path, both: Any, name: str) -> None:
    alone = trained(new_fit(tiny_t5, **{"micro": 4, **FITS[name]}))
    for each in both:
        found = each[name]
        assert found["steps"] == alone["steps"]
        assert found["outer steps"] == alone["outer steps"]
        assert_near(found["weights"], alone["weights"], 1e-5)
        for averages, expected in zip(found["averages"], alone["averages"], strict=True):
            assert_near(averages, expected, 1e-3)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_near(both[0][name]["weights"], both[1][name]["weights"], 0.0)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_broken_in_one_process_is_skipped_in_both(
    tiny_t5: Path, both: Any, where: str
) -> None:
    found = [each[f"broken {where}"] for each in both]
    fit = new_fit(tiny_t5)
    plain = fit.plain(skip=[1])
    for each in found:
        assert each["steps"] == (2, 1, 2)
        assert len(each["losses"]) == 2
        assert_near(each["weights"], plain.weights, 1e-5)
        assert_near(each["averages"][0], plain.averages()[0], 1e-3)
    assert_near(found[0]["weights"], found[1]["weights"], 0.0)


def test_an_outer_step_broken_in_one_process_is_left_out_in_both(both: Any) -> None:
    found = [each["broken outer"] for each in both]
    for each in found:
        assert each["outer steps"] == [(7, 1)]  # two rounds of four
        assert all(weight.isfinite().all() for weight in each["weights"].values())
    assert_near(found[0]["weights"], found[1]["weights"], 0.0)


def test_each_row_is_answered_once(tiny_t5: Path, both: Any) -> None:
    fit = new_fit(tiny_t5, **FITS["recurrent"])
    fit.fit()
    for place, alone in enumerate(answered(fit)):
        first, second = (each["answers"][place] for each in both)
        assert not first.keys() & second.keys()
        assert {**first, **second} == alone
        assert (len(first), len(second), len(alone)) == (5, 4, 9)
