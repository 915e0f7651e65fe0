"""Which base weights a model has, told from a sample of each tensor."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from kif_lightning.kif.sampling import even_sample


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
        sample = even_sample(parameter)
        sample = sample.to(torch.bfloat16) if sample.is_floating_point() else sample
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return {"sha256": digest.hexdigest(), "weights": number}
