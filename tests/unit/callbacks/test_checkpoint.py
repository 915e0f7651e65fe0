"""When a training is saved within its task, and that it goes on from there as if never cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kif_lightning.callbacks import StopBetweenSteps, TaskCheckpoint
from kif_lightning.callbacks import checkpoint as checkpoint_module
from kif_lightning.checkpoint_io import SafeCheckpointIO
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.interruption import Interrupted, Interruption
from kif_lightning.kif import ImportanceTracker
from kif_lightning.storage import load_state
from tests.helpers.fits import TinyFit


class Draws(Callback):
    """Draws from every generator after each batch, as a method's callback may."""

    def __init__(self) -> None:
        self.drawn: list[list[float]] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.drawn.append([float(torch.rand(())), float(np.random.rand()), random.random()])

    def task_state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        self.drawn = state["drawn"]


class After(Callback):
    """Calls something after every batch, with the number of batches so far."""

    def __init__(self, act: Callable[[int], object]) -> None:
        self.act, self.batches = act, 0

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.batches += 1
        self.act(self.batches)


def nothing(_: Any) -> None: ...


def new_fit(
    folder: Path,
    *,
    save: Callable[[Trainer], None] = nothing,
    interruption: Interruption | None = None,
    every_steps: int | None = None,
    every_minutes: float | None = None,
    before: Callable[[int], object] = nothing,
    **options: Any,
) -> tuple[TinyFit, TaskCheckpoint, Draws]:
    """Three epochs of three optimizer steps (8, 8 and 3 rows)."""
    draws = Draws()
    checkpoint = TaskCheckpoint(
        keepers={"draws": draws, "another": Callback()},
        save=save,
        interruption=interruption or Interruption(),
        every_steps=every_steps,
        every_minutes=every_minutes,
    )
    fit = TinyFit(
        folder,
        epochs=3,
        callbacks=[After(before), draws, checkpoint],
        module_options={"identification": Identification(tracker=ImportanceTracker())},
        trainer_options={"plugins": [SafeCheckpointIO()]},
        **options,
    )
    fit.module.strict_loading = False
    return fit, checkpoint, draws


def trained(fit: TinyFit) -> dict[str, Any]:
    for draw in (torch.manual_seed, np.random.seed, random.seed):
        draw(7)
    return {name: weight.clone() for name, weight in fit.fit().items()}


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        # Steps 3 and 6 end an epoch that another follows: the next step is waited for.
        (1, [1, 2, 4, 5, 7, 8, 9]),
        (2, [2, 4, 7, 9]),
        (3, [4, 7]),
        (9, [9]),
        (10, []),
        (None, []),
    ],
)
@pytest.mark.parametrize("micro", [None, 4])
def test_saved_every_so_many_optimizer_steps(
    tiny_t5: Path, micro: int | None, every: int | None, expected: list[int]
) -> None:
    saved: list[int] = []
    fit, _, _ = new_fit(
        tiny_t5, save=lambda t: saved.append(t.global_step), every_steps=every, micro=micro
    )
    fit.fit()
    assert saved == expected


@pytest.mark.parametrize(
    ("minutes", "expected"),
    # A step takes 20 s. At the end of 1 minute, step 3, an epoch ends.
    [(0.5, [2, 4, 7, 9]), (1.0, [4, 7]), (3.0, [9]), (4.0, [])],
)
def test_saved_every_so_many_minutes(
    tiny_t5: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, expected: list[int]
) -> None:
    clock: Any = SimpleNamespace(now=1000.0, perf_counter=lambda: 0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(checkpoint_module, "time", clock)

    def pass_on(_: int) -> None:
        clock.now += 20.0

    saved: list[int] = []
    fit, _, _ = new_fit(
        tiny_t5,
        save=lambda t: saved.append(t.global_step),
        every_minutes=minutes,
        before=pass_on,
    )
    fit.fit()
    assert saved == expected


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("requested_after", [1, 3, 5])
def test_a_stopped_training_goes_on_bit_by_bit(
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    micro: int | None,
    requested_after: int,
) -> None:
    """The request comes with an optimizer step's first micro-batch."""
    # A step of 8 rows has so many micro-batches, an epoch's last of 3 rows fewer.
    sizes = ((4, 4, 2) if micro else (1, 1, 1)) * 3
    batch = sum(sizes[: requested_after - 1]) + 1
    stopped_at = requested_after + (requested_after == 3)  # an epoch's end
    whole, _, drawn = new_fit(tiny_t5, micro=micro)
    weights = trained(whole)

    interruption, folder = Interruption(), tmp_path / "step"

    def request(batches: int) -> None:
        if batches == batch:
            interruption.requested = "SIGTERM"

    def save(trainer: Trainer) -> None:
        trainer.save_checkpoint(folder)

    cut, _, _ = new_fit(tiny_t5, micro=micro, save=save, interruption=interruption, before=request)
    with pytest.raises(Interrupted):
        trained(cut)
    assert cut.trainer.global_step == stopped_at
    saved = load_state(folder)
    assert saved["state_dict"] == saved["callbacks"] == {}, "no frozen weights"
    assert len(saved["task"]["callbacks"]["draws"]["drawn"]) == sum(sizes[:stopped_at])
    assert saved["task"]["callbacks"].keys() == {"draws"}

    resumed, checkpoint, redrawn = new_fit(tiny_t5, micro=micro)
    monkeypatch.setattr(Trainer, "fit", partialmethod(Trainer.fit, ckpt_path=folder))
    again = trained(resumed)
    assert checkpoint.seconds == saved["task"]["seconds"] > 0
    assert redrawn.drawn == drawn.drawn
    assert resumed.module.counts == whole.module.counts
    assert resumed.module.logged_steps == whole.module.logged_steps
    for name, weight in weights.items():
        assert torch.equal(again[name], weight), name
    trackers: Any = [fit.module.identification.tracker for fit in (resumed, whole)]  # type: ignore[union-attr]
    for kind in ("sensitivity", "uncertainty"):
        found, expected = (getattr(tracker, kind) for tracker in trackers)
        for name, average in expected.items():
            assert torch.equal(found[name], average), (kind, name)


def test_the_checkpoints_cadence_goes_on_where_it_was(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(trainer: Trainer) -> None:
        trainer.save_checkpoint(tmp_path / "step")
        raise Interrupted

    fit, _, _ = new_fit(tiny_t5, save=first, every_steps=4)
    with pytest.raises(Interrupted):
        trained(fit)
    saved: list[int] = []
    resumed, _, _ = new_fit(tiny_t5, save=lambda t: saved.append(t.global_step), every_steps=4)
    monkeypatch.setattr(Trainer, "fit", partialmethod(Trainer.fit, ckpt_path=tmp_path / "step"))
    trained(resumed)
    assert saved == [8]


def test_a_training_that_stops_early_is_saved_at_its_epochs_end(tiny_t5: Path) -> None:
    saved: list[int] = []
    fit, _, _ = new_fit(
        tiny_t5,
        save=lambda t: saved.append(t.global_step),
        every_steps=3,
        before=lambda n: setattr(fit.trainer, "should_stop", n == 3),
    )
    fit.fit()
    assert saved == [3]
    assert fit.trainer.global_step == 3


def test_a_short_training_stops_between_two_batches(tiny_t5: Path) -> None:
    interruption, done = Interruption(), After(nothing)

    class Requests(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if batch_idx == 1:
                interruption.requested = "SIGINT"

    fit = TinyFit(tiny_t5, callbacks=[Requests(), done, StopBetweenSteps(interruption)])
    with pytest.raises(Interrupted):
        fit.fit()
    assert done.batches == 2


@pytest.mark.parametrize(
    ("cadence", "key"),
    [
        ({"every_steps": 0}, "checkpoint.every_steps"),
        ({"every_steps": 1.5}, "checkpoint.every_steps"),
        ({"every_minutes": 0}, "checkpoint.every_minutes"),
        ({"every_minutes": -1.0}, "checkpoint.every_minutes"),
        ({"every_minutes": float("nan")}, "checkpoint.every_minutes"),
    ],
)
def test_an_impossible_cadence_is_refused(cadence: dict[str, Any], key: str) -> None:
    settings = {"every_steps": None, "every_minutes": None, **cadence}
    with pytest.raises(UserError) as error:
        TaskCheckpoint(keepers={}, save=nothing, interruption=Interruption(), **settings)
    assert key in str(error.value)
    assert "null" in str(error.value)
