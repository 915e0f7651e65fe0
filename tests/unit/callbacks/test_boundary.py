"""What the boundary callbacks do to weights and importance, without a Trainer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kif_lightning.callbacks import KnowledgeFusion, SelectBestStep
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

A, B = "layer.q.lora_A.weight", "layer.q.lora_B.weight"
NOTHING: Any = None


def learner(seed: int = 0, rank: int = 3) -> Any:
    """A stand-in for the module: one LoRA pair and its importance."""
    draw = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        trainable_parameters={
            A: nn.Parameter(torch.randn(rank, 5, generator=draw)),
            B: nn.Parameter(torch.randn(4, rank, generator=draw)),
        },
        identification=Identification(tracker=ImportanceTracker()),
    )


def learn(module: Any, fusion: KnowledgeFusion, seed: int) -> dict[str, torch.Tensor]:
    """One task of two steps with random gradients; returns the weights just before fusion."""
    draw = torch.Generator().manual_seed(seed)
    module.identification.begin_task()
    fusion.on_train_start(NOTHING, module)
    for _ in range(2):
        for parameter in module.trainable_parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        module.identification.before_step(module.trainable_parameters)
        with torch.no_grad():
            for parameter in module.trainable_parameters.values():
                parameter -= 0.1 * parameter.grad
    before = {n: p.detach().clone() for n, p in module.trainable_parameters.items()}
    fusion.on_train_end(NOTHING, module)
    return before


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in module.trainable_parameters.items()}


@pytest.mark.parametrize("rule", [AdaptiveRule(), StaticRule(), MeanRule()])
def test_the_second_task_is_fused_rank_by_rank(rule: Any) -> None:
    module = learner()
    fusion = KnowledgeFusion(rule=rule, units=lora_rank_units)
    first = learn(module, fusion, seed=1)
    assert all(torch.equal(first[n], w) for n, w in weights(module).items()), "first: not fused"
    assert fusion.boundary is not None
    assert fusion.boundary.weight is None
    second = learn(module, fusion, seed=2)
    boundary = fusion.boundary
    lam = rule(boundary.previous, boundary.current).float()
    for r in range(3):
        assert boundary.unit_ids[r] == f"layer.q/rank:{r}"
        expected_row = lam[r] * first[A][r] + (1 - lam[r]) * second[A][r]
        expected_column = lam[r] * first[B][:, r] + (1 - lam[r]) * second[B][:, r]
        torch.testing.assert_close(module.trainable_parameters[A][r].detach(), expected_row)
        torch.testing.assert_close(module.trainable_parameters[B][:, r].detach(), expected_column)
    assert fusion._snapshot == {}, "the snapshot is released"


def test_the_state_brings_everything_back() -> None:
    module, fusion = learner(), KnowledgeFusion(rule=AdaptiveRule(), units=lora_rank_units)
    learn(module, fusion, seed=1)
    resumed, other = learner(), KnowledgeFusion(rule=AdaptiveRule(), units=lora_rank_units)
    with torch.no_grad():
        for name, parameter in resumed.trainable_parameters.items():
            parameter.copy_(module.trainable_parameters[name])
    other.load_state_dict(fusion.state_dict())
    learn(module, fusion, seed=2)
    learn(resumed, other, seed=2)
    assert all(torch.equal(w, weights(resumed)[n]) for n, w in weights(module).items())


def test_other_units_than_before_are_refused() -> None:
    fusion = KnowledgeFusion(rule=MeanRule(), units=lora_rank_units)
    learn(learner(), fusion, seed=1)
    with pytest.raises(UserError, match="accumulated importance is of 3 units"):
        learn(learner(rank=2), fusion, seed=2)


def test_fusion_tells_what_it_lacks() -> None:
    module = learner()
    with pytest.raises(UserError, match="needs a rule and units"):
        KnowledgeFusion(rule=None, units=matrix_units)
    module.identification = None
    with pytest.raises(UserError, match="none is tracked"):
        KnowledgeFusion(rule=MeanRule(), units=matrix_units).check(module)
    module = learner()
    module.trainable_parameters["layer.bias"] = nn.Parameter(torch.zeros(2))
    with pytest.raises(UserError, match=r"layer\.bias"):
        KnowledgeFusion(rule=MeanRule(), units=lora_rank_units).check(module)


@pytest.mark.parametrize("importance", ["selected", "last"])
def test_the_best_look_is_put_back(importance: Any) -> None:
    module, selection = learner(), SelectBestStep(every_steps=1, importance=importance)
    selection.on_train_start(NOTHING, module)
    kept = []
    for step, loss in enumerate([3.0, 1.0, 2.0]):
        for parameter in module.trainable_parameters.values():
            parameter.grad = torch.full_like(parameter, 1.0 + step)
        module.identification.before_step(module.trainable_parameters)
        with torch.no_grad():
            for parameter in module.trainable_parameters.values():
                parameter += 1.0
        kept.append((weights(module), module.identification.tracker.sensitivity[A].clone()))
        trainer: Any = SimpleNamespace(
            callback_metrics={"held_out_loss": torch.tensor(loss)}, global_step=step
        )
        selection.on_validation_end(trainer, module)
    selection.on_train_end(trainer, module)
    assert all(torch.equal(w, kept[1][0][n]) for n, w in weights(module).items())
    expected = kept[1 if importance == "selected" else 2][1]
    assert torch.equal(module.identification.tracker.sensitivity[A], expected)
