"""The key pull: its value, what it moves, in a whole fit too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kif_lightning.adapters import PromptPool
from kif_lightning.errors import UserError
from kif_lightning.interfaces import LearntTask
from kif_lightning.penalties import KeyPull
from tests.helpers.fits import TinyFit


def context(model: Any) -> Any:
    """The middle micro-batch of three: 2 of the step's 5 rows."""
    return SimpleNamespace(model=model, labels=torch.zeros(2, 3), step_rows=5, step_micro_batches=3)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 2.0])
def test_value_is_the_models_distance_times_the_coefficient(coefficient: float) -> None:
    distance = torch.tensor(1.25, requires_grad=True)
    term = KeyPull(coefficient=coefficient)(context(SimpleNamespace(key_distance=distance)))
    # The module counts each of the three micro-batches a third.
    assert float(term.detach()) / 3 == pytest.approx(coefficient * 1.25 * 2 / 5)
    term.backward()
    assert float(distance.grad) / 3 == pytest.approx(coefficient * 2 / 5)


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(UserError, match=r"penalty\.key_pull\.coefficient"):
        KeyPull(coefficient=-0.1)


def test_a_model_without_keys_is_refused() -> None:
    weight = nn.Parameter(torch.zeros(2))
    penalty: Any = KeyPull()
    penalty.check(SimpleNamespace(trainable_parameters={"prompts": weight, "keys": weight}))
    with pytest.raises(UserError, match="keys of a prompt pool, but the model has none"):
        penalty.check(SimpleNamespace(trainable_parameters={"prompt": weight}))


def test_it_has_no_memory() -> None:
    penalty = KeyPull()
    learnt: LearntTask = SimpleNamespace()  # type: ignore[assignment]
    penalty.begin_task({}, 0)
    penalty.end_task({}, 0, learnt)
    assert penalty.state_dict() == {}
    penalty.load_state_dict({})


class PooledFit(TinyFit):
    """A tiny fit whose model is a T5 with a pool of prompts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        torch.manual_seed(5)
        self.adapter = PromptPool(pool_size=6, num_tokens=2, num_chosen=2)
        self.module.model = self.adapter.attach(self.backbone.load_model(), self.backbone)


def fitted_keys(folder: Path, coefficient: float) -> tuple[torch.Tensor, torch.Tensor]:
    fit = PooledFit(
        folder, micro=4, module_options={"penalties": [KeyPull(coefficient=coefficient)]}
    )
    before = fit.adapter.trainable(fit.module.model)["keys"].detach().clone()
    return before, fit.fit()["keys"]


def test_a_fit_moves_the_chosen_keys_and_no_others(tiny_t5: Path) -> None:
    before, still = fitted_keys(tiny_t5, 0.0)
    assert torch.equal(before, still)
    before, after = fitted_keys(tiny_t5, 0.5)
    moved = (before != after).any(dim=1)
    assert 2 <= int(moved.sum()) < 6
