"""Keep the weights of the step with the lowest held-out loss."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kif_lightning.errors import require_choice, require_count

log = logging.getLogger(__name__)


class SelectBestStep(Callback):
    """Every ``every_steps`` optimizer steps: loss on held-out train rows; at the end the best step.

    Lightning counts the looks in micro-batches: with accumulation and a ragged last step
    they drift off the multiples of ``every_steps``.

    Must stand before the fusion callback, so that the selected weights are the ones fused.

    Args:
        num_held_out: train rows of each task kept from training.
        every_steps: optimizer steps between two looks.
        importance: ``selected``: the averages of the selected step too; ``last``: those of the last
            step, as in the authors' code.

    Raises:
        UserError: a number below 1, or an unknown importance.
    """

    def __init__(
        self,
        *,
        num_held_out: int = 100,
        every_steps: int = 40,
        importance: Literal["selected", "last"] = "selected",
    ) -> None:
        require_count("selection.num_held_out", num_held_out)
        require_count("selection.every_steps", every_steps)
        require_choice("selection.importance", importance, ("selected", "last"))
        self.num_held_out = num_held_out
        self.every_steps = every_steps
        self.importance = importance
        self._best_loss = float("inf")
        self._best_step = 0
        self._weights: dict[str, Tensor] = {}
        self._averages: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new task: nothing selected yet."""
        self._best_loss = float("inf")
        self._best_step = 0
        self._weights = {}
        self._averages = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights if this is the best look so far."""
        loss = float(trainer.callback_metrics["held_out_loss"])
        if not loss < self._best_loss:
            return
        module: Any = pl_module
        self._best_loss, self._best_step = loss, trainer.global_step
        self._weights = {n: p.detach().clone() for n, p in module.trainable_parameters.items()}
        if self.importance == "selected" and module.identification is not None:
            self._averages = _copied(module.identification.state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the selected weights back."""
        module: Any = pl_module
        if not self._weights:
            log.warning(
                "No step was selected: the task has %d optimizer steps, a look comes every %d. "
                "The last weights are used.",
                trainer.global_step,
                self.every_steps,
            )
            return
        with torch.no_grad():
            for name, parameter in module.trainable_parameters.items():
                parameter.copy_(self._weights[name])
        if self._averages is not None:
            module.identification.load_state_dict(self._averages)
        log.info("Selected step %d (held-out loss %.4f)", self._best_step, self._best_loss)
        self._weights, self._averages = {}, None


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state
