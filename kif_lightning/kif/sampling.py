"""A few elements of a tensor that stand for all of it."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLED = 256
"""Elements taken of each tensor: some milliseconds for billions of weights."""


def even_sample(tensor: Tensor) -> Tensor:
    """At most ``SAMPLED`` elements, evenly spaced from the first to the last, (S,), on the CPU."""
    flat = tensor.detach().reshape(-1)
    last, number = max(0, flat.numel() - 1), min(SAMPLED, flat.numel())
    # In float32 a place beyond 16 million would be rounded, the last one past the end.
    chosen = torch.linspace(0, last, number, dtype=torch.float64).long()
    return flat[chosen.to(flat.device)].cpu()
