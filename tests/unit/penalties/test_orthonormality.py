"""The orthonormality penalty against NumPy."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kif_lightning.errors import UserError
from kif_lightning.interfaces import LossContext
from kif_lightning.penalties import OrthonormalityPenalty
from kif_lightning.penalties.orthonormality import orthonormality

A, B = "layer.0.q.lora_A.weight", "layer.0.q.lora_B.weight"


def random_parameters(seed: int = 0) -> dict[str, Tensor]:
    """Two LoRA modules of ranks 3 and 2, and weights that are none of the penalty's business."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        A: (3, 7),
        B: (5, 3),
        "layer.1.v.lora_A.weight": (2, 4),
        "layer.1.v.lora_B.weight": (6, 2),
        "layer.2.q.lora_A.weight": (3, 7),
        "layer.2.q.lora_B.weight": (5, 3),
        "layer.1.v.lora_magnitude_vector.weight": (6,),
        "layer.1.norm.weight": (4,),
    }
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def reference(parameters: dict[str, Any]) -> float:
    """Written out, entry by entry, in float64: mean of the unsquared Frobenius norms."""
    norms = []
    for name, tensor in parameters.items():
        matrix = np.asarray(tensor, dtype=np.float64)
        if "lora_A" in name:
            vectors = [matrix[r, :] for r in range(matrix.shape[0])]
        elif "lora_B" in name:
            vectors = [matrix[:, r] for r in range(matrix.shape[1])]
        else:
            continue
        square = sum(
            (float(np.dot(u, v)) - (i == j)) ** 2
            for i, u in enumerate(vectors)
            for j, v in enumerate(vectors)
        )
        norms.append(math.sqrt(square))
    return sum(norms) / len(norms)


def context(parameters: dict[str, Any]) -> LossContext:
    empty = torch.empty(0)
    return LossContext(
        parameters=parameters,
        model=nn.Identity(),
        batch={},
        logits=empty,
        labels=empty,
        answer_logits=lambda model, batch: (empty, empty),
        step_tokens=1,
        step_micro_batches=1,
        step_rows=1,
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("coefficient", [0.0, 0.1, 3.0])
def test_value_is_that_of_numpy(seed: int, coefficient: float) -> None:
    parameters = random_parameters(seed)
    term = OrthonormalityPenalty(coefficient=coefficient)(context(parameters))
    assert term.shape == ()
    assert float(term) == pytest.approx(coefficient * reference(parameters), rel=1e-5)


def test_zero_matrices_are_the_root_of_the_rank_away() -> None:
    assert float(orthonormality({A: torch.zeros(9, 20)})) == pytest.approx(3.0)


def orthonormal() -> dict[str, Tensor]:
    return {A: torch.eye(3, 7), B: torch.eye(5, 3)[[4, 2, 1, 0, 3]]}


def test_orthonormal_matrices_cost_nothing_and_their_gradient_is_finite() -> None:
    parameters = {name: tensor.requires_grad_() for name, tensor in orthonormal().items()}
    term = orthonormality(parameters)
    assert float(term.detach()) == 0.0
    term.backward()
    for tensor in parameters.values():
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_gradient_is_that_of_finite_differences() -> None:
    parameters = {n: t.requires_grad_() for n, t in random_parameters(1).items()}
    orthonormality(parameters).backward()
    start = {n: t.detach().numpy().astype(np.float64) for n, t in parameters.items()}
    for name, tensor in parameters.items():
        if ".lora_" not in name or "magnitude" in name:
            assert tensor.grad is None
            continue
        found = tensor.grad
        assert found is not None
        for index in np.ndindex(*tensor.shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = {n: values.copy() for n, values in start.items()}
                moved[name][index] += step
                sides.append(reference(moved))
            slope = (sides[0] - sides[1]) / 2e-6
            assert float(found[index]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_half_precision_weights_are_computed_in_float32() -> None:
    rounded = {n: t.bfloat16() for n, t in random_parameters().items()}
    term = orthonormality(rounded)
    assert term.dtype == torch.float32
    exact = reference({n: t.float() for n, t in rounded.items()})
    assert float(term) == pytest.approx(exact, rel=1e-5)


def test_autocast_changes_nothing() -> None:
    parameters = random_parameters()
    with torch.autocast("cpu", torch.bfloat16):
        term = orthonormality(parameters)
    assert float(term) == pytest.approx(reference(parameters), rel=1e-5)


def test_nothing_to_penalise_is_told() -> None:
    with pytest.raises(UserError, match="Expected LoRA's A and B"):
        orthonormality({"head.weight": torch.ones(2, 2)})


def test_a_model_without_lora_is_refused() -> None:
    penalty = OrthonormalityPenalty()
    others = {"k.ia3_l": torch.ones(3), "v.lora_magnitude_vector.weight": torch.ones(3)}
    with pytest.raises(UserError, match="method/penalty=none"):
        penalty.check(SimpleNamespace(trainable_parameters=others, identification=None))
    penalty.check(SimpleNamespace(trainable_parameters=random_parameters(), identification=None))


@pytest.mark.parametrize("coefficient", [-0.1, -1, float("nan"), "big", None, True])
def test_a_coefficient_that_is_none(coefficient: Any) -> None:
    with pytest.raises(UserError, match=r"penalty\.orthonormality\.coefficient"):
        OrthonormalityPenalty(coefficient=coefficient)


def test_there_is_no_state_to_keep() -> None:
    penalty = OrthonormalityPenalty()
    penalty.load_state_dict(penalty.state_dict())
    assert penalty.state_dict() == {}
