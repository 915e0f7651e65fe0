"""The LightningModule: fine-tuning on one task, importance from each optimizer step, generation.

Shapes: N rows, L answer tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from inspect import Parameter, signature
from math import isfinite
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from kif_lightning import ranks
from kif_lightning.errors import DivergedError, UserError, require_between, require_choice
from kif_lightning.identification import Identification
from kif_lightning.interfaces import (
    Backbone,
    Batch,
    LearntTask,
    LossContext,
    Parameters,
    Penalty,
    TrainingCounts,
    count_weights,
    finite_here,
)
from kif_lightning.mixed_precision import AUTOCAST_DTYPES, drop_casts_, keep_casts_
from kif_lightning.sharding import shard_model

SCALER_HALVINGS = 17
"""Steps the loss scaler needs from its first scale, 2^16, down to 1/2."""
FUSED_FROM = 10_000_000
"""Trainable weights from which the optimizer is a fused one, unless the user says otherwise."""
LossMean = Literal["step_tokens", "micro_batches"]


class ContinualModule(LightningModule):
    """Trains the present task's trainable weights; the runner tells which task and which weights.

    Args:
        backbone: logits and decoding.
        model: the adapted model.
        optimizer: called with the trainable parameters.
        schedule: called with (optimizer=..., num_training_steps=...).
        penalties: terms added to the loss.
        identification: feeds the importance; None: nothing is tracked.
        loss_mean: ``step_tokens``: mean over all target tokens of the effective batch;
            ``micro_batches``: mean of the micro-batches' means, as in the authors' code.
        lr_factor: the method's share of the optimizer's learning rate: full fine-tuning needs less
            than LoRA, prompts more.
        fused: whether the optimizer updates all weights in one kernel, as torch's can; None: if it
            has the choice, from ``FUSED_FROM`` weights on, without a loss scale, and not where
            mixed precision meets clipping.
        max_skipped_in_a_row: that many optimizer steps without a finite loss and gradient stop the
            run; single ones are skipped whole and counted.

    Raises:
        UserError: in training, when non-finite losses or gradients persist; an unknown loss mean;
            a fused optimizer that there is not, or with what it does not go with.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        model: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        schedule: Callable[..., Any],
        penalties: Sequence[Penalty] = (),
        identification: Identification | None = None,
        loss_mean: LossMean = "step_tokens",
        lr_factor: float = 1.0,
        fused: bool | None = None,
        max_skipped_in_a_row: int = 10,
    ) -> None:
        super().__init__()
        require_choice("method.fixes.loss_mean", loss_mean, ("step_tokens", "micro_batches"))
        require_between("method.fixes.lr_factor", lr_factor, 0, 1e4, low_open=True)
        self.backbone = backbone
        self.model = model
        self.optimizer_factory = optimizer
        self.schedule_factory = schedule
        self.penalties = tuple(penalties)
        self.identification = identification
        self.loss_mean = loss_mean
        self.lr_factor = lr_factor
        self.fused = fused
        self.max_skipped_in_a_row = max_skipped_in_a_row
        self.trainable_parameters: dict[str, nn.Parameter] = {}
        self.counts = TrainingCounts()
        self.logged_steps = 0
        """Optimizer steps of the whole run: the axis of the training curves."""
        self.answers: list[dict[int, str]] = []
        """For each dataloader of the last ``test``: row -> generated text, of this rank's rows."""
        self.answer_losses: list[dict[int, float]] = []
        """The same: row -> nats a token, where the batches bring what should have been answered."""
        self._prepare: Callable[[int], None] = _nothing
        self._skipped_in_a_row = 0
        self._overflows_in_a_row = 0
        self._step_losses: list[Tensor] = []
        self._skip = False
        self._rehearsing = False

    def configure_model(self) -> None:
        """Spread the weights over the ranks if the strategy asks for it; once is enough."""
        if self.device_mesh is None:
            return
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        shard_model(self.model, self.device_mesh)
        spread = dict(self.model.named_parameters())
        self.trainable_parameters = {
            name: spread[names[id(parameter)]]
            for name, parameter in self.trainable_parameters.items()
        }

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Take over the present task's trainable weights and start its counters."""
        # from_pretrained gives modules in eval mode and Lightning leaves modes as they are.
        self.train()
        self.trainable_parameters = dict(parameters)
        self.counts = TrainingCounts()
        self._skipped_in_a_row = self._overflows_in_a_row = 0
        self._step_losses = []
        if self.identification is not None:
            self.identification.begin_task()
        for penalty in self.penalties:
            penalty.begin_task(parameters, task_index)

    def task_state(self) -> dict[str, Any]:
        """What has been counted and averaged within the present task, between two steps of it."""
        return {
            "counts": asdict(self.counts),
            "logged_steps": self.logged_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "overflows_in_a_row": self._overflows_in_a_row,
            "identification": self.identification.state_dict() if self.identification else None,
        }

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`task_state` gave."""
        self.counts = TrainingCounts(**state["counts"])
        self.logged_steps = state["logged_steps"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._overflows_in_a_row = state["overflows_in_a_row"]
        if self.identification is not None:
            self.identification.load_state_dict(state["identification"])

    def end_task(self, task_index: int, learnt: LearntTask) -> None:
        """Called after the boundary."""
        for penalty in self.penalties:
            penalty.end_task(self.trainable_parameters, task_index, learnt)

    @contextmanager
    def rehearsing(self) -> Iterator[TrainingCounts]:
        """Training on rows that are not the task's own: no importance, counters of its own.

        The learning rate stays what the optimizer says: a schedule's warm-up would outlast the few
        steps that a memory takes.
        """
        identification, counts = self.identification, self.counts
        self.identification, self.counts = None, TrainingCounts()
        self._rehearsing = True
        self.train()
        try:
            yield self.counts
        finally:
            self.identification, self.counts = identification, counts
            self._rehearsing = False

    def configure_optimizers(self) -> Any:
        """The injected optimizer and schedule over the trainable weights."""
        fused = self.uses_fused(self.trainer)
        # fused=False would keep torch from its own choice, which on a GPU is a fast one too.
        asked = fused is not None and self.fused is not None
        options = {"fused": fused} if fused or asked else {}
        optimizer = self.optimizer_factory(list(self.trainable_parameters.values()), **options)
        for group in optimizer.param_groups:
            group["lr"] *= self.lr_factor
        if self._rehearsing:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = self.schedule_factory(optimizer=optimizer, num_training_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """With mixed precision, cast the frozen weights once.

        Not where layers are computed again in the backward pass: there memory matters more.
        """
        if not any(getattr(m, "gradient_checkpointing", False) for m in self.model.modules()):
            self._keep_casts()

    def on_train_end(self) -> None:
        """Another task may freeze other weights."""
        drop_casts_(self.model)

    def on_test_start(self) -> None:
        """As in training, but always: a pass of decoding is mostly casts without it."""
        self._keep_casts()

    def on_test_end(self) -> None:
        """As in training."""
        self.on_train_end()

    def _keep_casts(self) -> None:
        dtype = AUTOCAST_DTYPES.get(str(self.trainer.precision))
        if dtype is not None:
            keep_casts_(self.model, dtype)

    def uses_fused(self, trainer: Trainer) -> bool | None:
        """Whether the optimizer of the present weights is a fused one; None: it has no choice.

        Raises:
            UserError: a fused one is asked for where it cannot be had.
        """
        choices = signature(self.optimizer_factory).parameters
        if "fused" not in choices:
            if self.fused:
                raise UserError(
                    "optim.fused=true needs an optimizer with an argument 'fused' (such as "
                    "torch.optim.AdamW), got one without: set optim.fused=null."
                )
            return None
        # What the optimizer's own settings say comes before the number of weights.
        preset = {
            name: choices[name].default
            for name in ("fused", "foreach")
            if name in choices and choices[name].default not in (None, Parameter.empty)
        }
        asked = preset.get("fused") if self.fused is None else self.fused
        plugin = trainer.precision_plugin
        conflicts = {
            # Lightning gives a fused one scaled gradients: importance and clipping would be off.
            "a loss scale (trainer.precision=16-mixed)": getattr(plugin, "scaler", None)
            is not None,
            # And in mixed precision it refuses to clip them, scaled or not.
            "optim.gradient_clip in mixed precision": (
                isinstance(plugin, MixedPrecision) and bool(trainer.gradient_clip_val)
            ),
            "foreach=true among its settings": bool(preset.get("foreach")),
        }
        found = [what for what, there in conflicts.items() if there]
        if asked and found:
            key = "optim.fused" if self.fused else "optim.optimizer.fused"
            raise UserError(
                f"A fused optimizer does not go with {' and '.join(found)}, got {key}=true: set "
                f"{key}=null, or do without the other."
            )
        if asked is None:
            many = count_weights(self.trainable_parameters) >= FUSED_FROM
            return many and not found and "foreach" not in preset
        return bool(asked)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """This micro-batch's share of the optimizer step's loss, the sum over its ``parts`` if any.

        Lightning divides by ``accumulate_grad_batches`` and its strategies take the gradient's mean
        over processes; the share is multiplied by both numbers, so that the step's gradient is that
        of sum over target tokens / number of target tokens, plus penalties.
        """
        parts = [self.step_loss(part) for part in batch.get("parts", [batch])]
        loss = torch.stack(parts).sum()
        self._step_losses.append(loss.detach())
        return loss * (self.trainer.accumulate_grad_batches * ranks.world_size())

    def step_loss(self, batch: Batch) -> Tensor:
        """What a micro-batch adds to the loss of its optimizer step, penalties included.

        A filler adds 0, but goes through the model: sharded weights are gathered by all processes
        together. What is not finite in its gradient is so in that of the real row it copies.
        """
        logits, labels = self.backbone.answer_logits(self.model, batch["inputs"])
        total = token_loss(logits, labels)
        share = 1 / batch["step_micro_batches"]
        if self.loss_mean == "step_tokens":
            loss = total * (1 / batch["step_tokens"])
        else:
            # A ragged last step has fewer micro-batches than Lightning divides by.
            loss = total / (labels >= 0).sum() * share
        if self.penalties:
            context = LossContext(
                parameters=self.trainable_parameters,
                model=self.model,
                batch=batch["inputs"],
                logits=logits,
                labels=labels,
                answer_logits=self.backbone.answer_logits,
                step_tokens=batch["step_tokens"],
                step_micro_batches=batch["step_micro_batches"],
                step_rows=batch["step_rows"],
            )
            with torch.autocast(self.device.type, enabled=False):
                loss = loss + share * sum(penalty(context) for penalty in self.penalties)
        if not batch["weight"]:
            loss = torch.nan_to_num(loss, posinf=0.0, neginf=0.0) * 0.0
        return loss

    def row_loss(self, batch: Batch) -> Tensor:
        """-log p(answer | prompt) of a batch, summed over rows and tokens."""
        return token_loss(*self.backbone.answer_logits(self.model, batch["inputs"]))

    def token_losses(self, inputs: Batch) -> Tensor:
        """-log p(answer | prompt) of each row over its number of answer tokens, (N,) nats."""
        logits, labels = self.backbone.answer_logits(self.model, inputs)
        losses = cross_entropy(
            logits.float().transpose(1, 2), labels, ignore_index=-100, reduction="none"
        )
        return losses.sum(dim=1) / (labels >= 0).sum(dim=1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """One check of the whole step; gradients are accumulated, unscaled, not yet clipped.

        It is the one time in a step that the host waits for the device. All processes find the
        same, in one exchange: a step is taken or skipped by all of them.
        """
        losses = torch.stack(self._step_losses)
        self._step_losses = []
        gradients = [p.grad for p in self.trainable_parameters.values() if p.grad is not None]
        broken = (~finite_here([losses, *gradients])).to(losses.dtype)
        loss, num_broken = ranks.summed(torch.stack([losses.sum(), broken])).tolist()
        self._skip = num_broken > 0
        if self._skip:
            self._count_skip(optimizer, loss)
            return
        self._skipped_in_a_row = self._overflows_in_a_row = 0
        self.counts.optimizer_steps += 1
        self.counts.losses.append(loss)
        self.logged_steps += 1
        if self.trainer.loggers:  # Lightning's bookkeeping costs some milliseconds a step
            logged = {
                "train/loss": loss,
                "train/learning_rate": optimizer.param_groups[0]["lr"],
                "running_step": self.logged_steps,
                "step": self.logged_steps,  # Lightning's own begins anew with each task
            }
            # As tensors of the CPU: Lightning would bring numbers to the device, each with a wait.
            self.log_dict(
                {name: torch.tensor(float(value)) for name, value in logged.items()}, batch_size=1
            )
        if self.identification is not None:
            self.identification.before_step(self.trainable_parameters)

    def _count_skip(self, optimizer: Optimizer, loss: float) -> None:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and isfinite(loss):
            # The loss scaler found its scale too large: it skips the step and lowers the scale.
            self.counts.scaler_overflows += 1
            self._overflows_in_a_row += 1
            if self._overflows_in_a_row >= self.max_skipped_in_a_row + SCALER_HALVINGS:
                raise DivergedError(
                    f"The gradient was not finite in {self._overflows_in_a_row} optimizer steps in "
                    "a row at ever smaller loss scales: use trainer.precision=32-true."
                )
            return
        self.counts.skipped_steps += 1
        self._skipped_in_a_row += 1
        if self._skipped_in_a_row >= self.max_skipped_in_a_row:
            cause = "gradient" if isfinite(loss) else "loss"
            raise DivergedError(
                f"The {cause} was not finite in {self._skipped_in_a_row} optimizer steps in a row, "
                f"after {self.counts.optimizer_steps} good ones: lower optim.lr, set "
                "optim.gradient_clip=1.0, or use trainer.precision=32-true."
            )
        # Without gradients the optimizer leaves weights, momenta and decay as they are.
        optimizer.zero_grad(set_to_none=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step, then the importance where it is read after it."""
        super().optimizer_step(*args, **kwargs)
        if self.identification is not None and not self._skip:
            self.identification.after_step(self.trainable_parameters)

    def begin_evaluation(
        self, num_loaders: int, prepare: Callable[[int], None] | None = None
    ) -> None:
        """So many dataloaders come in the next ``test``.

        ``prepare`` is called with a dataloader's index before its first batch.
        """
        self._prepare = prepare or _nothing
        self.answers = [{} for _ in range(num_loaders)]
        self.answer_losses = [{} for _ in range(num_loaders)]

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Another dataloader begins, so another task."""
        if batch_idx == 0:
            self._prepare(dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep the answers of one batch; a batch without ``rows`` only fills up."""
        texts = answer_texts(self.backbone, self.model, batch)
        # One that fills up goes through the model all the same, as the other processes' do.
        losses = self.token_losses(batch["answered"]).tolist() if "answered" in batch else ()
        if batch["rows"]:
            self.answers[dataloader_idx].update(zip(batch["rows"], texts, strict=True))
            self.answer_losses[dataloader_idx].update(zip(batch["rows"], losses, strict=False))


def answer_texts(backbone: Backbone, model: nn.Module, batch: Batch) -> list[str]:
    """The answers of a batch of :class:`~kif_lightning.batches.EvaluationBatches`, (N,) texts.

    Generated or, where the batch brings labels, the likeliest of them.
    """
    inputs, labels = batch["inputs"], batch["labels"]
    if not labels:
        return backbone.generate(model, inputs, batch["max_new_tokens"])
    ranked = backbone.label_log_probabilities(model, inputs, batch["label_ids"])
    return [labels[best] for best in ranked.argmax(dim=1).tolist()]


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross entropies of all answer tokens, in float32.

    Args:
        logits: (N, L, V).
        labels: (N, L); -100 is not counted.
    """
    return cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
    )


def _nothing(_: int) -> None:
    """No preparation."""
