"""Lightning's checkpoints as folders of safetensors and JSON: nothing is unpickled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from kif_lightning.storage import load_state, save_state


class SafeCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all; reads what it wrote, and refuses damaged files."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the folder ``path``; OSError if the disk is full."""
        save_state(Path(path), checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder, tensors on the CPU; UserError if it is damaged."""
        return load_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the folder."""
        shutil.rmtree(path)
