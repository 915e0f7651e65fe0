"""Elastic weights on a softmax regression, whose Fisher is known in closed form."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kif_lightning.errors import UserError
from kif_lightning.penalties import ElasticWeights

W, B, UNUSED = "layer.weight", "layer.bias", "other.weight"


def new_parameters(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {W: (3, 4), B: (3,), UNUSED: (2,)}
    return {n: nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for n, s in shapes.items()}


@dataclass
class Regression:
    """A task: inputs (rows, 4) and classes; its loss is softmax regression's."""

    parameters: dict[str, nn.Parameter]
    seed: int = 0
    rows: int = 6

    def __post_init__(self) -> None:
        draw = np.random.default_rng(self.seed)
        self.inputs, self.classes = (
            draw.normal(size=(self.rows, 4)),
            draw.integers(3, size=self.rows),
        )

    def row_losses(self, num_rows: int) -> Iterator[Tensor]:
        for x, label in list(zip(self.inputs, self.classes, strict=True))[:num_rows]:
            row = torch.tensor(x, dtype=self.parameters[W].dtype)
            logits = self.parameters[W] @ row + self.parameters[B]
            yield -torch.log_softmax(logits, dim=0)[int(label)]

    def fisher(self, num_rows: int) -> dict[str, np.ndarray]:
        """Gradient of one row's loss: (softmax - one hot) outer x. Mean of the squares."""
        weight, bias = (self.parameters[n].detach().double().numpy() for n in (W, B))
        total_w, total_b = np.zeros((3, 4)), np.zeros(3)
        for x, label in list(zip(self.inputs, self.classes, strict=True))[:num_rows]:
            e = np.exp(weight @ x + bias)
            residual = e / e.sum() - np.eye(3)[label]
            total_w += np.outer(residual, x) ** 2
            total_b += residual**2
        number = min(num_rows, self.rows)
        return {W: total_w / number, B: total_b / number, UNUSED: np.zeros(2)}


def context(parameters: Any) -> Any:
    return SimpleNamespace(parameters=parameters, logits=torch.empty(0))


def moved(parameters: dict[str, nn.Parameter], seed: int) -> dict[str, np.ndarray]:
    """Moves the weights in place; the distances by name."""
    draw = np.random.default_rng(seed)
    steps = {name: draw.normal(size=tuple(p.shape)) for name, p in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.add_(torch.tensor(steps[name], dtype=parameter.dtype))
    return steps


def learn(penalty: ElasticWeights, parameters: Any, task: Regression, index: int = 0) -> None:
    penalty.begin_task(parameters, index)
    penalty.end_task(parameters, index, task)


@pytest.mark.parametrize("num_rows", [1, 4, 100])
def test_value_gradient_and_hessian_are_those_of_the_closed_form(num_rows: int) -> None:
    parameters = new_parameters()
    penalty, task = (
        ElasticWeights(coefficient=3.0, num_fisher_rows=num_rows),
        Regression(parameters),
    )
    fisher = task.fisher(num_rows)
    learn(penalty, parameters, task)
    steps = moved(parameters, 1)
    term = penalty(context(parameters))
    assert term.shape == ()
    expected = 1.5 * sum(float((fisher[n] * steps[n] ** 2).sum()) for n in fisher)
    assert expected > 0.1
    assert float(term.detach()) == pytest.approx(expected, rel=1e-4)
    gradients = torch.autograd.grad(term, list(parameters.values()))
    for name, found in zip(parameters, gradients, strict=True):
        np.testing.assert_allclose(found, 3 * fisher[name] * steps[name], rtol=1e-4, atol=1e-6)

    def of_weight(weight: Tensor) -> Tensor:
        return penalty(context({**parameters, W: weight}))

    hessian = torch.autograd.functional.hessian(of_weight, parameters[W].detach())
    diagonal = np.diag(3 * fisher[W].reshape(-1))
    np.testing.assert_allclose(hessian.reshape(12, 12), diagonal, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [1.0, 0.25, 0.0])
def test_tasks_add_up_around_the_last_weights(decay: float) -> None:
    parameters = new_parameters()
    penalty = ElasticWeights(coefficient=2.0, decay=decay)
    fishers = []
    for index in range(3):
        moved(parameters, 10 + index)
        task = Regression(parameters, seed=index)
        fishers.append(task.fisher(128))
        learn(penalty, parameters, task, index)
    assert float(penalty(context(parameters)).detach()) == 0.0
    steps = moved(parameters, 1)
    first, second, third = (
        sum(float((fisher[n] * steps[n] ** 2).sum()) for n in fisher) for fisher in fishers
    )
    expected = decay**2 * first + decay * second + third
    assert float(penalty(context(parameters)).detach()) == pytest.approx(expected, rel=1e-4)


def test_nothing_is_held_before_a_task_is_learnt() -> None:
    parameters = new_parameters()
    penalty = ElasticWeights(coefficient=1.0)
    penalty.begin_task(parameters, 0)
    assert float(penalty(context(parameters)).detach()) == 0.0
    assert penalty.state_dict() == {}


def test_gradients_and_weights_are_left_alone() -> None:
    parameters = new_parameters()
    kept = parameters[W].grad = torch.ones(3, 4)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    learn(ElasticWeights(coefficient=1.0), parameters, Regression(parameters))
    assert parameters[W].grad is kept
    assert torch.equal(kept, torch.ones(3, 4))
    assert parameters[B].grad is None
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert all(p.requires_grad for p in parameters.values())


def test_state_goes_on_in_another_process() -> None:
    parameters = new_parameters()
    penalty = ElasticWeights(coefficient=1.0, decay=0.5)
    learn(penalty, parameters, Regression(parameters))
    file = io.BytesIO()
    torch.save(penalty.state_dict(), file)
    file.seek(0)
    resumed = ElasticWeights(coefficient=1.0, decay=0.5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    moved(parameters, 1)
    for index in (1, 2):
        terms = [float(p(context(parameters)).detach()) for p in (penalty, resumed)]
        assert terms[0] == terms[1] > 0
        for each in (penalty, resumed):
            learn(each, parameters, Regression(parameters, seed=index), index)
        moved(parameters, 2 + index)
    resumed.load_state_dict({})
    assert float(resumed(context(parameters))) == 0.0


def test_half_precision_weights_are_computed_in_float32() -> None:
    parameters = new_parameters(dtype=torch.bfloat16)
    penalty = ElasticWeights(coefficient=1.0)
    learn(penalty, parameters, Regression(parameters))
    tensors = [t for part in penalty.state_dict().values() for t in part.values()]
    assert {t.dtype for t in tensors} == {torch.float32}
    moved(parameters, 1)
    assert penalty(context(parameters)).dtype == torch.float32


def test_other_weights_than_those_of_past_tasks_are_refused() -> None:
    parameters = new_parameters()
    penalty = ElasticWeights(coefficient=1.0)
    learn(penalty, parameters, Regression(parameters))
    fewer = {W: parameters[W]}
    wider = {**parameters, B: nn.Parameter(torch.zeros(4))}
    for others in (fewer, wider):
        with pytest.raises(UserError, match="same trainable weights in every task"):
            penalty.begin_task(others, 1)
    penalty.begin_task(new_parameters(5), 1)


def test_a_task_without_rows_is_refused() -> None:
    parameters = new_parameters()
    with pytest.raises(UserError, match="got no row"):
        learn(ElasticWeights(coefficient=1.0), parameters, Regression(parameters, rows=0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("coefficient", -1.0),
        ("coefficient", float("nan")),
        ("num_fisher_rows", 0),
        ("num_fisher_rows", 2.5),
        ("decay", 1.1),
        ("decay", -0.1),
    ],
)
def test_values_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"penalty\.elastic_weights\.{name}"):
        ElasticWeights(**{"coefficient": 1.0, name: value})
