"""The slope of a loss in the units' shares, against autograd through the fusion itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kif_lightning.kif import lora_rank_units, matrix_units, share_gradient

SHAPES = {"q.lora_A": (3, 4), "q.lora_B": (5, 3), "v.lora_A": (3, 4), "v.lora_B": (2, 3)}


def drawn(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=draw, dtype=torch.float64) for n, s in SHAPES.items()}


@pytest.mark.parametrize("partition", [lora_rank_units, matrix_units])
def test_it_is_the_derivative_of_the_fused_loss(partition: object) -> None:
    previous, current, target = drawn(1), drawn(2), drawn(3)
    units = partition(current)  # type: ignore[operator]
    share = torch.linspace(0.1, 0.9, len(units), dtype=torch.float64, requires_grad=True)
    fused = {}
    for group, place in units.slices():
        for member in group.members:
            name = member.parameter
            lam = member.spread(share[place], current[name])
            fused[name] = lam * previous[name] + (1 - lam) * current[name]
    # Not the same in any two weights, and not linear.
    loss = torch.stack([(fused[n] - target[n]).pow(4).sum() for n in SHAPES]).sum()
    (expected,) = torch.autograd.grad(loss, share, retain_graph=True)
    slopes = dict(zip(SHAPES, torch.autograd.grad(loss, [fused[n] for n in SHAPES]), strict=True))
    found = share_gradient(units, slopes, previous, current)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    without = {**slopes, "q.lora_A": None}
    zero = {**slopes, "q.lora_A": torch.zeros(SHAPES["q.lora_A"])}
    one, other = (share_gradient(units, given, previous, current) for given in (without, zero))
    assert torch.equal(one, other)
