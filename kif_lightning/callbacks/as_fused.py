"""Whether a task begins with the weights that the last task's fusion left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kif_lightning.errors import UserError
from kif_lightning.interfaces import Parameters
from kif_lightning.kif.sampling import even_sample


def samples_of(parameters: Parameters) -> dict[str, Tensor]:
    """A few weights of each tensor, (S,), float32 on the CPU."""
    return {name: even_sample(parameter).float() for name, parameter in parameters.items()}


def require_finite(parameters: Parameters) -> None:
    """Raise UserError, naming the tensor, unless every weight is finite."""
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise UserError(
                f"Expected finite weights at the start of the task, got others in {name}: load "
                "weights of before they diverged."
            )


def require_as_left(left: Mapping[str, Tensor], parameters: Parameters) -> None:
    """Raise UserError if the weights are others than those that the samples were taken of.

    Names that only one of them has are not looked at.

    Args:
        left: what :func:`samples_of` gave.
        parameters: name -> tensor, at the task's beginning.
    """
    now = samples_of({name: p for name, p in parameters.items() if name in left})
    # As far as a copy in bfloat16, or in float16 that has no smaller numbers, may be off.
    differing = [
        name
        for name, sample in now.items()
        if sample.shape != left[name].shape
        or not torch.allclose(sample, left[name], rtol=2**-8, atol=2**-24)
    ]
    if differing:
        raise UserError(
            f"Expected the weights that the last task's fusion left, but {len(differing)} of "
            f"{len(now)} tensors differ ({differing[0]}): load the model as it was saved after "
            "trainer.fit, or go on with an interrupted fit by ckpt_path; checkpoints written "
            "within a fit are not fused."
        )
