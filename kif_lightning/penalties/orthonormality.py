"""Keeps LoRA's rows and columns orthonormal, so that rank units stay distinct."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kif_lightning.errors import UserError, require_between
from kif_lightning.interfaces import LearningModule, LearntTask, LossContext, Parameters


class OrthonormalityPenalty:
    """``mu * mean over all A and B of (||A A^T - I||_F or ||B^T B - I||_F)``, norm not squared.

    A is (R, I), B is (O, R), I the (R, R) identity (KIF, orthogonal regularisation of TaSL's code).

    Args:
        coefficient: mu, at least 0.

    Raises:
        UserError: a negative coefficient; from :meth:`check`, if no LoRA is trainable.
    """

    def __init__(self, *, coefficient: float = 0.1) -> None:
        require_between("penalty.orthonormality.coefficient", coefficient, 0.0, float("inf"))
        self.coefficient = coefficient

    def __call__(self, context: LossContext) -> Tensor:
        """The term, a scalar, taken in float32."""
        return self.coefficient * orthonormality(context.parameters)

    def check(self, module: LearningModule) -> None:
        """Refuse a model without LoRA: the penalty would be without effect."""
        if not any(_is_lora(name) for name in module.trainable_parameters):
            raise UserError(
                "The orthonormality penalty works on LoRA's A and B, but none is trainable: "
                "use method/penalty=none with this adapter."
            )

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Nothing to prepare."""

    def end_task(self, parameters: Parameters, task_index: int, learnt: LearntTask) -> None:
        """Nothing to keep."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the penalty has no memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


def orthonormality(parameters: Mapping[str, Tensor]) -> Tensor:
    """Mean distance of all LoRA tensors' Gram matrices from the identity; a scalar, in float32.

    For a loss of your own: ``loss + 0.1 * orthonormality(dict(model.named_parameters()))``.

    Args:
        parameters: name in peft -> tensor; whatever is no LoRA A or B is left out.

    Raises:
        UserError: no LoRA among them.
    """
    by_shape: defaultdict[Any, list[Tensor]] = defaultdict(list)
    for name, tensor in parameters.items():
        if not _is_lora(name):
            continue
        matrix = tensor.float()
        side_a = ".lora_A" in name or ".lora_embedding_A" in name
        rows = matrix.flatten(1) if side_a else matrix.transpose(0, 1).flatten(1)
        by_shape[rows.shape].append(rows)
    if not by_shape:
        raise UserError("Expected LoRA's A and B among the parameters, got none: use LoRA.")
    distances = []
    # One product for all of a shape: hundreds of small ones take longer than the arithmetic.
    for alike in by_shape.values():
        stacked = torch.stack(alike)
        with torch.autocast(stacked.device.type, enabled=False):
            gram = stacked @ stacked.mT
        identity = torch.eye(gram.shape[-1], device=gram.device, dtype=gram.dtype)
        distances.append(torch.linalg.matrix_norm(gram - identity))
    return torch.cat(distances).mean()


def _is_lora(name: str) -> bool:
    return ".lora_" in name and "magnitude" not in name
