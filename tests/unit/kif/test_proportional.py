"""The proportional rule against numbers by hand."""

from __future__ import annotations

import torch

from kif_lightning.kif.proportional import ProportionalRule


def test_shares_by_hand() -> None:
    previous = torch.tensor([0.0, 1.0, 0.0, 0.3, 0.002])
    current = torch.tensor([0.0, 0.0, 1.0, 0.1, 0.001])
    expected = torch.tensor([0.5, 1.0, 0.0, 0.75, 2 / 3], dtype=torch.float64)
    torch.testing.assert_close(ProportionalRule()(previous, current), expected)
