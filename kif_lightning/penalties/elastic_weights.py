"""Online elastic weight consolidation: weights that mattered to past tasks are held in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kif_lightning.errors import UserError, require_between, require_count
from kif_lightning.interfaces import LearntTask, LossContext, Needs, Parameters


class ElasticWeights:
    """``coefficient / 2 * sum_i F_i (theta_i - anchor_i)^2``, zero until a task is learnt.

    After each task ``F <- decay * F + F_task`` and the anchor becomes the present weights; F_task
    is the mean squared gradient of single rows' ``-log p(answer | prompt)``: the empirical
    diagonal Fisher (Kirkpatrick et al., arXiv 1612.00796; one F and one anchor for all tasks:
    Schwarz et al., arXiv 1805.06370). F is in 1 / weight^2, so the term is in nats like the loss.

    Args:
        coefficient: at least 0.
        num_fisher_rows: train rows of a task that its Fisher is measured on.
        decay: share of the past tasks' F that is kept, in [0, 1].

    Raises:
        UserError: a value out of range; in training, weights others than those of past tasks.
    """

    needs = Needs(shared_weights=True)

    def __init__(
        self, *, coefficient: float, num_fisher_rows: int = 128, decay: float = 1.0
    ) -> None:
        require_between("penalty.elastic_weights.coefficient", coefficient, 0.0, float("inf"))
        require_count("penalty.elastic_weights.num_fisher_rows", num_fisher_rows)
        require_between("penalty.elastic_weights.decay", decay, 0.0, 1.0)
        self.coefficient = coefficient
        self.num_fisher_rows = num_fisher_rows
        self.decay = decay
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def __call__(self, context: LossContext) -> Tensor:
        """The term, a scalar, taken in float32."""
        if not self._fisher:
            return torch.zeros((), device=context.logits.device)
        self._follow(context.parameters)
        distance = quadratic_distance(context.parameters, self._anchor, self._fisher)
        return self.coefficient / 2 * distance

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Refuse other weights than the past tasks': their F would say nothing about these."""
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        if self._fisher and shapes != {name: f.shape for name, f in self._fisher.items()}:
            raise UserError(
                "Elastic weights need the same trainable weights in every task, got others than in "
                "the tasks before: use method/adapter=lora (or full)."
            )

    def end_task(self, parameters: Parameters, task_index: int, learnt: LearntTask) -> None:
        """Add the task's Fisher, move the anchor."""
        self._follow(parameters)
        task_fisher = empirical_fisher(parameters, learnt, self.num_fisher_rows)
        for name, fisher in task_fisher.items():
            if name in self._fisher:
                fisher += self.decay * self._fisher[name]
        self._fisher = task_fisher
        self._anchor = {n: p.detach().to(torch.float32, copy=True) for n, p in parameters.items()}

    def state_dict(self) -> dict[str, Any]:
        """F and anchor by name; nothing before the first task is learnt."""
        if not self._fisher:
            return {}
        return {"fisher": dict(self._fisher), "anchor": dict(self._anchor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._fisher = dict(state.get("fisher", {}))
        self._anchor = dict(state.get("anchor", {}))

    def _follow(self, parameters: Parameters) -> None:
        """The weights change devices between tasks, and a saved state comes back on the CPU."""
        for tensors in (self._fisher, self._anchor):
            for name in tensors:
                tensors[name] = tensors[name].to(parameters[name].device)


def quadratic_distance(
    parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor]
) -> Tensor:
    """``sum_i F_i (theta_i - anchor_i)^2`` over all weights; a scalar, in float32."""
    distances = [
        (fisher[name] * (parameter.float() - anchor[name]).square()).sum()
        for name, parameter in parameters.items()
    ]
    return torch.stack(distances).sum()


def empirical_fisher(
    parameters: Parameters, learnt: LearntTask, num_rows: int
) -> dict[str, Tensor]:
    """Mean over rows of the squared gradient of each row's loss, in float32.

    A weight that a row's loss does not depend on has gradient zero there.

    Raises:
        UserError: the task has no rows.
    """
    fisher = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in parameters.items()}
    number = 0
    for loss in learnt.row_losses(num_rows):
        number += 1
        # autograd.grad leaves the parameters' own .grad alone.
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(fisher.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient.float().square()
    if number == 0:
        raise UserError("Elastic weights measure a Fisher on the task's train rows, got no row.")
    return {name: total.div_(number) for name, total in fisher.items()}
