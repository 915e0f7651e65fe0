"""Knowledge fusion: one weight per skill unit between the previous and the current values.

Shapes: U number of units. All unit vectors are (U,) float64 in the order of ``SkillUnits.ids``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from kif_lightning.errors import require_between
from kif_lightning.kif.shards import part
from kif_lightning.kif.units import SkillUnits

PIECE_ELEMENTS = 1 << 20
"""Weights fused together where they must first be brought to another device or dtype."""


class UnitClass(IntEnum):
    """What a unit is to past tasks and the current one (the four cases of static fusion)."""

    UNIMPORTANT = 0
    CURRENT_SPECIFIC = 1
    PREVIOUS_SPECIFIC = 2
    TASK_SHARED = 3


def min_max(scores: Tensor) -> Tensor:
    """``Norm``: (x - min x) / (max x - min x) over ALL units.

    All scores equal (or one unit): every unit gets 0, with a warning, never NaN.

    Args:
        scores: (U,) finite.

    Raises:
        ValueError: empty, or not all finite.
    """
    scores = scores.double()
    if scores.numel() == 0 or not bool(torch.isfinite(scores).all()):
        raise ValueError("min_max expects at least one score, all finite.")
    low, high = scores.min(), scores.max()
    if low == high:
        warnings.warn(
            f"All {scores.numel()} unit scores are equal: every unit's normalised score is set "
            "to 0.",
            stacklevel=2,
        )
        return torch.zeros_like(scores)
    return (scores - low) / (high - low)


def accumulate(accumulated: Tensor | None, current: Tensor, beta: float) -> Tensor:
    """``acc_k = Norm(beta Norm(acc_{k-1}) + (1 - beta) Norm(score_k))``; ``acc_0 = Norm(score_0)``.

    Args:
        accumulated: acc_{k-1}, (U,), or ``None`` at the first task.
        current: raw scores of this task, (U,).
        beta: share of the past, in [0, 1].
    """
    if accumulated is None:
        return min_max(current)
    return min_max(beta * min_max(accumulated) + (1.0 - beta) * min_max(current))


@dataclass(frozen=True, kw_only=True)
class StaticRule:
    """Hard thresholds (TaSL eq. 8-9; KIF static fusion).

    lam by class: task-shared gamma, previous-specific 1, current-specific 0, unimportant 0.5.
    """

    gamma: float = 0.7
    top_percent: float = 20.0

    def __post_init__(self) -> None:
        require_between("rule.gamma", self.gamma, 0.0, 1.0)
        require_between("rule.top_percent", self.top_percent, 0.0, 100.0, low_open=True)

    def __call__(self, previous: Tensor, current: Tensor) -> Tensor:
        """lam, the share of the previous weights, (U,), from normalised scores (U,)."""
        lam_by_class = torch.tensor([0.5, 0.0, 1.0, self.gamma], dtype=torch.float64)
        return lam_by_class[classify(previous, current, self.top_percent)]


@dataclass(frozen=True, kw_only=True)
class AdaptiveRule:
    """lam = exp(p/tau) / (exp(p/tau) + exp(c/tau)) = sigmoid((p - c) / tau) (KIF adaptive fusion).

    The authors' code uses tau 0.25.
    """

    tau: float = 0.15

    def __post_init__(self) -> None:
        require_between("rule.tau", self.tau, 0.0, float("inf"), low_open=True)

    def __call__(self, previous: Tensor, current: Tensor) -> Tensor:
        """lam, the share of the previous weights, (U,), from normalised scores (U,)."""
        return torch.sigmoid((previous.double() - current.double()) / self.tau)


@dataclass(frozen=True)
class MeanRule:
    """lam = 0.5 everywhere: the ablation without identification."""

    def __call__(self, previous: Tensor, current: Tensor) -> Tensor:
        """lam, the share of the previous weights, (U,)."""
        return torch.full_like(previous, 0.5, dtype=torch.float64)


def threshold(scores: Tensor, top_percent: float) -> float:
    """The (100 - top)-th percentile with linear interpolation (TaSL: delta)."""
    return float(torch.quantile(scores.double(), (100.0 - top_percent) / 100.0))


def classify(previous: Tensor, current: Tensor, top_percent: float) -> Tensor:
    """:class:`UnitClass` of each unit as int64 (U,); important: strictly above the threshold."""
    above_previous = previous > threshold(previous, top_percent)
    above_current = current > threshold(current, top_percent)
    return 2 * above_previous.long() + above_current.long()


@torch.no_grad()
def fuse_(
    units: SkillUnits,
    lam: Tensor,
    previous: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
) -> None:
    """``W = lam W_prev + (1 - lam) W_cur`` into ``current``, in place, one lam per unit.

    Exact where lam is 0 or 1. Low-precision weights are fused in float32 and cast back. It goes in
    pieces where memory is needed: for those, and for previous weights on another device. Of weights
    spread over ranks, each rank fuses its part.

    Args:
        units: the partition; every member names a tensor of both mappings.
        lam: (U,), share of the previous weights.
        previous: the fused weights after the task before, spread as ``current``, on any device.
        current: the weights now; overwritten.
    """
    for group, place in units.slices():
        for member in group.members:
            # Of at least one dimension, along which they are cut.
            target = _at_least_1d(part(current[member.parameter]))
            old = _at_least_1d(part(previous[member.parameter]))
            dtype = torch.promote_types(target.dtype, torch.float32)
            share = _at_least_1d(member.spread(lam[place], current[member.parameter]))
            share = share.to(device=target.device, dtype=dtype)
            as_it_is = target.dtype == old.dtype == dtype and target.device == old.device
            rows = max(1, len(target))
            if not as_it_is and target.numel() > PIECE_ELEMENTS:
                rows = max(1, PIECE_ELEMENTS * rows // target.numel())
            for start in range(0, len(target), rows):
                piece = slice(start, start + rows)
                here = target[piece]
                fused = here.to(dtype)
                fused.lerp_(
                    old[piece].to(device=target.device, dtype=dtype),
                    share if len(share) == 1 else share[piece],
                )
                if fused is not here:
                    here.copy_(fused)


def _at_least_1d(tensor: Tensor) -> Tensor:
    return tensor.view(1) if tensor.ndim == 0 else tensor


@torch.no_grad()
def share_gradient(
    units: SkillUnits,
    gradients: Mapping[str, Tensor | None],
    previous: Mapping[str, Tensor],
    current: Mapping[str, Tensor],
) -> Tensor:
    """Slope of a loss in each unit's lam: ``sum over w of dL/dw (w_prev - w_cur)``, (U,) float64.

    Args:
        units: the partition.
        gradients: dL/dw at the fused weights; ``None`` counts as 0.
        previous: the fused weights after the task before, on any device.
        current: the weights after training, before fusion.
    """
    slopes = []
    for group, _ in units.slices():
        slope = torch.zeros(len(group.ids), dtype=torch.float64)
        for member in group.members:
            gradient, new = gradients[member.parameter], current[member.parameter]
            if gradient is not None:
                change = previous[member.parameter].to(new.device).float() - new.float()
                slope += _over_units(gradient.float() * change, member.axis)
        slopes.append(slope)
    return torch.cat(slopes)


def _over_units(values: Tensor, axis: int | None) -> Tensor:
    """Sum over all dimensions but the axis (None: over all, (1,)), in float64 on the CPU."""
    if axis is None:
        return values.sum().reshape(1).cpu().double()
    return values.movedim(axis, 0).reshape(values.shape[axis], -1).sum(dim=1).cpu().double()
