"""Recurrent-KIF: past and present merged many times within a task, as a Lightning callback."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import AdamW

from kif_lightning import ranks
from kif_lightning.errors import UserError, require_between, require_count
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Batch, LearningModule, Needs, all_finite
from kif_lightning.kif import ImportanceTracker, merge_, top_mask

log = logging.getLogger(__name__)


class RecurrentFusion(Callback):
    """Rounds of inner steps on the task and outer steps on memory rows, merged weight by weight.

    A round (arXiv 2502.17510) goes from theta. The inner side: ``num_inner_steps`` of the trainer's
    own optimizer steps; steps skipped for a non-finite gradient do not count. The outer side:
    ``num_outer_steps`` from theta again, on memory rows of past tasks, with an AdamW of the
    callback's own, without weight decay and clipping. Then ``theta <- theta + m_in delta_in + m_out
    delta_out``, see :func:`kif_lightning.kif.merge_`. The last round of a task may be shorter.
    Without memory rows, in the first task, training is plain.

    The outer optimizer is new in each task; the inner one keeps its state across the merges. An
    outer step with a non-finite loss or gradient is left out and counted. With fp16 the outer steps
    run without a loss scale. Importance on both sides is read before each step, unclipped. Several
    processes share the rows of an outer step and sum their gradients.

    The module must offer ``trainable_parameters``, ``identification`` and ``step_loss(batch)``, the
    datamodule ``memory_rows`` and ``row_steps(rows, purpose)``.

    Args:
        tracker: importance of the outer side.
        num_inner_steps: Q.
        num_outer_steps: M.
        outer_lr: learning rate of the outer steps, constant.
        top_percent: share of weights important to a side, in (0, 100].
        outer_share_both: m_out = 1 - m_in of weights important to both sides.
        outer_share_neither: the same of weights important to neither.
        restart_inner: inner importance starts from zero in each round, else in each task.
        restart_outer: the same of outer importance.

    Raises:
        UserError: a value out of range; a module whose importance is not read before every step.
    """

    needs = Needs(memory=True, last_step=True)

    def __init__(
        self,
        *,
        tracker: ImportanceTracker,
        num_inner_steps: int = 8,
        num_outer_steps: int = 4,
        outer_lr: float = 1e-3,
        top_percent: float = 20.0,
        outer_share_both: float = 0.6,
        outer_share_neither: float = 0.5,
        restart_inner: bool = True,
        restart_outer: bool = False,
    ) -> None:
        require_count("recurrent.num_inner_steps", num_inner_steps)
        require_count("recurrent.num_outer_steps", num_outer_steps)
        require_between("recurrent.outer_lr", outer_lr, 0.0, float("inf"), low_open=True)
        require_between("recurrent.top_percent", top_percent, 0.0, 100.0, low_open=True)
        require_between("recurrent.outer_share_both", outer_share_both, 0.0, 1.0)
        require_between("recurrent.outer_share_neither", outer_share_neither, 0.0, 1.0)
        self.tracker = tracker
        self.num_inner_steps = num_inner_steps
        self.num_outer_steps = num_outer_steps
        self.outer_lr = outer_lr
        self.top_percent = top_percent
        self.outer_share_both = outer_share_both
        self.outer_share_neither = outer_share_neither
        self.restart_inner = restart_inner
        self.restart_outer = restart_outer
        self.outer_steps = self.skipped_outer_steps = 0
        """Of the present task, or the last one."""
        self._steps: Iterator[list[Batch]] | None = None
        self._optimizer: AdamW | None = None
        self._start: dict[str, Tensor] = {}
        self._steps_before = 0
        self._drawn = 0
        """Outer steps' batches taken in the present task."""

    def check(self, module: LearningModule) -> None:
        """Refuse a module without importance, or with one that leaves steps out."""
        found = module.identification
        if not isinstance(found, Identification):
            raise UserError(
                "Recurrent fusion needs the importance of the weights, but none is tracked: use "
                "method/importance=order2 (or order1)."
            )
        if found.timing != "before_step" or found.skip_first_step:
            raise UserError(
                "Recurrent fusion expects importance read before every step, got "
                f"timing={found.timing}, skip_first_step={found.skip_first_step}: set "
                "method.importance.timing=before_step and method.importance.skip_first_step=false."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without memory rows there is nothing to merge in this task."""
        module, datamodule = _any(pl_module), _any(trainer).datamodule
        self.check(module)
        self.outer_steps = self.skipped_outer_steps = 0
        if not datamodule.memory_rows:
            return
        self._steps = datamodule.row_steps(datamodule.memory_rows, "outer steps")
        parameters = module.trainable_parameters
        self._optimizer = AdamW(parameters.values(), lr=self.outer_lr, weight_decay=0.0)
        self.tracker.reset(parameters)
        self._drawn = 0
        self._begin_round(module)

    def task_state(self) -> dict[str, Any]:
        """The round's start and the outer side; nothing where training is plain."""
        if self._optimizer is None:
            return {}
        learnt = zip(self._start, self._optimizer.param_groups[0]["params"], strict=True)
        state = self._optimizer.state
        return {
            "start": dict(self._start),
            "tracker": self.tracker.state_dict(),
            "optimizer": {name: dict(state[p]) for name, p in learnt if p in state},
            "steps_before": self._steps_before,
            "drawn": self._drawn,
            "outer_steps": self.outer_steps,
            "skipped_outer_steps": self.skipped_outer_steps,
        }

    def load_task_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`task_state` gave."""
        if self._steps is None or self._optimizer is None:
            return
        kept = {place: state["optimizer"].get(name) for place, name in enumerate(self._start)}
        # torch counts steps on the CPU and would leave the number where it is.
        moments = {i: {**each, "step": each["step"].cpu()} for i, each in kept.items() if each}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._start = {n: state["start"][n].to(t.device, copy=True) for n, t in self._start.items()}
        self.tracker.load_state_dict(state["tracker"])
        self._steps_before = state["steps_before"]
        self.outer_steps = state["outer_steps"]
        self.skipped_outer_steps = state["skipped_outer_steps"]
        self._drawn = state["drawn"]
        for _ in range(self._drawn):
            next(self._steps)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Close the round once it has its inner steps."""
        if self._steps is not None and self._inner_steps(pl_module) == self.num_inner_steps:
            self._close_round(trainer, pl_module)
            self._begin_round(_any(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the last round, if it has any step; keep nothing."""
        if self._steps is None:
            return
        if self._inner_steps(pl_module):
            self._close_round(trainer, pl_module)
        if self.skipped_outer_steps:
            log.warning(
                "%d outer steps had a non-finite loss or gradient and were left out.",
                self.skipped_outer_steps,
            )
        self._steps, self._optimizer, self._start = None, None, {}

    def _inner_steps(self, pl_module: LightningModule) -> int:
        """The tracker counts optimizer steps, neither micro-batches nor skipped steps."""
        steps: int = _any(pl_module).identification.tracker.num_steps
        return steps - self._steps_before

    def _begin_round(self, module: LearningModule) -> None:
        if self.restart_inner:
            module.identification.begin_task()
        self._steps_before = module.identification.tracker.num_steps
        self._start = {n: p.detach().clone() for n, p in module.trainable_parameters.items()}

    def _close_round(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = _any(pl_module)
        parameters = module.trainable_parameters
        delta_in = _change(self._start, parameters)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self._start[name])
        self._outer_steps(trainer, pl_module)
        merge_(
            parameters,
            self._start,
            delta_in,
            _change(self._start, parameters),
            top_mask(module.identification.tracker.weight_scores(), self.top_percent),
            top_mask(self.tracker.weight_scores(), self.top_percent),
            outer_share_both=self.outer_share_both,
            outer_share_neither=self.outer_share_neither,
        )

    def _outer_steps(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Neither the inner side's gradients come in, nor do the outer side's go out."""
        assert self._steps is not None
        assert self._optimizer is not None
        parameters = _any(pl_module).trainable_parameters
        if self.restart_outer:
            self.tracker.reset(parameters)
        for _ in range(self.num_outer_steps):
            self._optimizer.zero_grad()
            losses = []
            self._drawn += 1
            for batch in next(self._steps):
                on_device = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                with trainer.precision_plugin.forward_context():
                    loss = _any(pl_module).step_loss(on_device)
                loss.backward()
                losses.append(loss.detach())
            gradients = {name: p.grad for name, p in parameters.items()}
            # The sums are the same in every process, and so is what is not finite in them.
            sums = [torch.stack(losses).sum(), *(g for g in gradients.values() if g is not None)]
            ranks.sum_(sums)
            if not all_finite(sums):
                self.skipped_outer_steps += 1
                continue
            self.tracker.update(parameters, gradients)
            self._optimizer.step()
            self.outer_steps += 1
        self._optimizer.zero_grad()


def _change(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The present weights less ``start``, at least in float32."""
    found = {}
    for name, tensor in now.items():
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        found[name] = tensor.detach().to(dtype) - start[name].to(dtype)
    return found


def _any(found: Any) -> Any:
    """Seen without the type that Lightning gives it."""
    return found
