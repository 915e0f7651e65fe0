"""Fusion refuses, before training, what it cannot work on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker, MeanRule, lora_rank_units, matrix_units


def learner() -> Any:
    """A stand-in for the module: one LoRA pair and its importance."""
    return SimpleNamespace(
        trainable_parameters={
            "layer.q.lora_A.weight": nn.Parameter(torch.ones(3, 5)),
            "layer.q.lora_B.weight": nn.Parameter(torch.ones(4, 3)),
        },
        identification=Identification(tracker=ImportanceTracker()),
    )


def test_fusion_tells_what_it_lacks() -> None:
    module = learner()
    with pytest.raises(UserError, match="needs a rule and units"):
        KnowledgeFusion(rule=None, units=matrix_units)
    module.identification = None
    with pytest.raises(UserError, match="none is tracked"):
        KnowledgeFusion(rule=MeanRule(), units=matrix_units).check(module)
    module = learner()
    module.trainable_parameters["layer.bias"] = nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match=r"layer\.bias"):
        KnowledgeFusion(rule=MeanRule(), units=lora_rank_units).check(module)
