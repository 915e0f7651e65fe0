"""Rules of fusion to hold against one another, and their controls.

Shapes: U number of units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kif_lightning.kif import AdaptiveRule, ImportanceTracker, SkillUnits, StaticRule
from kif_lightning.kif.proportional import ProportionalRule

UNIFORM = (0.0, 0.25, 0.5, 0.75, 1.0)
RANK_TAU = 0.05
TOP_SHARES = (0.1, 0.3, 0.5)
"""Of single weights that take their new value."""
CONTROL_SHARE = 0.3
"""Of the same, chosen without the importance."""
Rule = Callable[[Tensor, Tensor], Tensor]
Weights = Mapping[str, Tensor]


def ranks(scores: Tensor) -> Tensor:
    """Place of each score, from 0 of the smallest to 1 of the largest; equal ones as they come."""
    places = torch.empty(len(scores), dtype=torch.float64)
    places[scores.argsort(stable=True)] = torch.linspace(0, 1, len(scores), dtype=torch.float64)
    return places


def ranked(previous: Tensor, current: Tensor) -> Tensor:
    """The adaptive rule on ranks in place of scores, (U,): they spread evenly, scores do not."""
    return AdaptiveRule(tau=RANK_TAU)(ranks(previous), ranks(current))


def unit_rules(change: Tensor, seed: int) -> dict[str, Rule]:
    """Name -> rule: (previous, current) normalised scores (U,) -> share of the old weights (U,).

    Args:
        change: size of each unit's change in the present task, (U,).
        seed: of the shuffling.
    """

    def uniform(share: float) -> Rule:
        return lambda previous, _: torch.full_like(previous, share)

    def shuffled(previous: Tensor, current: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return ranked(previous, current)[torch.randperm(len(previous), generator=draw)]

    return {
        **{f"uniform {share:g}": uniform(share) for share in UNIFORM},
        "adaptive, tau 0.15": AdaptiveRule(tau=0.15),
        "adaptive, tau 0.02": AdaptiveRule(tau=0.02),
        "static": StaticRule(),
        "proportional": ProportionalRule(),
        "ranks": ranked,
        "ranks, shuffled": shuffled,
        "ranks, past and present swapped": lambda previous, current: ranked(current, previous),
        "ranks, present by size of change": lambda previous, _: ranked(previous, change),
    }


def of_units(units: SkillUnits, of_weights: Weights) -> Tensor:
    """A measure of single weights, as one of units: taken together as the importance is, (U,)."""
    tracker = ImportanceTracker(use_uncertainty=False)
    tracker.sensitivity = dict(of_weights)
    return tracker.unit_scores(units)


def weight_choices(scores: Weights, change: Weights, seed: int) -> dict[str, tuple[float, Weights]]:
    """Name -> share of the single weights that take their new value, and their scores.

    Args:
        scores: each weight's importance to the present task.
        change: size of each weight's change in it.
        seed: of the choice at random.
    """
    draw = torch.Generator().manual_seed(seed)
    chance = {name: torch.rand(tensor.shape, generator=draw) for name, tensor in change.items()}
    return {
        **{f"weights, new top {share:.0%} by importance": (share, scores) for share in TOP_SHARES},
        f"weights, new top {CONTROL_SHARE:.0%} by size of change": (CONTROL_SHARE, change),
        f"weights, new {CONTROL_SHARE:.0%} at random": (CONTROL_SHARE, chance),
    }


def new_at_top(share: float, scores: Weights, before: Weights, after: Weights) -> dict[str, Tensor]:
    """The new value for that share of all single weights, those of the highest scores, else old."""
    flat = torch.cat([scores[name].flatten() for name in after])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.topk(round(share * len(flat))).indices] = True
    parts = chosen.split([tensor.numel() for tensor in after.values()])
    return {
        name: torch.where(part.view_as(tensor), tensor, before[name])
        for part, (name, tensor) in zip(parts, after.items(), strict=True)
    }
