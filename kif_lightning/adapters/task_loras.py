"""A LoRA of its own for every task, as several adapters of unmodified peft on one model."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from kif_lightning.adapters.peft_adapter import (
    PREFIX,
    attach_with_peft,
    copy_exactly,
    exported_name,
)
from kif_lightning.errors import UserError, require_choice
from kif_lightning.interfaces import Backbone

Active = Literal["sum", "own"]
_TASK = re.compile(r"task_\d{3,}")
_PLAIN = {
    "r", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout",
    "fan_in_fan_out", "task_type",
}  # fmt: skip
"""Settings of LoRA under which a layer's update is s B A alone and begins at 0."""


class TaskLoras:
    """Adapters task_001, task_002, ...; only the newest learns, the older ones are frozen.

    With A_k (R, I), B_k (O, R) and s = alpha / R, a layer's weight (O, I) is
    ``W + s * sum_k B_k A_k`` for ``active="sum"`` (IncLoRA, O-LoRA: method.md section 10), and
    ``W + s * B_j A_j`` for ``active="own"``, with j the task that learns or is asked.
    A frozen LoRA acts without dropout.

    Args:
        config: a plain LoraConfig, the same for every task.
        active: ``sum``: all LoRAs act; ``own``: one a task, and the task is told at test.

    Raises:
        UserError: an unknown choice; a config beyond plain LoRA, whose tasks could not be summed or
            would change the base model; from :meth:`attach`, targets that match no layer.
    """

    shared = False

    def __init__(self, *, config: PeftConfig, active: Active) -> None:
        require_choice("method.adapter.active", active, ("sum", "own"))
        _require_plain(config)
        self.config = config
        self.active = active
        self.needs_task_id = active == "own"

    def attach(self, model: nn.Module, backbone: Backbone) -> nn.Module:
        """The model with the first task's LoRA; base weights frozen, LoRA in float32."""
        return attach_with_peft(model, backbone, self.config, _task_name(0))

    def begin_task(self, model: nn.Module, task_index: int) -> None:
        """Add the task's LoRA (B = 0, A from torch's global generator), unless it is there."""
        tasks = _tasks(model)
        assert task_index in (len(tasks) - 1, len(tasks)), "tasks begin one after another"
        if task_index == len(tasks):
            _add_lora(model)
        self._activate(model, task_index)

    def use_task(self, model: nn.Module, task_index: int) -> None:
        """``own``: that task's LoRA answers, or the newest if the task has none yet."""
        self._activate(model, task_index)

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Exported name, the same in every task -> parameter of the newest LoRA."""
        return _parameters(model, _tasks(model)[-1])

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of all LoRAs; each name tells its task."""
        return {name: parameter.detach() for name, parameter in _named(model).items()}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Add the LoRAs that are missing, copy all bit for bit; the newest can go on learning."""
        known = {part for name in state for part in name.split(".") if _TASK.fullmatch(part)}
        while len(_tasks(model)) < len(known):
            _add_lora(model)
        copy_exactly(_named(model), state)
        self._activate(model, len(known) - 1)

    def save(self, model: nn.Module, folder: Path) -> None:
        """``sum``: one PEFT folder, a LoRA of rank R * tasks; ``own``: a PEFT folder a task."""
        assert isinstance(model, PeftModel)
        if self.active == "own":
            # Asking peft to look at the base model's vocabulary would need the hub.
            model.save_pretrained(str(folder), save_embedding_layers=False)
            return
        tasks = _tasks(model)
        folder.mkdir(parents=True, exist_ok=True)
        _widened(model.peft_config[tasks[0]], len(tasks)).save_pretrained(str(folder))
        weights = concatenated([_parameters(model, task) for task in tasks])
        save_file(
            {PREFIX + name: weight for name, weight in weights.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        model.create_or_update_model_card(str(folder))

    def _activate(self, model: nn.Module, task_index: int) -> None:
        """Let the right LoRAs act; whichever do, only the newest learns and has dropout."""
        assert isinstance(model, PeftModel)
        *old, newest = tasks = _tasks(model)
        own = tasks[min(task_index, len(tasks) - 1)]
        tuner: Any = model.base_model
        # peft makes all active ones trainable: those that must not learn are frozen again below.
        tuner.set_adapter(tasks if self.active == "sum" else [own])
        for task in tasks:
            for parameter in _parameters(model, task).values():
                parameter.requires_grad_(task == newest)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                dropout: nn.ModuleDict = layer.lora_dropout
                dropout.update({task: nn.Identity() for task in old if task in dropout})


def concatenated(loras: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One LoRA that equals the sum of K: ``[B_1 ... B_K] [A_1; ...; A_K] = sum_k B_k A_k``.

    Args:
        loras: name -> A (R, I) or B (O, R) of each; the same names in all.

    Returns:
        name -> A (K * R, I) or B (O, K * R).
    """
    return {
        name: torch.cat(
            [lora[name].detach() for lora in loras],
            dim=0 if name.endswith(("lora_A.weight", "lora_embedding_A")) else 1,
        )
        for name in loras[0]
    }


def _widened(config: PeftConfig, times: int) -> LoraConfig:
    """The config of so many times the rank, with the same scaling in every layer."""
    assert isinstance(config, LoraConfig)
    # The scaling is alpha / R, with use_rslora alpha / sqrt(R).
    alpha_times: Any = times**0.5 if config.use_rslora else times
    return replace(
        config,
        r=config.r * times,
        lora_alpha=config.lora_alpha * alpha_times,
        rank_pattern={layer: r * times for layer, r in (config.rank_pattern or {}).items()},
        alpha_pattern={layer: a * alpha_times for layer, a in (config.alpha_pattern or {}).items()},
        inference_mode=True,
    )


def _task_name(task_index: int) -> str:
    return f"task_{task_index + 1:03d}"


def _tasks(model: nn.Module) -> list[str]:
    """Names of the tasks' LoRAs, oldest first."""
    assert isinstance(model, PeftModel)
    return list(model.peft_config)


def _add_lora(model: nn.Module) -> None:
    assert isinstance(model, PeftModel)
    # The first one's config knows the kind of model, its public name and the layers found.
    config = copy.deepcopy(model.peft_config[_task_name(0)])
    model.add_adapter(_task_name(len(_tasks(model))), config)


def _parameters(model: nn.Module, task: str) -> dict[str, nn.Parameter]:
    """Exported name without the task -> parameter of one task's LoRA."""
    return {
        exported_name(name, task): parameter
        for name, parameter in model.named_parameters()
        if task in name.split(".")
    }


def _named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name with the task -> parameter of all LoRAs."""
    tasks = set(_tasks(model))
    return {
        name.removeprefix(PREFIX): parameter
        for name, parameter in model.named_parameters()
        if tasks & set(name.split("."))
    }


def _require_plain(config: PeftConfig) -> None:
    """Raise UserError unless the config is a LoRA whose update starts at 0 and is s B A alone."""
    if not isinstance(config, LoraConfig):
        raise UserError(
            f"A LoRA for every task needs a peft.LoraConfig, got {type(config).__name__}: set "
            "method.adapter.config._target_=peft.LoraConfig."
        )
    usual = LoraConfig().to_dict()
    beyond = [
        f"{key}={value!r}"
        for key, value in config.to_dict().items()
        if key not in _PLAIN
        and value != usual[key]
        and (key, value) != ("init_lora_weights", "gaussian")
    ]
    if beyond:
        raise UserError(
            f"A LoRA for every task must be plain LoRA, got {', '.join(beyond)}: leave that out of "
            "method.adapter.config."
        )
