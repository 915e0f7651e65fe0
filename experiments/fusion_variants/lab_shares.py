"""Other fusions without memory: other shares of the past, several a task, of the products.

Like lab_parts.py, for one process and whole runs; the ranks are those of ../identification.
Shapes: U number of units; all vectors are (U,) float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lab_parts import RegMean
from lightning.pytorch import LightningModule, Trainer
from rules import ranks
from torch import Tensor

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.interfaces import LearningModule, Parameters
from kif_lightning.kif import AdaptiveRule, ImportanceTracker, fuse_, min_max

FLOOR = 1e-6
"""Normalised scores below it count as this much before their logarithm is taken."""
HALVINGS = 60
"""Of the interval in which the logarithm of tau is sought."""


def logarithms(scores: Tensor) -> Tensor:
    """Logarithms, less their mean, over their standard deviation."""
    found = scores.double().clamp_min(FLOOR).log()
    return (found - found.mean()) / found.std().clamp_min(FLOOR)


def mean_entropy(shares: Tensor) -> float:
    """Of the shares as coins, in bits, mean over the units."""
    return float(-(torch.xlogy(shares, shares) + torch.xlogy(1 - shares, 1 - shares)).mean()) / (
        math.log(2)
    )


@dataclass(frozen=True, kw_only=True)
class ScaledRule:
    """The adaptive rule on other scores, with tau given or set by the entropy of its shares.

    Args:
        scores: what of the normalised scores is compared: themselves, their ranks or logarithms.
        tau: of the adaptive rule; None: by the entropy.
        entropy: mean of the shares, in bits; 1 is an average, 0 all or nothing.
    """

    scores: Literal["min_max", "ranks", "logarithms"] = "min_max"
    tau: float | None = None
    entropy: float = 0.5

    def __call__(self, previous: Tensor, current: Tensor) -> Tensor:
        """Share of the previous weights (U,), from normalised scores (U,)."""
        scale = {"min_max": lambda found: found, "ranks": ranks, "logarithms": logarithms}
        sides = (scale[self.scores](previous), scale[self.scores](current))
        if self.tau is not None:
            return AdaptiveRule(tau=self.tau)(*sides)
        low, high = math.log(1e-9), math.log(1e3)
        for _ in range(HALVINGS):  # the entropy grows with tau
            middle = (low + high) / 2
            if mean_entropy(AdaptiveRule(tau=math.exp(middle))(*sides)) < self.entropy:
                low = middle
            else:
                high = middle
        return AdaptiveRule(tau=math.exp(high))(*sides)


class RunningMean(KnowledgeFusion):
    """After k tasks the past's share is k / (k + 1): a mean of what each task's training ended at.

    Args:
        kwargs: of ``KnowledgeFusion``; its rule is not used.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tasks = 0

    def identify(self, module: LearningModule) -> None:
        super().identify(module)
        assert self.boundary is not None
        if self.boundary.weight is not None:
            share = torch.full_like(self.boundary.weight, self.tasks / (self.tasks + 1))
            self.boundary = replace(self.boundary, weight=share)
        self.tasks += 1


class SeveralFusions(KnowledgeFusion):
    """Fusion with the weights before the task at equal steps of it, the boundary's the last.

    Args:
        times: fusions a task.
        kwargs: of ``KnowledgeFusion``.
    """

    def __init__(self, *, times: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.times = times
        self.done = 0

    def begin(self, module: LearningModule, snapshot: Mapping[str, Tensor] | None = None) -> None:
        super().begin(module, snapshot)
        self.done = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = int(trainer.estimated_stepping_batches) / self.times
        step = trainer.global_step
        if not self.snapshot or self.done + 1 == self.times or step < every * (self.done + 1):
            return
        self.done += 1
        module: Any = pl_module
        assert self.units is not None
        assert self._accumulated is not None
        current = min_max(module.identification.unit_scores(self.units))
        share = self.rule(min_max(self._accumulated), current)
        fuse_(self.units, share, self.snapshot, module.trainable_parameters)


class MeanProduct(RegMean):
    """The product B A of each LoRA module is averaged, not its factors; nearest of the same rank.

    Args:
        kwargs: of ``KnowledgeFusion``; its rule is not used.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(balance=1.0, **kwargs)

    def begin(self, module: LearningModule, snapshot: Mapping[str, Tensor] | None = None) -> None:
        KnowledgeFusion.begin(self, module, snapshot)  # no inputs are counted

    @torch.no_grad()
    def fuse(self, parameters: Parameters) -> None:
        assert self.boundary is not None
        if self.boundary.weight is not None:
            for name, tensor in parameters.items():
                if "lora_A" in name:
                    # With the same inputs on both sides least squares is, up to RIDGE, the average.
                    inputs = torch.eye(tensor.shape[1], dtype=torch.float64)
                    self._fuse_module(name.rsplit(".lora_", 1)[0], inputs, inputs, parameters)
        self.snapshot = {}


class SquaresTracker(ImportanceTracker):
    """Also sums each weight's squared gradient over the steps of the task."""

    def reset(self, weights: Mapping[str, Tensor]) -> None:
        super().reset(weights)
        self.squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]) -> None:
        super().update(weights, gradients)
        for name, gradient in gradients.items():
            if gradient is not None:
                self.squares[name] += gradient**2


class FisherMean(KnowledgeFusion):
    """Single weights in closed form: the share of the past is F_past / (F_past + F_present).

    F is the sum of squared gradients over the steps of a task (of a step's rows together, with the
    penalty's: a rough Fisher information), F_past its sum over the past tasks: the minimum of the
    two quadratics with these curvatures (Fisher merging, arXiv 2111.09832).

    Args:
        kwargs: of ``KnowledgeFusion``; its rule is not used.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.past: dict[str, Tensor] = {}

    def identify(self, module: LearningModule) -> None:
        super().identify(module)
        tracker: Any = module.identification.tracker
        self.squares: dict[str, Tensor] = tracker.squares

    @torch.no_grad()
    def fuse(self, parameters: Parameters) -> None:
        assert self.boundary is not None
        if self.boundary.weight is not None:
            for name, parameter in parameters.items():
                total = self.past[name] + self.squares[name]
                share = torch.where(total > 0, self.past[name] / total, 0.5)
                parameter.lerp_(self.snapshot[name], share)
        self.past = {name: self.past.get(name, 0) + found for name, found in self.squares.items()}
        self.snapshot = {}
