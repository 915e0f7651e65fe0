"""Tells loggers what a run does: wandb, TensorBoard, CSV, several at once."""

from kif_lightning.tracking.run_tracking import RunTracking, new_tracking

__all__ = ["RunTracking", "new_tracking"]
