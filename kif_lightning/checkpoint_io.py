"""Lightning's checkpoints as folders of safetensors and JSON: nothing is unpickled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from kif_lightning import ranks
from kif_lightning.storage import load_state, save_state


class SafeCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all; reads what it wrote, and refuses damaged files."""

    failure: OSError | None = None
    """Why the last checkpoint of several ranks could not be written."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the folder ``path``; OSError if the disk is full.

        With several ranks it is kept as ``failure``: Lightning lets the others wait for this one.
        """
        self.failure = None
        try:
            save_state(Path(path), checkpoint)
        except OSError as error:
            if ranks.world_size() == 1:
                raise
            self.failure = error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the folder, tensors on the CPU; UserError if it is damaged."""
        return load_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the folder."""
        shutil.rmtree(path)
