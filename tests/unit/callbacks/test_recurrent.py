"""Recurrent fusion in Lightning against the whole loop in NumPy, and on the tiny T5."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

from kif_lightning.callbacks import RecurrentFusion
from kif_lightning.errors import UserError
from kif_lightning.identification import Identification
from kif_lightning.kif import ImportanceTracker
from tests.helpers.fits import TinyFit, padded
from tests.helpers.tiny import toy_rows

Arrays = dict[str, np.ndarray]
Part = tuple[np.ndarray, np.ndarray]
INNER_LR, OUTER_LR = 0.1, 0.02
SETTINGS: dict[str, Any] = {
    "num_inner_steps": 3,
    "num_outer_steps": 2,
    "outer_lr": OUTER_LR,
    "top_percent": 40.0,
}


def draw_parts(seed: int, number: int, rows: int = 4) -> list[Part]:
    draw = np.random.default_rng(seed)
    true = draw.normal(size=(3, 5))
    inputs = [draw.normal(size=(rows, 5)) for _ in range(number)]
    return [(x, x @ true.T + draw.normal(size=(rows, 3))) for x in inputs]


class Regression(LightningModule):
    """A linear regression with the parts of the real module that the callback looks at."""

    def __init__(self, skip: Sequence[int] = (), dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(5, 3, dtype=dtype)
        self.trainable_parameters = dict(self.linear.named_parameters())
        self.identification = Identification(tracker=ImportanceTracker())
        self.skip = skip
        self.steps_done = 0
        self.autocast: list[bool] = []

    def step_loss(self, batch: Any) -> Tensor:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return mse_loss(self.linear(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step_loss(batch)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.steps_done in self.skip:
            optimizer.zero_grad(set_to_none=True)
        else:
            self.identification.before_step(self.trainable_parameters)
        self.steps_done += 1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.linear.parameters(), lr=INNER_LR)

    def weights(self) -> Arrays:
        return {n: p.detach().numpy().copy() for n, p in self.linear.named_parameters()}


class Data(LightningDataModule):
    def __init__(
        self, parts: Sequence[Part], memory: Sequence[Part], dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        self.parts, self.memory, self.dtype = parts, memory, dtype
        self.memory_rows = tuple(range(len(memory)))
        self.asked: list[tuple[Any, str]] = []

    def train_dataloader(self) -> Any:
        return DataLoader([self.tensors(part) for part in self.parts], batch_size=None)  # type: ignore[arg-type]

    def row_steps(self, rows: Any, purpose: str) -> Iterator[list[Any]]:
        self.asked.append((rows, purpose))
        while True:
            for part in self.memory:
                yield [self.tensors(part)]

    def tensors(self, part: Part) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(array, dtype=self.dtype) for array in part)


def fit(module: Regression, data: Data, *callbacks: Callback, **settings: Any) -> Arrays:
    module.identification.begin_task()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, **settings},
    )
    trainer.fit(module, datamodule=data)
    return module.weights()


@dataclass
class Importance:
    """Order 2, both averages with 0.85."""

    sensitivity: Arrays = field(default_factory=dict)
    uncertainty: Arrays = field(default_factory=dict)

    def see(self, weights: Arrays, gradients: Arrays) -> None:
        for name, weight in weights.items():
            product = weight * gradients[name]
            now = np.abs(product - product**2 / 2)
            mean = 0.85 * self.sensitivity.get(name, 0.0) + 0.15 * now
            far = 0.85 * self.uncertainty.get(name, 0.0) + 0.15 * np.abs(now - mean)
            self.sensitivity[name], self.uncertainty[name] = mean, far

    def top(self, percent: float) -> Arrays:
        scores = {
            name: self.sensitivity[name] * self.uncertainty[name] for name in self.sensitivity
        }
        every = np.sort(np.concatenate([score.ravel() for score in scores.values()]))
        kept = every[len(every) - int(len(every) * percent / 100) :]
        return {name: np.isin(score, kept) for name, score in scores.items()}


class Adam:
    """Without weight decay."""

    def __init__(self) -> None:
        self.first: Arrays = {}
        self.second: Arrays = {}
        self.number = 0

    def step(self, weights: Arrays, gradients: Arrays) -> Arrays:
        self.number += 1
        found = {}
        for name, g in gradients.items():
            self.first[name] = 0.9 * self.first.get(name, 0.0) + 0.1 * g
            self.second[name] = 0.999 * self.second.get(name, 0.0) + 0.001 * g**2
            mean = self.first[name] / (1 - 0.9**self.number)
            spread = np.sqrt(self.second[name] / (1 - 0.999**self.number))
            found[name] = weights[name] - OUTER_LR * mean / (spread + 1e-8)
        return found


def gradient(weights: Arrays, parts: Sequence[Part]) -> Arrays:
    """Of the mean over the parts of each one's mean squared error."""
    found = {name: np.zeros_like(weight) for name, weight in weights.items()}
    for x, y in parts:
        error = 2 * (x @ weights["weight"].T + weights["bias"] - y) / y.size / len(parts)
        found["weight"] += error.T @ x
        found["bias"] += error.sum(axis=0)
    return found


@dataclass
class Expected:
    """The loop as the paper tells it; ``steps`` are the inner optimizer steps' parts."""

    weights: Arrays
    restart_inner: bool = True
    restart_outer: bool = False
    cases: set[tuple[bool, bool]] = field(default_factory=set)
    outer_steps: int = 0

    def run(self, steps: Sequence[Sequence[Part]], memory: Sequence[Part]) -> Arrays:
        adam, inner, outer = Adam(), Importance(), Importance()
        for at in range(0, len(steps), 3):
            start = self.weights
            inner = Importance() if self.restart_inner else inner
            outer = Importance() if self.restart_outer else outer
            one = other = start
            for parts in steps[at : at + 3]:
                slope = gradient(one, parts)
                inner.see(one, slope)
                one = {name: one[name] - INNER_LR * slope[name] for name in one}
            for _ in range(2):
                slope = gradient(other, [memory[self.outer_steps % len(memory)]])
                outer.see(other, slope)
                other = adam.step(other, slope)
                self.outer_steps += 1
            self.weights = self.merged(start, one, other, inner.top(40.0), outer.top(40.0))
        return self.weights

    def merged(
        self, start: Arrays, one: Arrays, other: Arrays, top_in: Arrays, top_out: Arrays
    ) -> Arrays:
        shares = {
            (True, True): (0.4, 0.6),
            (False, False): (0.5, 0.5),
            (True, False): (1.0, 0.0),
            (False, True): (0.0, 1.0),
        }
        found = {name: weight.copy() for name, weight in start.items()}
        for name, weight in found.items():
            for i in np.ndindex(*weight.shape):
                case = bool(top_in[name][i]), bool(top_out[name][i])
                self.cases.add(case)
                m_in, m_out = shares[case]
                weight[i] += m_in * (one[name][i] - start[name][i])
                weight[i] += m_out * (other[name][i] - start[name][i])
        return found


def assert_near(found: Arrays, expected: Arrays) -> None:
    for name, weight in expected.items():
        np.testing.assert_allclose(found[name], weight, rtol=0, atol=1e-9)


MEMORY = draw_parts(9, 3)


def recurrent(**settings: Any) -> RecurrentFusion:
    return RecurrentFusion(tracker=ImportanceTracker(), **{**SETTINGS, **settings})


@pytest.mark.parametrize("number", [2, 6, 7])
@pytest.mark.parametrize("restarts", [(True, False), (False, False), (True, True)])
def test_rounds_as_told_by_the_plain_loop(number: int, restarts: tuple[bool, bool]) -> None:
    module, parts = Regression(), draw_parts(1, number)
    flags: Any = dict(zip(("restart_inner", "restart_outer"), restarts, strict=True))
    expected = Expected(module.weights(), **flags)
    wanted = expected.run([[part] for part in parts], MEMORY)
    callback, data = recurrent(**flags), Data(parts, MEMORY)
    assert_near(fit(module, data, callback), wanted)
    assert len(expected.cases) == 4 or number == 2
    assert callback.tracker.num_steps == (2 if restarts[1] else expected.outer_steps)
    assert [rows for rows, _ in data.asked] == [data.memory_rows]


def test_the_restarts_make_a_difference() -> None:
    parts = [[part] for part in draw_parts(1, 7)]
    ends = [
        Expected(Regression().weights(), *restarts).run(parts, MEMORY)["weight"]
        for restarts in [(True, False), (False, False), (True, True)]
    ]
    assert all(np.abs(ends[0] - end).max() > 1e-3 for end in ends[1:])


def test_accumulated_micro_batches_make_one_inner_step() -> None:
    module, parts = Regression(), draw_parts(1, 14, rows=2)
    steps = [parts[i : i + 2] for i in range(0, 14, 2)]
    wanted = Expected(module.weights()).run(steps, MEMORY)
    found = fit(module, Data(parts, MEMORY), recurrent(), accumulate_grad_batches=2)
    assert_near(found, wanted)


def test_rounds_go_on_over_epochs() -> None:
    module, parts = Regression(), draw_parts(1, 4)
    wanted = Expected(module.weights()).run([[part] for part in [*parts, *parts]], MEMORY)
    assert_near(fit(module, Data(parts, MEMORY), recurrent(), max_epochs=2), wanted)


@pytest.mark.parametrize("skip", [(0,), (2, 3), (6,), tuple(range(7))])
def test_skipped_inner_steps_do_not_count(skip: tuple[int, ...]) -> None:
    module, parts = Regression(skip=skip), draw_parts(1, 7)
    steps = [[part] for i, part in enumerate(parts) if i not in skip]
    wanted = Expected(module.weights()).run(steps, MEMORY)
    assert_near(fit(module, Data(parts, MEMORY), recurrent()), wanted)


def test_each_task_starts_its_outer_side_afresh() -> None:
    module, callback = Regression(), recurrent()
    for task in (1, 2):
        parts = draw_parts(task, 4)
        wanted = Expected(module.weights()).run([[part] for part in parts], MEMORY)
        assert_near(fit(module, Data(parts, MEMORY), callback), wanted)
    assert callback.state_dict() == {}


def test_a_task_without_memory_rows_is_trained_plainly() -> None:
    callback = recurrent()
    fit(Regression(), Data(draw_parts(1, 7), MEMORY), callback)  # nothing of it may be left
    plain, watched = Regression(), Regression()
    data = Data(draw_parts(2, 7), [])
    wanted, found = fit(plain, data), fit(watched, data, callback)
    for name, weight in wanted.items():
        np.testing.assert_array_equal(found[name], weight)
    for mine, other in (
        (watched.identification.tracker, plain.identification.tracker),
        (callback.tracker, callback.tracker),
    ):
        assert mine.num_steps == other.num_steps
    assert watched.identification.tracker.num_steps == 7
    assert data.asked == []


class Cut(Callback):
    """Keeps the state after the batch ``at``, as a checkpoint would."""

    def __init__(self, callback: RecurrentFusion, at: int) -> None:
        self.callback, self.at = callback, at
        self.kept: Any = None

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        if args[-1] == self.at:
            state = module.state_dict(), module.identification.state_dict()
            self.kept = copy.deepcopy((*state, self.callback.task_state()))


class Resumes(Callback):
    """Puts it back once the task has begun; stands after the callback."""

    def __init__(self, callback: RecurrentFusion, kept: Any) -> None:
        self.callback, self.kept = callback, kept

    def on_train_start(self, trainer: Any, module: Any) -> None:
        weights, importance, state = copy.deepcopy(self.kept)
        module.load_state_dict(weights)
        module.identification.load_state_dict(importance)
        self.callback.load_task_state(state)


def plain_keys(state: Any) -> bool:
    if isinstance(state, dict):
        return all(isinstance(key, str) and plain_keys(value) for key, value in state.items())
    return state is None or isinstance(state, int | float | str | Tensor)


@pytest.mark.parametrize("at", range(7))
@pytest.mark.parametrize("restarts", [(True, False), (False, False), (True, True)])
def test_a_task_cut_anywhere_goes_on_bit_by_bit(at: int, restarts: tuple[bool, bool]) -> None:
    flags: Any = dict(zip(("restart_inner", "restart_outer"), restarts, strict=True))
    bad = [(np.full_like(x, np.nan), y) if i == 1 else (x, y) for i, (x, y) in enumerate(MEMORY)]
    parts, whole = draw_parts(1, 8), recurrent(**flags)
    cut = Cut(whole, at)
    expected = Regression()
    fit(expected, Data(parts, bad), whole, cut)
    assert plain_keys(cut.kept[2])
    module, callback = Regression(), recurrent(**flags)
    with torch.no_grad():  # the task begins with other weights than the round
        module.linear.bias.add_(1)
    fit(module, Data(parts[at + 1 :], bad), callback, Resumes(callback, cut.kept))
    for found, wanted in (
        (module.state_dict(), expected.state_dict()),
        (module.identification.state_dict(), expected.identification.state_dict()),
        (callback.tracker.state_dict(), whole.tracker.state_dict()),
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert callback.outer_steps == whole.outer_steps == 4
    assert callback.skipped_outer_steps == whole.skipped_outer_steps == 2


def test_there_is_no_state_within_a_plain_task() -> None:
    callback = recurrent()
    cut = Cut(callback, 1)
    fit(Regression(), Data(draw_parts(1, 3), []), callback, cut)
    assert cut.kept[2] == {}
    again = recurrent()
    fit(Regression(), Data(draw_parts(1, 3), []), again, Resumes(again, cut.kept))
    assert again.outer_steps == 0


class Looks(Callback):
    """What other callbacks find after each batch."""

    def __init__(self) -> None:
        self.gradients: list[bool] = []
        self.inner_steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.gradients.append(any(p.grad is not None for p in module.parameters()))
        self.inner_steps.append(module.identification.tracker.num_steps)


def test_no_outer_gradient_is_left_and_importance_restarts() -> None:
    looks, module = Looks(), Regression()
    fit(module, Data(draw_parts(1, 7), MEMORY), recurrent(), looks)
    assert looks.gradients == [True, True, False, True, True, False, True]
    assert looks.inner_steps == [1, 2, 0, 1, 2, 0, 1]
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_outer_step_is_left_out_and_counted(
    broken: float, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [(np.full_like(x, broken), y) if i == 1 else (x, y) for i, (x, y) in enumerate(MEMORY)]
    module, callback = Regression(), recurrent(num_outer_steps=3)
    with caplog.at_level(logging.WARNING):
        found = fit(module, Data(draw_parts(1, 6), bad), callback)
    assert callback.skipped_outer_steps == 2
    assert callback.tracker.num_steps == 4
    assert all(np.isfinite(weight).all() for weight in found.values())
    assert "2 outer steps had a non-finite loss or gradient" in caplog.text
    fit(module, Data(draw_parts(1, 6), MEMORY), callback)
    assert callback.skipped_outer_steps == 0


def test_outer_steps_run_in_the_trainers_precision() -> None:
    module = Regression(dtype=torch.float32)
    data = Data(draw_parts(1, 4), MEMORY, torch.float32)
    fit(module, data, recurrent(), precision="bf16-mixed")
    assert module.autocast == [True] * (4 + 2 * 2)


def test_one_round_on_the_real_module_and_rows(tiny_t5: Path) -> None:
    # With no weight important the merge is the mean of the two sides' changes.
    plain, callback = TinyFit(tiny_t5), recurrent(num_inner_steps=99, top_percent=1e-6)
    inner = plain.fit()
    model = plain.before.train()
    weights = plain.adapter.trainable(model)
    start = {name: p.detach().clone() for name, p in weights.items()}
    options = {"identification": Identification(tracker=ImportanceTracker())}
    real = TinyFit(tiny_t5, micro=4, callbacks=[callback], module_options=options)
    rows = toy_rows("shape", "train", 5, ("good", "round bad"))
    real.data.memory_rows = tuple(rows)
    optimizer = torch.optim.AdamW(weights.values(), lr=OUTER_LR, weight_decay=0.0)
    for _ in range(2):  # five rows fit into a batch of eight
        optimizer.zero_grad()
        model(**padded([plain.backbone.encode(row) for row in rows])).loss.backward()
        optimizer.step()
    found = real.fit()
    for name, p in weights.items():
        mean = (inner[name] + p.detach()) / 2
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-5)
        assert (inner[name] - start[name]).abs().max() > 1e-3
        assert (p - start[name]).abs().max() > 1e-3
    assert real.module.counts.optimizer_steps == plain.module.counts.optimizer_steps


def tracked(**settings: Any) -> Any:
    return SimpleNamespace(identification=Identification(tracker=ImportanceTracker(), **settings))


def test_a_module_whose_importance_does_not_fit() -> None:
    callback = recurrent()
    callback.check(tracked())
    with pytest.raises(UserError, match="none is tracked: use method/importance=order2"):
        callback.check(SimpleNamespace(identification=None))
    with pytest.raises(UserError, match="got timing=after_step, skip_first_step=False: set"):
        callback.check(tracked(timing="after_step"))
    with pytest.raises(UserError, match="got timing=before_step, skip_first_step=True: set"):
        callback.check(tracked(skip_first_step=True))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_inner_steps", 0, "must be a whole number of at least 1, got 0."),
        ("num_outer_steps", 1.5, "must be a whole number of at least 1, got 1.5."),
        ("outer_lr", 0.0, "must lie in (0, inf], got 0.0."),
        ("top_percent", 101, "must lie in (0, 100], got 101."),
        ("outer_share_both", -0.1, "must lie in [0, 1], got -0.1."),
        ("outer_share_neither", 1.1, "must lie in [0, 1], got 1.1."),
    ],
)
def test_settings_out_of_range(name: str, value: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        recurrent(**{name: value})
    assert str(caught.value) == f"recurrent.{name} {told}"
