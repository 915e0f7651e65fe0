"""Recurrent-KIF (arXiv 2502.17510): two learners' changes merged weight by weight.

The inner side learns the present task, the outer side rehearses past ones, both from the same
start. Mappings go from a weight tensor's name to a tensor of its shape; scores have no unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kif_lightning.errors import require_between


def top_mask(scores: Mapping[str, Tensor], top_percent: float) -> dict[str, Tensor]:
    """True where a score lies strictly above the (100 - top)-th percentile of ALL scores together.

    The percentile is the score of rank n - floor(n top / 100) of n, counted from 1 at the smallest
    (NumPy's ``inverted_cdf``): so many distinct scores are kept, but never the smallest. Scores
    equal to the threshold are not kept; of equal scores none is.

    Args:
        scores: finite, of any shapes, on any one device.
        top_percent: in (0, 100].

    Returns:
        Boolean tensors of the same shapes, on the same device.

    Raises:
        UserError: ``top_percent`` out of range.
        ValueError: no scores, or not all finite.
    """
    require_between("recurrent.top_percent", top_percent, 0.0, 100.0, low_open=True)
    # On the CPU: a GPU's kthvalue is refused under deterministic=true. torch.quantile takes 16M.
    together = torch.cat([torch.empty(0), *(score.flatten().cpu() for score in scores.values())])
    if together.numel() == 0 or not bool(torch.isfinite(together).all()):
        raise ValueError("top_mask expects at least one score, all finite.")
    rank = together.numel() - int(together.numel() * top_percent / 100.0)
    threshold = together.kthvalue(max(rank, 1)).values
    return {name: score > threshold for name, score in scores.items()}


@torch.no_grad()
def merge_(
    theta: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    delta_in: Mapping[str, Tensor],
    delta_out: Mapping[str, Tensor],
    mask_in: Mapping[str, Tensor],
    mask_out: Mapping[str, Tensor],
    *,
    outer_share_both: float = 0.6,
    outer_share_neither: float = 0.5,
) -> None:
    """``theta = start + (1 - m) delta_in + m delta_out``, in place, one share m per weight.

    m, the outer side's share: ``outer_share_both`` where the weight is important to both sides,
    ``outer_share_neither`` where to neither, 1 where to the outer alone, 0 where to the inner
    alone. Low-precision weights are merged in float32 and cast back.

    Args:
        theta: overwritten, whatever its values.
        start: the weights that both sides began from.
        delta_in: the inner side's change.
        delta_out: the outer side's change.
        mask_in: True where the weight is important to the inner side.
        mask_out: True where it is to the outer side.
        outer_share_both: in [0, 1].
        outer_share_neither: in [0, 1].

    Raises:
        UserError: a share out of range.
    """
    require_between("recurrent.outer_share_both", outer_share_both, 0.0, 1.0)
    require_between("recurrent.outer_share_neither", outer_share_neither, 0.0, 1.0)
    for name, target in theta.items():
        dtype = torch.promote_types(target.dtype, torch.float32)
        inner, outer = mask_in[name].to(target.device), mask_out[name].to(target.device)
        share = outer.to(dtype)  # 1 or 0: right where just one side holds the weight important
        share[inner & outer] = outer_share_both
        share[~inner & ~outer] = outer_share_neither
        change = torch.lerp(delta_in[name].to(dtype), delta_out[name].to(dtype), share)
        target.copy_(start[name].to(dtype) + change)
