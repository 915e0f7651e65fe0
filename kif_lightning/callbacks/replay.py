"""KIF-M: fusion at the task boundary with a replay of the memory beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from kif_lightning.callbacks.fitted_fusion import FittedFusion
from kif_lightning.callbacks.fusion import KnowledgeFusion, learning
from kif_lightning.errors import UserError, require_choice, require_count
from kif_lightning.interfaces import Boundary, FitRows, LearningModule, Needs, Parameters, Row
from kif_lightning.kif import SkillUnits, UnitClass
from kif_lightning.kif.shards import part

CURRENT_SPECIFIC = UnitClass.CURRENT_SPECIFIC.name.lower()


class FusionWithReplay(Callback):
    """Knowledge fusion and, after or before it, training on the rows kept of past tasks (KIF-M).

    Our reading of the paper's Figure 3: during the replay the units that are specific to the
    current task are fixed, all others learn; the accumulated importance stays as it was.

    Args:
        fusion: knowledge fusion; this callback runs its hooks.
        position: ``after_fusion``: replay on the fused weights; ``before_fusion``: on the task's
            own weights, which are fused afterwards.
        epochs: over the memory.

    Raises:
        UserError: an unknown position, fewer than one epoch, and what the fusion raises.
    """

    needs = Needs(memory=True, shared_weights=True)

    def __init__(
        self,
        *,
        fusion: KnowledgeFusion,
        position: Literal["after_fusion", "before_fusion"] = "after_fusion",
        epochs: int = 1,
    ) -> None:
        require_choice("replay.position", position, ("after_fusion", "before_fusion"))
        require_count("replay.epochs", epochs)
        if isinstance(fusion, FittedFusion):
            raise UserError(
                "A replay beside the fusion works with KnowledgeFusion, got FittedFusion, which "
                "fits on the memory itself: choose method/boundary=fitted or fusion_with_replay."
            )
        self.fusion = fusion
        self.position = position
        self.epochs = epochs

    @property
    def boundary(self) -> Boundary | None:
        """What the fusion did at the last boundary."""
        return self.fusion.boundary

    def check(self, module: LearningModule) -> None:
        """Refuse what fusion refuses."""
        self.fusion.check(module)

    def check_state(self, module: LearningModule, state: Mapping[str, Any]) -> None:
        """Refuse the importance of other units than the module's."""
        self.fusion.check_state(module, state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The fusion's snapshot."""
        self.fusion.on_train_start(trainer, pl_module)

    def at_boundary(
        self, module: LearningModule, memory_rows: Sequence[Row], fit_rows: FitRows
    ) -> None:
        """Identify, then fuse and replay in the chosen order; no memory yet: fuse alone."""
        self.fusion.identify(module)
        if self.position == "before_fusion":
            self._replay(module, memory_rows, fit_rows)
        self.fusion.fuse(module.trainable_parameters)
        if self.position == "after_fusion":
            self._replay(module, memory_rows, fit_rows)

    def _replay(
        self, module: LearningModule, memory_rows: Sequence[Row], fit_rows: FitRows
    ) -> None:
        boundary, units = self.fusion.boundary, self.fusion.units
        if not memory_rows or boundary is None or boundary.classes is None:
            return
        assert units is not None
        fixed = torch.tensor([name == CURRENT_SPECIFIC for name in boundary.classes])
        frozen = FrozenUnits(units, fixed, module.trainable_parameters)
        fit_rows(memory_rows, epochs=self.epochs, callbacks=[frozen])

    def state_dict(self) -> dict[str, Any]:
        """The fusion's."""
        return self.fusion.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.fusion.load_state_dict(state_dict)


class FrozenUnits(Callback):
    """Units that get no update at all: no gradient, so no momentum, and no weight decay.

    An optimizer knows whole tensors, a rank unit is a row of A and a column of B: the gradient of
    the frozen part is zero, and what the optimizer still does to it (decay) is undone bit for bit
    before the next forward pass. Of weights spread over ranks, each rank sees to its part.

    Args:
        units: the partition of the weights.
        frozen: (U,) bool.
        parameters: the weights as they are to stay.
    """

    def __init__(self, units: SkillUnits, frozen: Tensor, parameters: Parameters) -> None:
        self.masks = frozen_masks(units, frozen, parameters)
        # Whole copies: to pick the frozen part by its mask, host and device would have to meet.
        self._kept = {name: part(parameters[name]).clone() for name in self.masks}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """To the weights' device, which they have only now."""
        for name, parameter in self._frozen(pl_module):
            self.masks[name] = self.masks[name].to(parameter.device)
            self._kept[name] = self._kept[name].to(parameter.device)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Zero the gradient of the frozen part, before clipping."""
        for name, parameter in self._frozen(pl_module):
            if parameter.grad is not None:
                part(parameter.grad).masked_fill_(self.masks[name], 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Undo what the optimizer did to the frozen part without a gradient."""
        for name, parameter in self._frozen(pl_module):
            here = part(parameter)
            torch.where(self.masks[name], self._kept[name], here, out=here)

    def _frozen(self, module: LightningModule) -> list[tuple[str, nn.Parameter]]:
        """Name and parameter of each tensor of which a part is frozen."""
        parameters = learning(module).trainable_parameters
        return [(name, parameters[name]) for name in self.masks]


def frozen_masks(
    units: SkillUnits, frozen: Tensor, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Bool masks in the shapes of the parameters' parts, True where a frozen unit owns the weight.

    Args:
        units: the partition.
        frozen: (U,) bool.
        parameters: the tensors that the units' members name; those without a frozen unit get none.
    """
    masks = {}
    for group, place in units.slices():
        if not bool(frozen[place].any()):
            continue
        for member in group.members:
            tensor = parameters[member.parameter]
            here = part(tensor)
            masks[member.parameter] = (
                member.spread(frozen[place], tensor).expand(here.shape).to(here.device)
            )
    return masks
