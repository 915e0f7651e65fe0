"""Saves a training within its task, and takes it up again where it was saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kif_lightning import ranks
from kif_lightning.errors import require_between, require_count
from kif_lightning.interfaces import KeepsTaskState
from kif_lightning.interruption import Interrupted, Interruption
from kif_lightning.seeding import random_state, set_random_state


class TaskCheckpoint(Callback):
    """A checkpoint every so many optimizer steps or minutes, and when the run is asked to stop.

    Lightning keeps optimizer, schedule, loss scale, loops and the loader's position. This adds the
    trainable weights (the frozen ones are not saved), the module's counts and importance, what the
    callbacks know within a task, and every rank's random generators. What callbacks and penalties
    make of the weights a task begins with, such as fusion's snapshot, is not saved: a resumed task
    begins as the first time, and only then, at ``on_train_start``, this puts the training's own
    state over it. So it must be the last of the callbacks.

    A checkpoint falls due at the end of an optimizer step, but for the last of an epoch that
    another follows: there the next step's end is waited for.

    Args:
        keepers: the callbacks that may know something within a task, by name.
        save: called with the trainer to write the checkpoint and point to it.
        interruption: asked after every optimizer step.
        every_steps: optimizer steps between two checkpoints; None: not by steps.
        every_minutes: minutes between two; None: not by time.
        started: when the task began, by ``time.perf_counter``; None: now.

    Raises:
        UserError: a cadence below 1 step or not above 0 minutes.
        Interrupted: in training, once the state is saved.
    """

    def __init__(
        self,
        *,
        keepers: Mapping[str, Any],
        save: Callable[[Trainer], None],
        interruption: Interruption,
        every_steps: int | None,
        every_minutes: float | None,
        started: float | None = None,
    ) -> None:
        check_cadence(every_steps, every_minutes)
        self.keepers = {n: c for n, c in keepers.items() if isinstance(c, KeepsTaskState)}
        self.save = save
        self.interruption = interruption
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.seconds = 0.0
        """Spent on the task by the processes before this one, up to the checkpoint."""
        self.started = time.perf_counter() if started is None else started
        self._last_step = self._last_saved = 0
        self._saved_at = time.monotonic()
        self._loaded: dict[str, Any] | None = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep it until the task has begun."""
        self._loaded = checkpoint["task"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the saved training over the begun task."""
        self.interruption.listen()  # Lightning has just taken SIGTERM for itself
        if self._loaded is None:
            return
        module: Any = pl_module
        random_states = self._loaded.pop("random")
        state = _on(module.device, self._loaded)
        self._loaded = None
        with torch.no_grad():
            for name, parameter in module.trainable_parameters.items():
                parameter.copy_(state["weights"][name])
        module.load_task_state(state["module"])
        for name, callback in self.keepers.items():
            callback.load_task_state(state["callbacks"][name])
        self.seconds = state["seconds"]
        # Lightning restores it too late: the schedule's length made it set the loader up before.
        loader: Any = trainer.train_dataloader
        loader.load_state_dict(state["loader"])
        self._last_step = self._last_saved = trainer.global_step
        trainer.should_stop = state["should_stop"]
        set_random_state(random_states[ranks.rank()])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Save where a step is complete and it is time to; stop if asked to."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        stop, due = ranks.any_rank(self.interruption.requested is not None, self._due(step))
        if not (stop or due) or _another_epoch_follows(trainer):
            return
        self.save(trainer)
        self._last_saved, self._saved_at = step, time.monotonic()
        if stop:
            raise Interrupted

    def _due(self, step: int) -> bool:
        by_steps = self.every_steps is not None and step - self._last_saved >= self.every_steps
        minutes = (time.monotonic() - self._saved_at) / 60
        # The ranks' clocks differ: the first one's decides.
        by_time = self.every_minutes is not None and minutes >= self.every_minutes
        return by_steps or (by_time and ranks.is_first())

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """What a resumed task needs, in place of the whole model and the callbacks' states."""
        module: Any = pl_module
        loader: Any = trainer.train_dataloader
        checkpoint["state_dict"], checkpoint["callbacks"] = {}, {}
        checkpoint["task"] = {
            "weights": {name: p.detach() for name, p in module.trainable_parameters.items()},
            "module": module.task_state(),
            "callbacks": {name: c.task_state() for name, c in self.keepers.items()},
            "loader": loader.state_dict(),
            "should_stop": trainer.should_stop,
            "random": ranks.gathered(random_state()),
            "seconds": self.seconds + time.perf_counter() - self.started,
        }


class StopBetweenSteps(Callback):
    """Ends a short training that is not saved, such as a replay, when the run is asked to stop.

    Args:
        interruption: asked after every batch.

    Raises:
        Interrupted: in training; the run goes on from its last state.
    """

    def __init__(self, interruption: Interruption) -> None:
        self.interruption = interruption

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has just taken SIGTERM for itself."""
        self.interruption.listen()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop if asked to."""
        if ranks.any_rank(self.interruption.requested is not None)[0]:
            raise Interrupted


def check_cadence(every_steps: int | None, every_minutes: float | None) -> None:
    """Raise UserError unless both are possible cadences, or None."""
    if every_steps is not None:
        require_count("checkpoint.every_steps (null: not by steps)", every_steps)
    if every_minutes is not None:
        name = "checkpoint.every_minutes (null: not by time)"
        require_between(name, every_minutes, 0.0, float("inf"), low_open=True)


def _another_epoch_follows(trainer: Trainer) -> bool:
    """Whether this was an epoch's last batch, and not the training's.

    The next epoch's loader draws from the generators whose state would be saved.
    """
    last = trainer.current_epoch + 1 >= (trainer.max_epochs or 1)
    return trainer.is_last_batch and not last and not trainer.should_stop


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(device, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on(device, item) for item in value]
    return value
