"""A kept boundary with all that its fusion was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kif_lightning.boundaries import KeptBoundary, folder_name
from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.errors import UserError
from kif_lightning.kif import accumulate, fuse_, min_max
from kif_lightning.storage import read_json
from kif_lightning.whatif.ways import Way


@dataclass(kw_only=True)
class Refusion:
    """Fuses one boundary of a run again.

    Args:
        run: the run's folder.
        callback: name of the run's fusion.
        fusion: it.
        kept: the boundary.
        tasks: names of all that the run trains on.
        device: where the run fused.
    """

    run: Path
    callback: str
    fusion: KnowledgeFusion
    kept: KeptBoundary
    tasks: Sequence[str]
    device: torch.device

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The importance files of the boundaries up to this one."""
        names = enumerate(self.tasks[: self.kept.number], start=1)
        stems = [folder_name(number, name) for number, name in names]
        return [read_json(self.run / "importance" / f"{s}_{self.callback}.json") for s in stems]

    @cached_property
    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Before the task, and after its training."""
        before, after = self.kept.weights()
        return _on(before, self.device), _on(after, self.device)

    def share(self, way: Way) -> Tensor:
        """The weights of the past, (U,), as this way of fusing sets them.

        The importance before the boundary is accumulated anew from the raw scores of all tasks.
        """
        *past, score = (torch.tensor(r["score"], dtype=torch.float64) for r in self.records)
        accumulated = None
        for earlier in past:
            accumulated = accumulate(accumulated, earlier, way.beta)
        assert accumulated is not None  # the first task is never fused
        return way.rule(min_max(accumulated), min_max(score))

    def check(self, own: Way) -> None:
        """Raise UserError unless the run's own way gives the very weights that the run fused by."""
        record = self.records[-1]
        same_units = self.fusion.partition(self.weights[1]).ids == tuple(record["unit_ids"])
        if not same_units or self.share(own).tolist() != record["weight"]:
            raise UserError(
                f"What {self.run} keeps of its boundaries does not belong together (the run's own "
                "settings do not give the fusion weights that it wrote): start it anew with "
                "rerun=true keep_boundaries=true."
            )

    def fused(self, share: Tensor) -> dict[str, Tensor]:
        """The weights after the boundary, for shares of the past (U,)."""
        before, after = self.weights
        found = {name: tensor.clone() for name, tensor in after.items()}
        fuse_(self.fusion.partition(found), share, before, found)
        return found


def _on(state: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in state.items()}
