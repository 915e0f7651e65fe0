"""Keep the weights of the step with the lowest held-out loss, and stop where it falls no more."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from kif_lightning import ranks
from kif_lightning.errors import UserError, require_between, require_choice, require_count
from kif_lightning.modes import evaluating

log = logging.getLogger(__name__)


class SelectBestStep(Callback):
    """Every ``every_steps`` optimizer steps a look at held-out loss; at the end the best step.

    A look is a pass over the datamodule's ``selection_dataloader`` without dropout, in the
    precision of the training. Steps skipped because the loss was not finite are counted too.

    Must stand before the fusion callback, so that the selected weights are the ones fused.

    Args:
        rows: what is looked at. ``held_out``: rows of train, kept from training; ``dev``: the
            data's own dev rows, which in public benchmarks are often rows of test.
        num_held_out: train rows of each task kept from training, drawn uniformly.
        held_out_share: instead, a share of them in (0, 1], of each class the same where answers are
            closed.
        every_steps: optimizer steps between two looks.
        importance: ``selected``: the averages of the selected step too; ``last``: those of the last
            step, as in the authors' code.
        patience: so many looks in a row without a lower loss end the task's training; None: never.

    Raises:
        UserError: a number out of range, an unknown choice, not exactly one of ``num_held_out``
            and ``held_out_share`` (none of them with ``dev``).
    """

    def __init__(
        self,
        *,
        rows: Literal["held_out", "dev"] = "held_out",
        num_held_out: int | None = None,
        held_out_share: float | None = None,
        every_steps: int = 10,
        importance: Literal["selected", "last"] = "selected",
        patience: int | None = None,
    ) -> None:
        require_choice("selection.rows", rows, ("held_out", "dev"))
        require_count("selection.every_steps", every_steps)
        require_choice("selection.importance", importance, ("selected", "last"))
        if num_held_out is not None:
            require_count("selection.num_held_out", num_held_out)
        if held_out_share is not None:
            require_between("selection.held_out_share", held_out_share, 0.0, 1.0, low_open=True)
        if patience is not None:
            require_count("selection.patience (null for never)", patience)
        given = f"got num_held_out={num_held_out} and held_out_share={held_out_share}"
        num_given = sum(value is not None for value in (num_held_out, held_out_share))
        if rows == "dev" and num_given != 0:
            raise UserError(
                f"selection.rows=dev holds no rows of train out, {given}: set both to null."
            )
        if rows == "held_out" and num_given != 1:
            raise UserError(
                f"selection holds rows of train out by their number or by their share, {given}: "
                "set exactly one of them, the other to null."
            )
        self.rows = rows
        self.num_held_out = num_held_out
        self.held_out_share = held_out_share
        self.every_steps = every_steps
        self.importance = importance
        self.patience = patience
        self._begin()

    def _begin(self) -> None:
        self.selected_step: int | None = None
        """Of the last task; None: no look was worth keeping."""
        self.stopped_early = False
        """Whether the last task's training ended before its planned steps."""
        self._best_loss = float("inf")
        self._last_look = self._num_looks = self._looks_since_best = 0
        self._weights: dict[str, Tensor] = {}
        self._averages: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new task: nothing selected yet."""
        self._begin()

    def task_state(self) -> dict[str, Any]:
        """The looks so far and what is kept of the best one."""
        return {
            "selected_step": self.selected_step,
            "stopped_early": self.stopped_early,
            "best_loss": self._best_loss,
            "last_look": self._last_look,
            "num_looks": self._num_looks,
            "looks_since_best": self._looks_since_best,
            "weights": self._weights,
            "averages": self._averages,
        }

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`task_state` gave."""
        self.selected_step, self.stopped_early = state["selected_step"], state["stopped_early"]
        self._best_loss, self._last_look = state["best_loss"], state["last_look"]
        self._num_looks, self._looks_since_best = state["num_looks"], state["looks_since_best"]
        self._weights, self._averages = state["weights"], state["averages"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look where a step that is a multiple of ``every_steps`` has just been taken."""
        step = trainer.global_step
        # Until the next step's last micro-batch the count stays: one look is enough.
        if step == self._last_look or step % self.every_steps:
            return
        self._last_look = step
        self._num_looks += 1
        module: Any = pl_module
        # The ranks' losses may differ in the last bit, but not what they select.
        loss = ranks.from_first(_loss_per_token(trainer, module))
        for logger in trainer.loggers:
            axes = {"running_step": float(module.logged_steps)}
            logger.log_metrics({"held_out_loss": loss, **axes}, step=module.logged_steps)
        if loss < self._best_loss:
            self._keep(loss, step, module)
            return
        self._looks_since_best += 1
        if self._looks_since_best == self.patience:
            trainer.should_stop = True
            self.stopped_early = step < trainer.estimated_stepping_batches

    def _keep(self, loss: float, step: int, module: Any) -> None:
        self._best_loss, self.selected_step, self._looks_since_best = loss, step, 0
        self._weights = {n: p.detach().clone() for n, p in module.trainable_parameters.items()}
        if self.importance == "selected" and module.identification is not None:
            self._averages = _copied(module.identification.state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the selected weights back."""
        module: Any = pl_module
        if self.selected_step is None:
            why = (
                f"none of {self._num_looks} held-out losses was finite"
                if self._num_looks
                else f"the task has {trainer.global_step} optimizer steps, a look comes every "
                f"{self.every_steps} (method.selection.every_steps)"
            )
            log.warning("No step was selected: %s. The last weights are used.", why)
            return
        with torch.no_grad():
            for name, parameter in module.trainable_parameters.items():
                parameter.copy_(self._weights[name])
        if self._averages is not None:
            module.identification.load_state_dict(self._averages)
        log.info(
            "Selected step %d of %d%s (held-out loss %.4f)",
            self.selected_step,
            trainer.global_step,
            ", stopped early" if self.stopped_early else "",
            self._best_loss,
        )
        self._weights, self._averages = {}, None


@torch.no_grad()
def _loss_per_token(trainer: Any, module: Any) -> float:
    losses, tokens = [], 0
    with evaluating(module), trainer.precision_plugin.val_step_context():
        for batch in trainer.datamodule.selection_dataloader():
            tokens += batch["step_tokens"]
            losses.append(module.row_loss(module.transfer_batch_to_device(batch, module.device, 0)))
    return float(torch.stack(losses).sum()) / tokens


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    return state
