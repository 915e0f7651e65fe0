"""Fusion in proportion to importance, whatever its scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProportionalRule:
    """lam = p / (p + c), and 0.5 where both are zero.

    Unlike the adaptive rule it sees ratios, not differences: a unit whose scores are 0.002 and
    0.001 is decided as clearly as one with 0.8 and 0.4. Not from the paper.
    """

    def __call__(self, previous: Tensor, current: Tensor) -> Tensor:
        """lam, the share of the previous weights, (U,), from normalised scores (U,)."""
        total = previous.double() + current.double()
        return torch.where(total > 0, previous.double() / total, 0.5)
