"""Lightning glue: what happens at task boundaries, and what is shown meanwhile."""

from kif_lightning.callbacks.checkpoint import StopBetweenSteps, TaskCheckpoint
from kif_lightning.callbacks.continual_fusion import ContinualFusion
from kif_lightning.callbacks.fitted_fusion import FittedFusion
from kif_lightning.callbacks.fusion import KnowledgeFusion
from kif_lightning.callbacks.magnitude_mask import MagnitudeMask
from kif_lightning.callbacks.progress import TaskProgress
from kif_lightning.callbacks.recurrent import RecurrentFusion
from kif_lightning.callbacks.replay import FrozenUnits, FusionWithReplay
from kif_lightning.callbacks.selection import SelectBestStep

__all__ = [
    "ContinualFusion",
    "FittedFusion",
    "FrozenUnits",
    "FusionWithReplay",
    "KnowledgeFusion",
    "MagnitudeMask",
    "RecurrentFusion",
    "SelectBestStep",
    "StopBetweenSteps",
    "TaskCheckpoint",
    "TaskProgress",
]
