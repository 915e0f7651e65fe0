"""One adapter of unmodified peft (LoRA, DoRA, IA3, ...), shared by all tasks."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from kif_lightning.errors import UserError
from kif_lightning.interfaces import Backbone
from kif_lightning.kif.shards import part, part_as

PREFIX = "base_model.model."
"""What peft's wrapper puts before the base model's names."""


def exported_name(name: str, adapter: str = "default") -> str:
    """Name in peft without the wrapper's prefix and the adapter's name."""
    return re.sub(rf"\.{adapter}(?=\.|$)", "", name.removeprefix(PREFIX), count=1)


def attach_with_peft(
    model: nn.Module, backbone: Backbone, config: PeftConfig, adapter: str = "default"
) -> nn.Module:
    """The model with the adapter on it; base weights frozen, adapter weights in float32.

    Raises:
        UserError: the config matches no layer of the model.
    """
    config = copy.deepcopy(config)
    config.task_type = backbone.task_type
    try:
        peft_model: nn.Module = get_peft_model(model, config, adapter)
    except (ValueError, TypeError) as error:  # the type: an adapter unfit for quantised weights
        raise UserError(_no_match(config, model, error)) from error
    config.base_model_name_or_path = backbone.public_name
    for name, value in vars(config).items():
        if isinstance(value, set):  # else every process would save it in an order of its own
            setattr(config, name, sorted(value))
    # peft writes these into the saved adapter's model card: no path of this machine.
    base: Any = model
    base.name_or_path = base.config._name_or_path = backbone.public_name
    return peft_model


class PeftAdapter:
    """Wraps the model with ``get_peft_model`` once; every task goes on with the same weights.

    Args:
        config: any PeftConfig whose adapter lives in the model's layers.

    Raises:
        UserError: at :meth:`attach`, if the config matches no layer of the model.
    """

    shared = True
    needs_task_id = False

    def __init__(self, *, config: PeftConfig) -> None:
        self.config = config

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """The model with the adapter on it; base weights frozen, adapter weights in float32."""
        return attach_with_peft(model, backbone, self.config)

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Nothing: the weights are shared."""

    def use_task(self, model: nn.Module, task_index: int) -> None:
        """Nothing: the same weights answer for all tasks."""

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Exported name -> adapter parameter."""
        return {exported_name(n): p for n, p in model.named_parameters() if p.requires_grad}

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The adapter's weights under exported names."""
        return {name: parameter.detach() for name, parameter in self.trainable(model).items()}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy the adapter's weights back, bit for bit."""
        copy_exactly(self.trainable(model), state)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A standard PEFT folder: adapter_config.json and adapter_model.safetensors."""
        assert isinstance(model, PeftModel)
        # Asking peft to look at the base model's vocabulary would need the hub.
        model.save_pretrained(str(folder), save_embedding_layers=False)


def copy_exactly(parameters: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into ``parameters``, of each rank its part; both must hold the same names."""
    if parameters.keys() != state.keys():
        differing = sorted(parameters.keys() ^ state.keys())
        raise UserError(
            f"The saved weights are of another adapter: {len(differing)} names differ, "
            f"{differing[0]} among them."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            part(parameter).copy_(part_as(state[name], parameter))


def _no_match(config: PeftConfig, model: nn.Module, error: Exception) -> str:
    wanted = getattr(config, "target_modules", None)
    kinds: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            kinds[name.rpartition(".")[2]] = kinds.get(name.rpartition(".")[2], 0) + 1
    listed = ", ".join(f"{kind} ({number})" for kind, number in sorted(kinds.items()))
    shown = sorted(wanted) if isinstance(wanted, set | list) else wanted
    if "not found" not in str(error) or not wanted:
        return f"peft refused the adapter: {error}"
    return (
        f"The adapter's target modules {shown} match no layer of the model; its linear layers are: "
        f"{listed}. Set backbone.lora_targets=[...] to some of these."
    )
