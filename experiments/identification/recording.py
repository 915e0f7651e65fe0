"""A fusion that keeps what a run forgets at once: the importance of each single weight."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from kif_lightning.callbacks import KnowledgeFusion

FOLDER = "weight_scores"


class RecordingFusion(KnowledgeFusion):
    """Also writes ``weight_scores/NN.pt`` into the run's folder: ``s`` of each weight, by name.

    NN is the task's number, from 1. For one process alone.
    """

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Identify and fuse, then write."""
        super().on_train_end(trainer, pl_module)
        folder = Path(trainer.default_root_dir) / FOLDER
        folder.mkdir(exist_ok=True)
        number = trainer.datamodule.task_index + 1
        scores = pl_module.identification.tracker.weight_scores()
        torch.save({"s": scores}, folder / f"{number:02d}.pt")
