"""Every random draw comes from a generator seeded by (seed, purpose, ...)."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 31-bit seed that is a function of the run's seed and the draw's purpose."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, such as ``generator(seed, task, "order", epoch)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
