"""How decided shares between two sides are."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2


def mean_binary_entropy(shares: Sequence[float]) -> float:
    """Mean in bits over shares in [0, 1], at least one: 1 is plain averaging, 0 a hard choice."""
    inside = [share for share in shares if 0 < share < 1]
    return -sum(s * log2(s) + (1 - s) * log2(1 - s) for s in inside) / len(shares)
