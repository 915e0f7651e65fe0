"""Which base weights a model has, told from a sample of each tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kif_lightning.errors import UserError
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


def base_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two fingerprints tell apart, in words that follow "the state: "; empty: the same."""
    if before == now:
        return []
    if before["weights"] != now["weights"]:
        return [
            f"its base model has {before['weights']:,} weights, the present one {now['weights']:,}"
        ]
    return [
        "its base weights have other values (another model of the same shape, or other copies of "
        "it: float32 and bfloat16 ones count as the same, those in float16 or packed do not)"
    ]


def require_same_base(
    before: Mapping[str, Any], now: Mapping[str, Any], *, what: str, mend: str
) -> None:
    """Raise UserError unless the fingerprints are of the same weights.

    Args:
        before: of what was learnt on.
        now: of what is here.
        what: was learnt, as in "the state in FOLDER".
        mend: what to do, an imperative.
    """
    for difference in base_differences(before, now):
        raise UserError(f"The model here is not that of {what}: {difference}; {mend}.")
