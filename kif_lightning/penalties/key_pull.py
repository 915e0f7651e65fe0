"""Pulls the chosen keys of a prompt pool towards the queries that chose them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kif_lightning.errors import UserError, require_between
from kif_lightning.interfaces import LearningModule, LearntTask, LossContext, Parameters


class KeyPull:
    """``coefficient * mean over rows of sum over chosen keys of (1 - cos(query, key))``.

    The second term of L2P's loss (arXiv 2112.08654). The model computes it (``key_distance``) for
    the micro-batch of its last training forward.

    Args:
        coefficient: lambda, at least 0.

    Raises:
        UserError: a negative coefficient; from :meth:`check`, if the model has no pool of keys.
    """

    def __init__(self, *, coefficient: float = 0.5) -> None:
        require_between("penalty.key_pull.coefficient", coefficient, 0.0, float("inf"))
        self.coefficient = coefficient

    def __call__(self, context: LossContext) -> Tensor:
        """The micro-batch's share of the term, a scalar, taken in float32."""
        model: Any = context.model
        # A mean over rows: a micro-batch of fewer rows than the others counts less.
        share = len(context.labels) / context.step_rows * context.step_micro_batches
        term: Tensor = self.coefficient * share * model.key_distance
        return term

    def check(self, module: LearningModule) -> None:
        """Refuse a model without keys."""
        if "keys" not in module.trainable_parameters:
            raise UserError(
                "The key pull works on the keys of a prompt pool, but the model has none: use "
                "method/penalty=none with this adapter."
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
