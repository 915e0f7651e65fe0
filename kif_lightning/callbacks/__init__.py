"""Lightning glue: what happens at task boundaries, and what is shown meanwhile."""

from kif_lightning.callbacks.fusion import KnowledgeFusion
from kif_lightning.callbacks.progress import TaskProgress
from kif_lightning.callbacks.selection import SelectBestStep

__all__ = ["KnowledgeFusion", "SelectBestStep", "TaskProgress"]
