"""Identification and fusion in one callback, for any Lightning project."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from kif_lightning import ranks
from kif_lightning.callbacks.as_fused import require_as_left, require_finite, samples_of
from kif_lightning.callbacks.fusion import KnowledgeFusion, Partition, Rule
from kif_lightning.callbacks.learnt import (
    learnt_parameters,
    require_averaging_before,
    require_whole_weights,
    the_optimizer,
)
from kif_lightning.errors import DivergedError, UserError, require_count
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Boundary, all_finite
from kif_lightning.kif import AdaptiveRule, ImportanceTracker, fitting_units
from kif_lightning.module import SCALER_HALVINGS
from kif_lightning.storage import load_state, own_folder, save_state

ADAPTIVE = AdaptiveRule()
KEYS = {"fusion", "left", "task"}


@dataclass
class _Learner:
    """What fusion looks at in a module that learns."""

    trainable_parameters: dict[str, nn.Parameter]
    identification: Identification


class ContinualFusion(Callback):
    """KIF for a project that knows nothing of it: hand it to the Trainer of each task in turn.

    One ``fit`` is one task. The weights that learn are those that require a gradient and are in the
    optimizer. Their importance is tracked at each optimizer step, from gradients that are
    accumulated, unscaled and not yet clipped; a step whose gradient is not finite is skipped whole.
    At the fit's end the weights from before it are fused into the present ones, unit by unit; the
    first task's stay as they are. Buffers, such as a batch norm's statistics, are not fused.

    Each fit must begin with the weights that the last one left. A checkpoint written within a fit
    holds weights that are not fused yet: it is for going on with that fit (``ckpt_path=``), where
    nothing is lost. For the next task save the model after ``fit``, and in another process take up
    the importance of the tasks before with :meth:`save` and :meth:`load`.

    The paper adds a penalty to the loss, which a callback cannot. With LoRA, ``training_step`` may
    add ``0.1 * orthonormality(dict(self.named_parameters()))`` from
    ``kif_lightning.penalties.orthonormality``.

    Args:
        rule: (previous, current) normalised scores (U,) -> share of the previous weights (U,).
        units: trainable weights -> skill units; by default LoRA's ranks where LoRA alone is
            trainable, else whole tensors.
        beta: share of the past in the accumulated importance, in [0, 1].
        tracker: the running averages; None: ``ImportanceTracker()``.
        top_percent: share of units that count as important in the reported classes, in (0, 100].
        offload_snapshot: keep the weights before the task in the CPU's memory.
        max_skipped_in_a_row: that many optimizer steps without a finite gradient stop the training.

    Raises:
        UserError: a value out of range; in ``fit``: nothing learns; other units, or other weights,
            than the last task left; several optimizers; a fused one with a loss scale; LBFGS;
            weights spread over devices; processes whose memory is lost after the fit; a callback
            behind this one that overwrites the fused weights by averaged ones.
    """

    def __init__(
        self,
        *,
        rule: Rule = ADAPTIVE,
        units: Partition = fitting_units,
        beta: float = 0.7,
        tracker: ImportanceTracker | None = None,
        top_percent: float = 20.0,
        offload_snapshot: bool = False,
        max_skipped_in_a_row: int = 10,
    ) -> None:
        require_count("max_skipped_in_a_row", max_skipped_in_a_row)
        self.fusion = KnowledgeFusion(
            rule=rule,
            units=units,
            beta=beta,
            top_percent=top_percent,
            offload_snapshot=offload_snapshot,
        )
        self.identification = Identification(tracker=tracker or ImportanceTracker())
        self.max_skipped_in_a_row = max_skipped_in_a_row
        self.skipped_steps = 0
        """Of the last task; those that a loss scaler skips are not counted."""
        self._broken_in_a_row = 0
        self._left: dict[str, Tensor] | None = None
        """A sample of each tensor as the last fusion left it."""
        self._has_learnt = False
        self._learner: _Learner | None = None
        self._resumed: dict[str, Any] | None = None
        self._stage: str | None = None

    @property
    def boundary(self) -> Boundary | None:
        """What happened to every unit at the end of the last task."""
        return self.fusion.boundary

    def boundary_table(self) -> dict[str, list[Any]]:
        """The last boundary, column by column, one row a unit: ``pandas.DataFrame`` takes it.

        Raises:
            UserError: no task has ended here yet.
        """
        boundary = self.boundary
        if boundary is None:
            raise UserError("There is no task boundary to show yet: call it after trainer.fit.")
        columns: dict[str, Any] = {
            "unit": list(boundary.unit_ids),
            "score": boundary.score.tolist(),
            "current": boundary.current.tolist(),
            "accumulated": boundary.accumulated.tolist(),
        }
        if boundary.previous is not None and boundary.weight is not None:
            columns["previous"] = boundary.previous.tolist()
            columns["weight_of_past"] = boundary.weight.tolist()
            columns["class"] = list(boundary.classes or ())
        return columns

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse, before anything is loaded, what fusion cannot work with."""
        self._stage = stage
        self._has_learnt = False
        if stage == "fit":
            require_whole_weights(trainer)
            require_averaging_before(trainer, self)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checkpoints of Lightning are no longer loaded."""
        self._stage = None

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on with a fit that was not tracked from its beginning."""
        if self._stage == "fit" and self.state_key not in checkpoint["callbacks"]:
            raise UserError(
                "Expected a checkpoint that was written with ContinualFusion, got one without its "
                "state: what has been learnt was not tracked, so begin this task anew, without "
                "ckpt_path."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights as they are, or take up the task where a checkpoint was written."""
        parameters = learnt_parameters(pl_module, the_optimizer(trainer))
        resumed, self._resumed = self._resumed, None
        self._learner = None
        if resumed is None:
            require_finite(parameters)
            require_as_left(self._left or {}, parameters)
        learner = _Learner(parameters, self.identification)
        self.identification.begin_task()
        self.fusion.begin(learner, resumed and (resumed["snapshot"] or None))
        self.skipped_steps = self._broken_in_a_row = 0
        if resumed is not None:
            averages = resumed["identification"]["tracker"]["sensitivity"]
            if averages and averages.keys() != parameters.keys():
                raise UserError(_other_weights("the checkpoint", averages, parameters))
            self.identification.load_state_dict(resumed["identification"])
            self.skipped_steps = resumed["skipped_steps"]
            self._broken_in_a_row = resumed["broken_in_a_row"]
        self._learner = learner

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Read the importance; a step that is not finite is skipped whole."""
        assert self._learner is not None
        parameters = self._learner.trainable_parameters
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        if not gradients:  # training_step gave no loss
            return
        if all_finite(gradients):
            self._broken_in_a_row = 0
            self.identification.before_step(parameters)
            return
        self._broken_in_a_row += 1
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        most = self.max_skipped_in_a_row + (SCALER_HALVINGS if scaled else 0)
        if self._broken_in_a_row >= most:
            raise DivergedError(
                f"The gradient was not finite in {self._broken_in_a_row} optimizer steps in a "
                "row: use a lower learning rate, clip gradients, or train in full precision."
            )
        if not scaled:  # the loss scaler skips the step by itself, and lowers its scale
            self.skipped_steps += 1
            # Without gradients the optimizer leaves weights, momenta and decay as they are.
            optimizer.zero_grad(set_to_none=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse weights that began, or ceased, to learn within the task."""
        assert self._learner is not None
        now = learnt_parameters(pl_module, the_optimizer(trainer))
        if now.keys() != self._learner.trainable_parameters.keys():
            before = self._learner.trainable_parameters
            raise UserError(_other_weights("the task's beginning", before, now))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Identify, then fuse."""
        assert self._learner is not None
        if self.identification.tracker.num_steps == 0:
            raise UserError(
                "Expected at least one optimizer step with a finite gradient in the task, got "
                "none: train on more rows or for more steps."
            )
        parameters = self._learner.trainable_parameters
        self.fusion.identify(self._learner)
        self.fusion.fuse(parameters)
        self._left = samples_of(parameters)
        self._has_learnt = True
        self.identification.begin_task()  # releases the averages
        self._learner = None
        if self.skipped_steps:
            warnings.warn(
                f"{self.skipped_steps} optimizer steps of the task were skipped, their gradient "
                "was not finite.",
                stacklevel=2,
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fuse what a checkpoint of the very last step left: Lightning has no step to take."""
        if self._resumed is not None:
            self.on_train_start(trainer, pl_module)
            self.on_train_end(trainer, pl_module)
        if not self._has_learnt:
            warnings.warn(
                "The fit ended without a step: no task was learnt and nothing was fused; look at "
                "max_epochs, max_steps and limit_train_batches.",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Any]:
        """The importance of the tasks before and, within a task, what has been tracked of it."""
        task = None
        if self._learner is not None:
            task = {
                "snapshot": dict(self.fusion.snapshot),
                "identification": self.identification.state_dict(),
                "skipped_steps": self.skipped_steps,
                "broken_in_a_row": self._broken_in_a_row,
            }
        return {"fusion": self.fusion.state_dict(), "left": self._left, "task": task}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave.

        But for going on with a fit, Lightning's loading of a checkpoint (``trainer.test`` with
        ``ckpt_path``) is none of this callback's business.
        """
        if self._stage not in (None, "fit"):
            return
        self.fusion.load_state_dict(state_dict["fusion"])
        self._left = state_dict["left"]
        self._resumed = state_dict["task"]
        self._learner = None

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the importance of all tasks so far, whole or not at all; all ranks must call.

        Args:
            folder: new, empty, or what an earlier ``save`` wrote, which is replaced.

        Raises:
            UserError: no task has ended yet, or one is under way; the folder holds something else.
            OSError: the disk is full, or cannot be written.
        """
        if self._left is None or self._learner is not None or self._resumed is not None:
            raise UserError(
                "Expected a task that has ended, got none or one that is under way: call save "
                "after trainer.fit has returned."
            )
        ranks.on_first(lambda: save_state(own_folder(folder, KEYS), self.state_dict()))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Go on after the tasks that :meth:`save` wrote; the model's weights you load yourself.

        Raises:
            UserError: missing or damaged, or something else.
        """
        state = load_state(Path(folder))
        if state.keys() != KEYS:
            raise UserError(
                f"Expected a folder that ContinualFusion.save wrote, got another in {folder}: name "
                "the right one."
            )
        self.load_state_dict(state)


def _other_weights(since: str, before: Any, now: Any) -> str:
    name = sorted(before.keys() ^ now.keys())[0]
    return (
        f"Expected the same weights to learn as at {since}, got {len(now)} tensors instead of "
        f"{len(before)}, or others ({name}): what learns must stay the same through all tasks."
    )
