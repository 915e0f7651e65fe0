"""Fusions kept whole, so that one can be made again with other settings (keep_boundaries=true)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Callback
from torch import Tensor

from kif_lightning import ranks
from kif_lightning.callbacks import FittedFusion, FusionWithReplay, KnowledgeFusion, RecurrentFusion
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Parameters
from kif_lightning.storage import load_state, save_state

FOLDER = "boundaries"
FOR_WHOM = "kif whatif and keep_boundaries=true are for method/boundary=fusion"


def fusion_of(boundary: Mapping[str, Callback]) -> tuple[str, KnowledgeFusion]:
    """The method's fusion and its name, if a task ends with it, so that it can be made again.

    Raises:
        UserError: nothing is fused, or not once at the task's end.
    """
    if any(isinstance(callback, RecurrentFusion) for callback in boundary.values()):
        raise UserError(
            "The method merges old and new weights many times within a task, so that no single "
            f"boundary can be fused again: {FOR_WHOM}."
        )
    if any(isinstance(callback, FittedFusion) for callback in boundary.values()):
        raise UserError(
            "The method fits its fusion weights on rows of past tasks, so that the importance it "
            f"keeps does not tell them: {FOR_WHOM}."
        )
    found: dict[str, KnowledgeFusion] = {}
    for name, callback in boundary.items():
        if isinstance(callback, KnowledgeFusion):
            found[name] = callback
        elif isinstance(callback, FusionWithReplay):
            if callback.position == "after_fusion":
                raise UserError(
                    "The method trains on rows of past tasks after each fusion, which another "
                    f"fusion would need again: {FOR_WHOM}, or for position=before_fusion."
                )
            found[name] = callback.fusion
    if len(found) != 1:
        raise UserError(
            f"Expected a method that fuses once at each task's end, got one with {len(found)} "
            f"fusions there: {FOR_WHOM}."
        )
    return next(iter(found.items()))


def require_kept(
    boundary: Mapping[str, Callback], parameters: Parameters, num_tasks: int, *, sharded: bool
) -> str:
    """What will be kept and how much room it takes, in a sentence.

    Raises:
        UserError: a method whose fusions cannot be made again, weights spread over devices.
    """
    if not boundary:
        return "keep_boundaries=true has no effect: the method fuses nothing."
    fusion_of(boundary)
    if sharded:
        raise UserError(
            "keep_boundaries=true needs whole weights, but with trainer=sharded each device holds "
            "a part of every weight: use trainer.strategy=ddp, or leave it out."
        )
    one = 2 * sum(p.numel() * p.element_size() for p in parameters.values())
    number = max(0, num_tasks - 1)
    return (
        f"The weights before and after each of {number} fusions are kept for kif whatif in "
        f"{FOLDER}/: {megabytes(one)} each, {megabytes(one * number)} in all."
    )


class Keeping:
    """Keeps the fusion of the task that begins, if there is one; the first task is not fused."""

    def __init__(
        self, boundary: Mapping[str, Callback], run: Path, task_index: int, task: str
    ) -> None:
        self.folder = run / FOLDER / folder_name(task_index + 1, task)
        self.seconds = 0.0
        """It took; they are not the method's."""
        if boundary:
            fusion_of(boundary)[1].keep = self._keep

    def _keep(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        started = time.perf_counter()
        state = {"before": dict(before), "after": dict(after)}
        ranks.on_first(lambda: save_state(self.folder, state))
        self.seconds += time.perf_counter() - started


def folder_name(number: int, task: str) -> str:
    """Of what belongs to a task, counted from 1."""
    return f"{number:02d}_{task}"


@dataclass(frozen=True, kw_only=True)
class KeptBoundary:
    """One fusion kept; ``number`` of its task counts from 1."""

    number: int
    task: str
    folder: Path

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weights before the task, and after its training before fusion, by exported names.

        Raises:
            UserError: missing or damaged.
        """
        found = load_state(self.folder)
        return found["before"], found["after"]


def kept_boundaries(run: Path) -> list[KeptBoundary]:
    """What a run has kept so far, in the order of learning."""
    found = []
    for path in (run / FOLDER).glob("[0-9]*_*"):
        number, _, task = path.name.partition("_")
        found.append(KeptBoundary(number=int(number), task=task, folder=path))
    return sorted(found, key=lambda kept: kept.number)


def find_boundary(run: Path, asked: str | None) -> KeptBoundary:
    """The kept boundary after the task of that number or name.

    Raises:
        UserError: none is kept, none of that name.
    """
    kept = kept_boundaries(run)
    if not kept:
        raise UserError(
            f"Expected a run that kept its boundaries, but {run / FOLDER} holds none: run it with "
            "keep_boundaries=true, at least to the end of its second task (the first is not "
            "fused); one that has ended, with rerun=true or another run_dir=FOLDER too."
        )
    for boundary in kept:
        if asked == boundary.task or (asked or "").lstrip("0") == str(boundary.number):
            return boundary
    listed = ", ".join(f"{boundary.number} {boundary.task}" for boundary in kept)
    came = "none was named" if asked is None else f"got {asked}"
    raise UserError(
        f"--task must be the number or the name of a task whose fusion was kept, {came}: the run "
        f"has {listed}."
    )


def megabytes(number: int) -> str:
    """Bytes in words."""
    return f"{number / 1e6:.1f} MB"
