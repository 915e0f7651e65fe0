"""Full fine-tuning: no adapter, every weight of the model learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from kif_lightning.adapters.peft_adapter import copy_exactly
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Backbone


class FullAdapter:
    """All parameters are trainable; tied weights count once."""

    shared = True
    needs_task_id = False

    def __init__(self) -> None:
        self._backbone: Backbone | None = None

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """The model itself, every parameter trainable.

        Raises:
            UserError: quantised weights, which cannot learn.
        """
        if not all(parameter.is_floating_point() for parameter in model.parameters()):
            raise UserError(
                "Full fine-tuning cannot change quantised weights: use method/adapter=lora, or "
                "backbone.quantisation=null and weights saved in full."
            )
        self._backbone = backbone
        return model.requires_grad_(True)

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Nothing: the weights are shared."""

    def use_task(self, model: nn.Module, task_index: int) -> None:
        """Nothing: the same weights answer for all tasks."""

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Name -> parameter."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """All weights."""
        return {name: parameter.detach() for name, parameter in self.trainable(model).items()}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy all weights back, bit for bit."""
        copy_exactly(self.trainable(model), state)

    def save(self, model: nn.Module, folder: Path) -> None:
        """The whole model with its tokenizer, for ``from_pretrained``."""
        assert isinstance(model, PreTrainedModel)
        assert self._backbone is not None
        model.save_pretrained(str(folder))
        self._backbone.save_tokenizer(folder)
