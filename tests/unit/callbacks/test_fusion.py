"""The fusion callback against a loop over single units, and its state."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import (
    AdaptiveRule,
    ImportanceTracker,
    MeanRule,
    StaticRule,
    lora_rank_units,
    matrix_units,
)
from kif_lightning.storage import load_state, save_state

RANK = 5
SHAPES = {
    "q.lora_A": (RANK, 4),
    "q.lora_B": (3, RANK),
    "v.lora_A": (RANK, 6),
    "v.lora_B": (2, RANK),
}
RULES = {"adaptive": AdaptiveRule(), "static": StaticRule(), "mean": MeanRule()}


class Stream:
    """Random weights that a random walk 'trains', with importance from random gradients."""

    def __init__(self, callback: KnowledgeFusion, seed: int = 0, shapes: Any = SHAPES) -> None:
        self.callback = callback
        self.draw = torch.Generator().manual_seed(seed)
        parameters = {name: nn.Parameter(self.random(shape)) for name, shape in shapes.items()}
        self.identification = Identification(tracker=ImportanceTracker())
        self.module: Any = SimpleNamespace(
            trainable_parameters=parameters, identification=self.identification
        )

    def random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.draw)

    def weights(self) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in self.module.trainable_parameters.items()}

    def train(self, steps: int = 3) -> dict[str, Tensor]:
        """A task without its boundary; the weights it ends with."""
        parameters = self.module.trainable_parameters
        self.identification.begin_task()
        self.callback.on_train_start(None, self.module)
        for _ in range(steps):
            for parameter in parameters.values():
                parameter.grad = self.random(tuple(parameter.shape))
            self.identification.before_step(parameters)
            with torch.no_grad():
                for parameter in parameters.values():
                    parameter.add_(self.random(tuple(parameter.shape)), alpha=0.3)
        return self.weights()

    def end(self) -> None:
        self.callback.on_train_end(None, self.module)

    def scores(self) -> list[float]:
        """Mean over the outer product of a unit's weight scores, rank by rank."""
        tracker = self.identification.tracker
        found = []
        for module in ("q", "v"):
            side = {
                s: (tracker.sensitivity[f"{module}.lora_{s}"].double().numpy())
                * (tracker.uncertainty[f"{module}.lora_{s}"].double().numpy())
                for s in "AB"
            }
            outers = [np.outer(side["B"][:, r], side["A"][r]) for r in range(RANK)]
            found += [float(outer.mean()) for outer in outers]
        return found


def norm(values: list[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def merged(past: list[float], score: list[float]) -> list[float]:
    return norm([0.7 * p + 0.3 * c for p, c in zip(norm(past), norm(score), strict=True)])


def shares(rule: str, past: list[float], score: list[float]) -> tuple[list[float], list[str]]:
    """Each unit's share of the old weights, and its class."""
    p, c = norm(past), norm(score)
    above_p, above_c = float(np.percentile(p, 80)), float(np.percentile(c, 80))
    names, lam = [], []
    for one, other in zip(p, c, strict=True):
        before, now = one > above_p, other > above_c
        if before and now:
            name, static = "task_shared", 0.7
        elif before:
            name, static = "previous_specific", 1.0
        elif now:
            name, static = "current_specific", 0.0
        else:
            name, static = "unimportant", 0.5
        exps = math.exp(one / 0.15), math.exp(other / 0.15)
        names.append(name)
        lam.append({"static": static, "adaptive": exps[0] / sum(exps), "mean": 0.5}[rule])
    return lam, names


def fused(old: dict[str, Tensor], new: dict[str, Tensor], lam: list[float]) -> dict[str, Tensor]:
    found = {name: tensor.clone() for name, tensor in new.items()}
    for m, module in enumerate(("q", "v")):
        for r in range(RANK):
            share = lam[m * RANK + r]
            a, b = f"{module}.lora_A", f"{module}.lora_B"
            found[a][r] = share * old[a][r] + (1 - share) * new[a][r]
            found[b][:, r] = share * old[b][:, r] + (1 - share) * new[b][:, r]
    return found


def callback(rule: str = "adaptive", units: Any = lora_rank_units) -> KnowledgeFusion:
    return KnowledgeFusion(rule=RULES[rule], units=units)


def assert_list(found: Tensor, expected: list[float]) -> None:
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rule", list(RULES))
def test_three_tasks_as_a_loop_over_units_says(rule: str) -> None:
    stream = Stream(callback(rule))
    trained = stream.train()
    past = norm(stream.scores())
    stream.end()
    torch.testing.assert_close(stream.weights(), trained, rtol=0, atol=0)
    boundary = stream.callback.boundary
    assert boundary is not None
    assert (boundary.previous, boundary.weight, boundary.classes) == (None, None, None)
    assert_list(boundary.accumulated, past)
    for _ in range(2):
        old = stream.weights()
        new = stream.train()
        score = stream.scores()
        lam, classes = shares(rule, past, score)
        stream.end()
        torch.testing.assert_close(stream.weights(), fused(old, new, lam), rtol=1e-5, atol=1e-6)
        boundary = stream.callback.boundary
        assert boundary is not None
        assert boundary.previous is not None
        assert boundary.weight is not None
        assert_list(boundary.score, score)
        assert_list(boundary.current, norm(score))
        assert_list(boundary.previous, norm(past))
        assert_list(boundary.weight, lam)
        assert list(boundary.classes or ()) == classes
        past = merged(past, score)
        assert_list(boundary.accumulated, past)
        expected_ids = [f"{m}/rank:{r}" for m in ("q", "v") for r in range(RANK)]
        assert list(boundary.unit_ids) == expected_ids
    assert len(set(classes)) > 1


@pytest.mark.parametrize("units", [lora_rank_units, matrix_units])
def test_a_snapshot_on_the_cpu_fuses_the_same(units: Any) -> None:
    streams = [
        Stream(KnowledgeFusion(rule=AdaptiveRule(), units=units, offload_snapshot=offloaded))
        for offloaded in (False, True)
    ]
    for stream in streams:
        stream.train()
        for _ in range(2):
            stream.end()
            stream.train()
    held = streams[1].callback.snapshot
    assert {tensor.device.type for tensor in held.values()} == {"cpu"}
    for name, parameter in streams[1].module.trainable_parameters.items():
        assert held[name].data_ptr() != parameter.data_ptr()  # training must not reach it
    assert streams[1].weights().keys() == streams[0].weights().keys()
    for name, weight in streams[0].weights().items():
        assert torch.equal(streams[1].weights()[name], weight)


def test_snapshot_is_kept_from_the_second_task_and_released() -> None:
    stream = Stream(callback())
    stream.train()
    assert stream.callback.snapshot == {}
    stream.end()
    start = stream.weights()
    stream.train()
    torch.testing.assert_close(stream.callback.snapshot, start, rtol=0, atol=0)
    stream.end()
    assert stream.callback.snapshot == {}


@pytest.mark.parametrize("rule", list(RULES))
def test_reloaded_state_goes_on_bitwise(rule: str, tmp_path: Any) -> None:
    stream, other = Stream(callback(rule)), Stream(callback(rule))
    for one in (stream, other):
        one.train()
        one.end()
    save_state(tmp_path / "state", stream.callback.state_dict())
    other.callback = callback(rule)
    other.callback.load_state_dict(load_state(tmp_path / "state"))
    for one in (stream, other):
        one.train()
        one.end()
    torch.testing.assert_close(other.weights(), stream.weights(), rtol=0, atol=0)
    one, two = stream.callback.state_dict(), other.callback.state_dict()
    assert one["unit_ids"] == two["unit_ids"]
    assert torch.equal(one["accumulated"], two["accumulated"])
    assert one["accumulated"].dtype == torch.float64


def test_state_before_the_first_task_is_empty() -> None:
    fresh = callback()
    fresh.load_state_dict(fresh.state_dict())
    stream = Stream(fresh)
    trained = stream.train()
    stream.end()
    torch.testing.assert_close(stream.weights(), trained, rtol=0, atol=0)


def test_other_units_are_refused() -> None:
    stream = Stream(callback())
    stream.train()
    stream.end()
    other = Stream(callback(units=matrix_units))
    other.callback.load_state_dict(stream.callback.state_dict())
    with pytest.raises(UserError, match="is of 10 units, the model has 4 now"):
        other.train()
    renamed = {name.replace("q.", "k."): shape for name, shape in SHAPES.items()}
    with pytest.raises(UserError, match="5 are gone, q/rank:0 among them; 5 are new, k"):
        Stream(stream.callback, shapes=renamed).train()


def test_missing_importance_is_refused() -> None:
    stream = Stream(callback())
    stream.module.identification = None
    with pytest.raises(UserError, match="method/importance=order2"):
        stream.callback.on_train_start(None, stream.module)


@pytest.mark.parametrize("wrong", [{"beta": 1.1}, {"beta": -0.1}, {"top_percent": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"fusion\.{next(iter(wrong))} must lie in"):
        KnowledgeFusion(rule=MeanRule(), units=lora_rank_units, **wrong)
