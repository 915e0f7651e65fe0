"""The fingerprint's places in a tensor of more elements than float32 can count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kif_lightning.backbones.fingerprint import weights_fingerprint


@pytest.mark.parametrize("size", [28_311_552, 1 << 26])
def test_a_large_tensor_is_sampled_to_its_very_end(size: int) -> None:
    # One element in memory: a view of it that is as long as a large embedding.
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(1).expand(size), requires_grad=False)
    assert weights_fingerprint(module)["weights"] == size
