"""Learning without forgetting: the model before the task teaches, on the task's own inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div, log_softmax

from kif_lightning.errors import require_between
from kif_lightning.interfaces import Batch, LearntTask, LossContext, Parameters
from kif_lightning.modes import evaluating


class Distillation:
    """``coefficient * T^2 * mean over answer tokens of KL(old || new)``, softened by T.

    The old model has the weights from before the task and no dropout. Zero in the first task, which
    has no past (Li & Hoiem, arXiv 1606.09282). The mean is over the target tokens of the whole
    optimizer step: a micro-batch gives its share, whatever its number of tokens.

    Args:
        coefficient: at least 0.
        temperature: T, above 0; T^2 keeps the gradient's size independent of it.

    Raises:
        UserError: a value out of range.
    """

    def __init__(self, *, coefficient: float = 1.0, temperature: float = 2.0) -> None:
        require_between("penalty.distillation.coefficient", coefficient, 0.0, float("inf"))
        require_between("penalty.distillation.temperature", temperature, 0.0, 1e4, low_open=True)
        self.coefficient = coefficient
        self.temperature = temperature
        self._teacher: dict[str, Tensor] = {}

    def __call__(self, context: LossContext) -> Tensor:
        """The micro-batch's share of the term, a scalar, taken in float32."""
        if not self._teacher:
            return torch.zeros((), device=context.logits.device)
        for name, parameter in context.parameters.items():
            # The weights may have changed devices since the task began.
            self._teacher[name] = self._teacher[name].to(parameter.device)
        old_logits = logits_with(self._teacher, context)
        answers = context.labels >= 0
        divergence = softened_divergence(
            old_logits[answers], context.logits[answers], self.temperature
        )
        # The module multiplies by 1 / step_micro_batches.
        return self.coefficient * divergence / context.step_tokens * context.step_micro_batches

    def begin_task(self, parameters: Parameters, task_index: int) -> None:
        """Keep the weights as the tasks before left them."""
        self._teacher = {}
        if task_index > 0:
            self._teacher = {name: p.detach().clone() for name, p in parameters.items()}

    def end_task(self, parameters: Parameters, task_index: int, learnt: LearntTask) -> None:
        """The next task has another teacher."""
        self._teacher = {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: each task's teacher is made from the weights it begins with."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take over."""


def softened_divergence(old_logits: Tensor, new_logits: Tensor, temperature: float) -> Tensor:
    """``T^2 * sum_m KL(softmax(old_m / T) || softmax(new_m / T))``, a scalar, in nats, float32.

    Args:
        old_logits: (M, V), of the teacher.
        new_logits: (M, V).
        temperature: T.
    """
    old = log_softmax(old_logits.float() / temperature, dim=-1)
    new = log_softmax(new_logits.float() / temperature, dim=-1)
    return temperature**2 * kl_div(new, old, reduction="sum", log_target=True)


def logits_with(weights: Mapping[str, Tensor], context: LossContext) -> Tensor:
    """Logits (N, L, V) of the context's model with other trainable weights, without dropout.

    The model's own weights and modes stay as they are; no graph is made.

    Args:
        weights: exported name -> tensor, one for each of the context's parameters.
        context: model, batch and parameters.
    """
    exported = {id(parameter): name for name, parameter in context.parameters.items()}
    # Tied weights have one name here; functional_call replaces all their places.
    replaced = {
        f"model.{name}": weights[exported[id(parameter)]]
        for name, parameter in context.model.named_parameters()
        if id(parameter) in exported
    }
    answering = _Answering(context.model, context.answer_logits)
    # The module switches mixed precision off around penalties, but old and new must be computed
    # alike: under autocast the logits have a dtype that no weight is stored in.
    dtype = context.logits.dtype
    mixed = all(parameter.dtype != dtype for parameter in context.model.parameters())
    device, precision = context.logits.device.type, dtype if mixed else None
    autocast = torch.autocast(device, dtype=precision, enabled=mixed)
    with torch.no_grad(), evaluating(context.model), autocast:
        logits: Tensor = functional_call(answering, replaced, (context.batch,))
    return logits


class _Answering(nn.Module):
    """The backbone's logits as a module, the form that functional_call takes."""

    def __init__(
        self,
        model: nn.Module,
        answer_logits: Callable[[nn.Module, Batch], tuple[Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self.model = model
        self.answer_logits = answer_logits

    def forward(self, batch: Batch) -> Tensor:
        return self.answer_logits(self.model, batch)[0]
