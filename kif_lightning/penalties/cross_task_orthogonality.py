"""Keeps a new task's LoRA orthogonal to those of earlier tasks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kif_lightning.errors import UserError, require_between
from kif_lightning.interfaces import LearningModule, LearntTask, LossContext, Needs, Parameters

_LORA_A = re.compile(r"(?:base_model\.model\.)?(?P<module>.+\.lora_A)\.[^.]+\.weight")
"""peft's name; the part before ``.weight`` is the adapter's name."""


class CrossTaskOrthogonality:
    """``coefficient * sum over LoRA modules and earlier tasks of sum |A_new A_old^T|``.

    A is (R, I), its rows span the task's subspace; the trainable LoRA is new, the frozen ones of
    the model are old. Zero in the first task (O-LoRA, Wang et al., arXiv 2310.14152).

    Args:
        coefficient: lambda_1 of the paper, at least 0.

    Raises:
        UserError: a negative coefficient; from :meth:`check`, if no LoRA is trainable; in training,
            a later task whose model holds no frozen LoRA.
    """

    needs = Needs(new_weights=True)

    def __init__(self, *, coefficient: float = 0.5) -> None:
        name = "penalty.cross_task_orthogonality.coefficient"
        require_between(name, coefficient, 0.0, float("inf"))
        self.coefficient = coefficient
        self._task_index = 0
        self._old: dict[str, Tensor] = {}

    def __call__(self, context: LossContext) -> Tensor:
        """The term, a scalar, taken in float32."""
        if self._task_index == 0:
            return torch.zeros((), device=context.logits.device)
        # Not before the first call: begin_task sees no model, and then the devices are settled.
        self._old = self._old or old_subspaces(context.model, context.parameters)
        if not self._old:
            raise UserError(
                "Cross-task orthogonality needs an adapter that adds a LoRA for every task and "
                "freezes the earlier ones, but the model holds no frozen LoRA after "
                f"{self._task_index} tasks: choose such a method/adapter."
            )
        return self.coefficient * overlap(context.parameters, self._old)

    def check(self, module: LearningModule) -> None:
        """Refuse a model without LoRA: the penalty would be without effect."""
        if not any(name.endswith(".lora_A.weight") for name in module.trainable_parameters):
            raise UserError(
                "Cross-task orthogonality works on LoRA's A, but none is trainable: use "
                "method/penalty=none with this adapter."
            )

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Other LoRAs are old now."""
        self._task_index, self._old = task_index, {}

    def end_task(self, parameters: Parameters, task_index: int, learnt: LearntTask) -> None:
        """Nothing to keep: the model holds the old LoRAs."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the model holds the old LoRAs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


def overlap(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> Tensor:
    """Sum over the names of ``old`` of ``sum |A_new A_old^T|``; a scalar, in float32.

    Args:
        new: exported name -> A (R, I).
        old: exported name -> the A's of all earlier tasks, one below the other (sum of R, I).
    """
    return torch.stack([(new[name].float() @ a.T).abs().sum() for name, a in old.items()]).sum()


def old_subspaces(model: nn.Module, parameters: Parameters) -> dict[str, Tensor]:
    """Exported name -> stacked A's (sum of R, I) of the frozen LoRAs beside each trainable one."""
    found: dict[str, list[Tensor]] = {}
    for name, weight in _old_weights(model, parameters):
        found.setdefault(name, []).append(weight.detach().float())
    return {name: torch.cat(weights) for name, weights in found.items()}


def _old_weights(model: nn.Module, parameters: Parameters) -> Iterator[tuple[str, nn.Parameter]]:
    for name, weight in model.named_parameters():
        match = _LORA_A.fullmatch(name)
        exported = f"{match['module']}.weight" if match else ""
        if exported in parameters and weight is not parameters[exported]:
            yield exported, weight
