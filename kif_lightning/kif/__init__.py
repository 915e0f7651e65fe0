"""Knowledge identification and fusion as pure functions of tensors: torch only."""

from kif_lightning.kif.fusion import (
    AdaptiveRule,
    MeanRule,
    StaticRule,
    UnitClass,
    accumulate,
    classify,
    fuse_,
    min_max,
    share_gradient,
)
from kif_lightning.kif.importance import ImportanceTracker
from kif_lightning.kif.recurrent import merge_, top_mask
from kif_lightning.kif.units import SkillUnits, fitting_units, lora_rank_units, matrix_units

__all__ = [
    "AdaptiveRule",
    "ImportanceTracker",
    "MeanRule",
    "SkillUnits",
    "StaticRule",
    "UnitClass",
    "accumulate",
    "classify",
    "fitting_units",
    "fuse_",
    "lora_rank_units",
    "matrix_units",
    "merge_",
    "min_max",
    "share_gradient",
    "top_mask",
]
