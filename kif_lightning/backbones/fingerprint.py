"""Which base weights a model has, told from a sample of each tensor."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

SAMPLED = 256
"""Weights looked at of each tensor, evenly spaced: some milliseconds for billions of weights."""


def weights_fingerprint(model: nn.Module) -> dict[str, Any]:
    """``sha256`` of names, shapes and a sample of the weights, ``weights``: their number.

    The sample is rounded to bfloat16: copies in float32 and in bfloat16 of the same weights have
    the same fingerprint. Weights packed by quantisation have another.

    Args:
        model: before any adapter is attached.
    """
    digest = hashlib.sha256()
    number = 0
    for name, parameter in model.named_parameters():
        number += parameter.numel()
        digest.update(f"{name} {tuple(parameter.shape)} ".encode())
        digest.update(_sample(parameter.detach()).view(torch.uint8).numpy().tobytes())
    return {"sha256": digest.hexdigest(), "weights": number}


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    last, number = max(0, flat.numel() - 1), min(SAMPLED, flat.numel())
    # In float32 a place beyond 16 million would be rounded, the last one past the end.
    chosen = torch.linspace(0, last, number, dtype=torch.float64).long()
    sample = flat[chosen.to(flat.device)].cpu()
    return sample.to(torch.bfloat16) if sample.is_floating_point() else sample.contiguous()
