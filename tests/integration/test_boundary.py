"""Selection and fusion at the end of real Lightning fits."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import SGD

from kif_lightning.callbacks import KnowledgeFusion, SelectBestStep
from kif_lightning.identification import Identification
from kif_lightning.interfaces import Boundary
from kif_lightning.kif import AdaptiveRule, ImportanceTracker, lora_rank_units
from tests.helpers.fits import Averages, TinyFit, assert_near, padded


class Looks(Callback):
    """Held-out loss, weights and averages after each step; stands after the selection."""

    def __init__(self) -> None:
        self.seen: list[tuple[Averages, Any]] = []
        self.losses: list[float] = []
        self.at_end: Averages = {}
        self.last: Averages = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.last = weights(pl_module)
        if len(self.seen) == trainer.global_step:
            return
        averages = copy.deepcopy(pl_module.identification.state_dict())
        self.seen.append((weights(pl_module), averages))
        rows = padded(trainer.datamodule._training_split()[1])
        with torch.no_grad():  # all held-out rows at once
            self.losses.append(float(pl_module.model(**rows).loss))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.at_end = weights(pl_module)
        self.averages = copy.deepcopy(pl_module.identification.state_dict())


class TurnsBack(SGD):
    """Three steps down, then uphill."""

    def step(self, closure: Any = None) -> Any:
        self.taken = getattr(self, "taken", 0) + 1
        self.param_groups[0]["maximize"] = self.taken > 3
        return super().step(closure)


def weights(module: Any) -> Averages:
    return {name: p.detach().clone() for name, p in module.trainable_parameters.items()}


def new_fusion() -> KnowledgeFusion:
    return KnowledgeFusion(rule=AdaptiveRule(), units=lora_rank_units)


def new_fit(folder: Path, *callbacks: Callback, **options: Any) -> TinyFit:
    tracked = {"identification": Identification(tracker=ImportanceTracker())}
    return TinyFit(folder, callbacks=callbacks, module_options=tracked, **options)


def scores(averages: tuple[Averages, Averages]) -> np.ndarray:
    """A unit's score: the mean over the outer product of column r of B and row r of A."""
    found = []
    for name in averages[0]:
        if ".lora_A" not in name:
            continue
        a, b = (
            (averages[0][n].double() * averages[1][n].double()).numpy()
            for n in (name, name.replace(".lora_A", ".lora_B"))
        )
        found += [np.outer(b[:, r], a[r]).mean() for r in range(a.shape[0])]
    return np.array(found)


def norm(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def boundary_of(fusion: KnowledgeFusion) -> Boundary:
    assert fusion.boundary is not None
    return fusion.boundary


@pytest.mark.parametrize("micro", [8, 2])
def test_two_tasks_are_fused_as_a_plain_loop_says(tiny_t5: Path, micro: int) -> None:
    fusion = new_fusion()
    fit = new_fit(tiny_t5, fusion, micro=micro)
    first = copy.deepcopy(fit.fit())
    plain = fit.plain()
    assert_near(first, plain.weights, 1e-5)  # the first task is not fused
    past = norm(scores(plain.averages()))
    np.testing.assert_allclose(boundary_of(fusion).accumulated, past, atol=1e-4)

    second = fit.fit()
    fit.adapter.load_state_dict(fit.before, first)
    plain = fit.plain()
    current = norm(scores(plain.averages()))
    share = 1 / (1 + np.exp((current - past) / 0.15))
    expected = {name: tensor.detach().clone() for name, tensor in plain.weights.items()}
    unit = 0
    for a in [name for name in first if ".lora_A" in name]:
        b = a.replace(".lora_A", ".lora_B")
        for r in range(first[a].shape[0]):
            keep = float(share[unit])
            expected[a][r] = keep * first[a][r] + (1 - keep) * expected[a][r]
            expected[b][:, r] = keep * first[b][:, r] + (1 - keep) * expected[b][:, r]
            unit += 1
    assert_near(second, expected, 1e-4)
    assert max(float((second[n] - plain.weights[n]).abs().max()) for n in second) > 1e-2
    merged = norm(0.7 * past + 0.3 * current)
    np.testing.assert_allclose(boundary_of(fusion).accumulated, merged, atol=1e-4)


def test_reloaded_fusion_goes_on_bitwise(tiny_t5: Path) -> None:
    fusion = new_fusion()
    fit = new_fit(tiny_t5, fusion)
    first = copy.deepcopy(fit.fit())
    kept = copy.deepcopy(fusion.state_dict())
    second = fit.fit()
    reloaded = new_fusion()
    reloaded.load_state_dict(kept)
    again = new_fit(tiny_t5, reloaded)
    again.adapter.load_state_dict(again.module.model, first)
    torch.testing.assert_close(again.fit(), second, rtol=0, atol=0)
    assert torch.equal(boundary_of(reloaded).accumulated, boundary_of(fusion).accumulated)


@pytest.mark.parametrize("importance", ["selected", "last"])
def test_the_selected_step_is_what_remains(tiny_t5: Path, importance: Any) -> None:
    selection = SelectBestStep(num_held_out=5, every_steps=1, importance=importance)
    looks = Looks()
    fit = new_fit(
        tiny_t5,
        selection,
        looks,
        micro=4,
        epochs=3,
        held_out=5,
        optimizer=lambda parameters: TurnsBack(parameters, lr=1.0),
    )
    found = fit.fit()
    losses = looks.losses
    best = losses.index(min(losses))
    assert 0 < best < len(losses) - 1
    assert len(losses) == 6
    assert (selection.selected_step, selection.stopped_early) == (best + 1, False)
    # Weighted by tokens over micro-batches of several sizes.
    assert selection._best_loss == pytest.approx(min(losses), rel=1e-5)
    torch.testing.assert_close(found, looks.seen[best][0], rtol=0, atol=0)
    expected = looks.seen[best if importance == "selected" else -1][1]
    torch.testing.assert_close(looks.averages, expected, rtol=0, atol=0)
    assert expected["tracker"]["num_steps"] == (best + 1 if importance == "selected" else 6)


def test_selected_weights_are_the_ones_fused(tiny_t5: Path) -> None:
    selection = SelectBestStep(num_held_out=5, every_steps=1)
    fusion, looks = new_fusion(), Looks()
    fit = new_fit(
        tiny_t5,
        selection,
        looks,
        fusion,
        held_out=5,
        optimizer=lambda parameters: SGD(parameters, lr=0.3, maximize=True),  # ever worse
    )
    start = copy.deepcopy(fit.fit())
    fused = fit.fit()
    assert any(not torch.equal(looks.last[name], looks.at_end[name]) for name in fused)
    share = boundary_of(fusion).weight
    assert share is not None
    a = next(name for name in fused if ".lora_A" in name)
    keep = share[: start[a].shape[0], None].float()
    expected = keep * start[a] + (1 - keep) * looks.at_end[a]
    torch.testing.assert_close(fused[a], expected)


def test_task_shorter_than_a_look_is_warned_about(
    tiny_t5: Path, caplog: pytest.LogCaptureFixture
) -> None:
    selection = SelectBestStep(num_held_out=5, every_steps=40)
    fit = new_fit(tiny_t5, selection, held_out=5)
    with caplog.at_level(logging.WARNING):
        found = fit.fit()
    assert "the task has 2 optimizer steps, a look comes every 40" in caplog.text
    assert_near(found, fit.plain().weights, 1e-5)
