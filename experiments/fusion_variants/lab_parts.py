"""Parts of the fusions that were tried: two fusions and a penalty without memory, one with it.

They are for one process, on a CPU, and for whole runs: what RegMean and LabElastic know of past
tasks is in no saved state, so a run that was stopped must be made anew.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.interfaces import LearningModule, LearntTask, LossContext, Needs, Parameters
from kif_lightning.kif import ImportanceTracker, share_gradient
from kif_lightning.modes import evaluating
from kif_lightning.penalties.elastic_weights import quadratic_distance

RIDGE = 1e-3
"""RegMean: share of the mean variance that is added to each input's own."""
DAMPING = 1e-3
"""LabElastic: added to the squared change of a weight."""
CURRENT_ROWS = 20
"""Fitted: rows of the present task."""


class WeightTop(KnowledgeFusion):
    """Single weights: the most important to the task take their new value, the others stay.

    Args:
        keep: share of all weights that take it.
        kwargs: of ``KnowledgeFusion``; its rule is not used.
    """

    def __init__(self, *, keep: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.keep_share = keep

    def identify(self, module: LearningModule) -> None:
        super().identify(module)
        self.scores = module.identification.tracker.weight_scores()

    @torch.no_grad()
    def fuse(self, parameters: Parameters) -> None:
        assert self.boundary is not None
        if self.boundary.weight is not None:
            every = torch.cat([scores.flatten() for scores in self.scores.values()])
            place = max(1, int(len(every) * (1 - self.keep_share)))
            threshold = every.kthvalue(place).values
            for name, parameter in parameters.items():
                new = self.scores[name] > threshold
                parameter.copy_(torch.where(new, parameter, self.snapshot[name]))
        self.snapshot = {}


class RegMean(KnowledgeFusion):
    """Least squares: each LoRA product is fused so that its outputs change least, old and new.

    With C the mean of ``x x^T`` over the inputs x of a module, the fused product is
    ``(P C_old + balance Q C_new) (C_old + balance C_new)^-1`` of the old product P and the new Q
    (RegMean, arXiv 2212.09849); C_old is the sum over the past tasks. The nearest product of the
    adapter's rank becomes the factors.

    Args:
        balance: weight of the present task.
        by_inputs: nearest in the outputs over these inputs; else in the weights.
        kwargs: of ``KnowledgeFusion``; its rule is not used.
    """

    def __init__(self, *, balance: float, by_inputs: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.balance = balance
        self.by_inputs = by_inputs
        self.old: dict[str, Tensor] = {}

    def begin(self, module: LearningModule, snapshot: Mapping[str, Tensor] | None = None) -> None:
        super().begin(module, snapshot)
        learning: Any = module
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.hooks = [
            part.register_forward_pre_hook(self._counting(name))
            for name, part in learning.model.named_modules()
            if hasattr(part, "lora_A") and hasattr(part, "base_layer")
        ]

    def _counting(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if part.training:
                rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
                self.sums[name] = self.sums.get(name, 0) + rows.T @ rows
                self.counts[name] = self.counts.get(name, 0) + len(rows)

        return count

    @torch.no_grad()
    def fuse(self, parameters: Parameters) -> None:
        assert self.boundary is not None
        for hook in self.hooks:
            hook.remove()
        new = {name: (total / self.counts[name]).double() for name, total in self.sums.items()}
        if self.boundary.weight is not None:
            for name, inputs in new.items():
                self._fuse_module(name, self.old[name], self.balance * inputs, parameters)
        self.old = {name: self.old.get(name, 0) + inputs for name, inputs in new.items()}
        self.snapshot = {}

    def _fuse_module(self, name: str, old: Tensor, new: Tensor, parameters: Parameters) -> None:
        a_name = next(
            key
            for key in parameters
            if "lora_A" in key and name.endswith(key.rsplit(".lora_", 1)[0])
        )
        b_name = a_name.replace("lora_A", "lora_B")
        a_after = parameters[a_name].double()
        before = self.snapshot[b_name].double() @ self.snapshot[a_name].double()
        after = parameters[b_name].double() @ a_after
        total = old + new
        identity = torch.eye(len(total), dtype=total.dtype)
        total = total + RIDGE * total.diagonal().mean() * identity
        fused = before + (after - before) @ torch.linalg.solve(total, new).T
        metric = torch.linalg.cholesky(total) if self.by_inputs else identity
        left, values, right = torch.linalg.svd(fused @ metric, full_matrices=False)
        rank = len(a_after)
        a = torch.linalg.solve(metric.T, right[:rank].T).T
        b = left[:, :rank] * values[:rank]
        # The scale of A is free: the trained one's goes on.
        scale = a_after.norm(dim=1).mean() / a.norm(dim=1)
        parameters[a_name].copy_(a * scale[:, None])
        parameters[b_name].copy_(b / scale)


class Fitted(KnowledgeFusion):
    """The units' shares of the past, fitted by Adam on the memory and a few rows of the task.

    Every share starts from a half, so the importance plays no part.

    Args:
        epochs: over these rows.
        lr: learning rate of the shares' logits.
        one: one share for all units.
        kwargs: of ``KnowledgeFusion``; its rule is not used once there is memory.
    """

    needs = Needs(shared_weights=True, memory=True)

    def __init__(
        self, *, epochs: int = 3, lr: float = 0.3, one: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.epochs = epochs
        self.lr = lr
        self.one = one

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.identify(module)
        assert self.boundary is not None
        if self.boundary.weight is not None and data.memory_rows:
            self.boundary = replace(self.boundary, weight=self._fitted(module, data))
        self.fuse(module.trainable_parameters)

    def _fitted(self, module: Any, data: Any) -> Tensor:
        """Shares (U,) after the fit; the weights are left as they were."""
        assert self.units is not None
        train = list(data.task.train)
        own = random.Random(data.task.name).sample(train, min(CURRENT_ROWS, len(train)))
        rows = [*data.memory_rows, *own]
        steps = self.epochs * -(-len(rows) // data.batch_size)
        parameters = module.trainable_parameters
        after = {name: p.detach().clone() for name, p in parameters.items()}
        logits = torch.zeros(len(self.units), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=self.lr)
        with evaluating(module):
            for batches in itertools.islice(data.row_steps(rows, "fit"), steps):
                share = torch.sigmoid(logits.detach())
                self._put(share, after, parameters)
                gradients = _gradients(module, batches)
                slope = share_gradient(self.units, gradients, self.snapshot, after)
                slope = slope * share * (1 - share)
                logits.grad = torch.full_like(slope, float(slope.sum())) if self.one else slope
                optimizer.step()
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(after[name])
        return torch.sigmoid(logits.detach())

    @torch.no_grad()
    def _put(self, share: Tensor, after: Mapping[str, Tensor], parameters: Parameters) -> None:
        assert self.units is not None
        for group, place in self.units.slices():
            for member in group.members:
                name = member.parameter
                new, old = after[name], self.snapshot[name]
                part = member.spread(share[place], new).to(new.dtype)
                parameters[name].copy_(new + part * (old - new))


def _gradients(module: Any, batches: list[Any]) -> dict[str, Tensor]:
    """Of the mean loss over the target tokens of a step's rows."""
    parameters = module.trainable_parameters
    with torch.enable_grad():
        found = [
            torch.autograd.grad(
                module.row_loss(batch) / batch["step_tokens"], list(parameters.values())
            )
            for batch in batches
        ]
    return {name: sum(own) for name, own in zip(parameters, zip(*found, strict=True), strict=True)}


TRACKERS: list[SharedPathTracker] = []
"""All of this process; the penalty reads the last one, for a penalty is told of none."""


class SharedPathTracker(ImportanceTracker):
    """Also sums each weight's part in the fall of the loss, ``-g dw`` at each step of the task."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        TRACKERS.append(self)

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        super().reset(weights)
        self.path = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        """Each weight and its gradient at the step before."""

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        super().update(weights, gradients)
        for name, (weight, gradient) in self._before.items():
            self.path[name] -= gradient * (weights[name] - weight)
        for name, weight in weights.items():
            found = gradients[name]
            slope = torch.zeros_like(weight) if found is None else found.clone()
            self._before[name] = (weight.detach().clone(), slope)


class LabElastic:
    """Weights held in place by what they did for past tasks along the path of their training.

    ``coefficient / 2 * sum_i F_i (w_i - anchor_i)^2``, with F the sum over the past tasks of
    ``max(path, 0) / (change^2 + damping)`` (Synaptic Intelligence, arXiv 1703.04200).
    """

    needs = Needs(shared_weights=True)

    def __init__(self, *, coefficient: float) -> None:
        self.coefficient = coefficient
        self._strength: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def __call__(self, context: LossContext) -> Tensor:
        if not self._strength:
            return torch.zeros((), device=context.logits.device)
        distance = quadratic_distance(context.parameters, self._anchor, self._strength)
        return self.coefficient / 2 * distance

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        self._start = {name: p.detach().clone() for name, p in parameters.items()}

    def end_task(self, parameters: Parameters, task_index: int, learnt: LearntTask) -> None:
        self._anchor = {name: p.detach().clone() for name, p in parameters.items()}
        for name, path in TRACKERS[-1].path.items():
            change = self._anchor[name] - self._start[name]
            found = path.clamp_min(0) / (change**2 + DAMPING)
            self._strength[name] = self._strength.get(name, 0) + found

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
