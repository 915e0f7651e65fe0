"""The one callback for foreign projects, against a plain loop and against itself uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from kif_lightning.callbacks import ContinualFusion
from kif_lightning.callbacks.learnt import stable_name
from kif_lightning.errors import DivergedError
from kif_lightning.kif import MeanRule, fitting_units, matrix_units
from tests.helpers.foreign import BATCH, ForeignModule, fit, rows

A = "model.base_model.model.query.lora_A.default.weight"
B = "model.base_model.model.query.lora_B.default.weight"
RANKS = [f"model.query/rank:{r}" for r in range(3)]


class PlainLoop:
    """Training, importance and rank scores written out; batches of two micro-batches, clipped."""

    def __init__(self, module: ForeignModule) -> None:
        self.module = module
        self.weights = {n: p for n, p in module.named_parameters() if p.requires_grad}

    def train(self, data: Any, epochs: int) -> list[float]:
        """Trains in place; the raw score of each rank."""
        optimizer = torch.optim.SGD(list(self.weights.values()), lr=0.3, momentum=0.5)
        mean = {n: np.zeros(p.shape) for n, p in self.weights.items()}
        spread = {n: np.zeros(p.shape) for n, p in self.weights.items()}
        x, y = data.tensors
        for start in list(range(0, len(x), 2 * BATCH)) * epochs:
            part = slice(start, start + 2 * BATCH)
            optimizer.zero_grad()
            ((self.module.model(x[part]) - y[part]) ** 2).mean().backward()
            for name, weight in self.weights.items():
                assert weight.grad is not None
                product = weight.detach().double().numpy() * weight.grad.double().numpy()
                importance = np.abs(product - product**2 / 2)
                mean[name] = 0.85 * mean[name] + 0.15 * importance
                spread[name] = 0.85 * spread[name] + 0.15 * np.abs(importance - mean[name])
            nn.utils.clip_grad_norm_(list(self.weights.values()), 0.2)
            optimizer.step()
        score = {name: mean[name] * spread[name] for name in mean}
        return [float(np.outer(score[B][:, r], score[A][r]).mean()) for r in range(3)]

    def fuse(self, old: dict[str, Tensor], lam: list[float]) -> None:
        with torch.no_grad():
            for r, share in enumerate(lam):
                self.weights[A][r] = share * old[A][r] + (1 - share) * self.weights[A][r]
                self.weights[B][:, r] = share * old[B][:, r] + (1 - share) * self.weights[B][:, r]


def norm(values: list[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_three_tasks_as_a_plain_loop_says() -> None:
    callback, module = ContinualFusion(), ForeignModule()
    plain = PlainLoop(ForeignModule())
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.2}
    fit(module, rows(0), [callback], **options)
    past = norm(plain.train(rows(0), 2))
    assert callback.boundary is not None
    assert callback.boundary.weight is None
    same(module.weights(), plain.module.weights(), 1e-5)
    for task in (1, 2):
        old = plain.module.weights()
        fit(module, rows(task), [callback], **options)
        now = norm(plain.train(rows(task), 2))
        trained = plain.module.weights()
        lam = [1 / (1 + np.exp((c - p) / 0.15)) for p, c in zip(past, now, strict=True)]
        plain.fuse(old, lam)
        assert (trained[A] - plain.weights[A]).abs().max() > 0.01
        past = norm([0.7 * p + 0.3 * c for p, c in zip(past, now, strict=True)])
        same(module.weights(), plain.module.weights(), 1e-4)
        table = callback.boundary_table()
        assert table["unit"] == RANKS
        np.testing.assert_allclose(table["weight_of_past"], lam, atol=1e-3)
        np.testing.assert_allclose(table["accumulated"], past, atol=1e-3)
        assert len(table["class"]) == len(table["previous"]) == 3


def test_the_settings_reach_the_fusion() -> None:
    callback = ContinualFusion(rule=MeanRule(), units=matrix_units, beta=1.0)
    module = ForeignModule()
    fit(module, rows(0), [callback])
    first = callback.boundary_table()["accumulated"]
    old, alone = module.weights(), ForeignModule()
    alone.load_state_dict(module.state_dict())
    fit(module, rows(1), [callback])
    fit(alone, rows(1))
    trained = alone.weights()
    same(module.weights(), {n: (old[n] + trained[n]) / 2 for n in old}, 1e-6)
    table = callback.boundary_table()
    assert table["unit"] == ["model.query.lora_A.weight", "model.query.lora_B.weight"]
    assert table["accumulated"] == first


@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({"adapter": "mine"}, RANKS),
        ({"adapter": "query"}, RANKS),
        (
            {"adapted": False},
            ["model.query.weight", "model.query.bias", "model.head.weight", "model.head.bias"],
        ),
    ],
)
def test_units_are_named_by_the_model_alone(options: dict[str, Any], units: list[str]) -> None:
    callback = ContinualFusion()
    fit(ForeignModule(**options), rows(0), [callback], epochs=1)
    assert callback.boundary_table()["unit"] == units


def test_lora_that_is_not_alone_gives_whole_tensors_and_says_so() -> None:
    callback = ContinualFusion()
    with pytest.warns(UserWarning, match=r"model\.query\.base_layer\.bias is too") as told:
        fit(ForeignModule(bias="lora_only"), rows(0), [callback], epochs=1)
    assert len([w for w in told if "LoRA is not all" in str(w.message)]) == 1
    assert "model.query.lora_A.weight" in callback.boundary_table()["unit"]


def test_wrappers_leave_no_trace_in_names() -> None:
    name = "net._orig_mod.base_model.model.enc.lora.q.lora_A.lora.weight"
    assert stable_name(name, ["lora"]) == "net.enc.lora.q.lora_A.weight"
    # A layer that is called as another adapter is stays, in whatever order they come.
    for adapters in (["default", "query"], ["query", "default"]):
        assert stable_name("m.query.lora_A.default.weight", adapters) == "m.query.lora_A.weight"
    assert stable_name("m.query.weight") == "m.query.weight"
    assert stable_name("my_base_model.model.q.lora_embedding_A.x", ["x"]) == (
        "my_base_model.model.q.lora_embedding_A"
    )


def test_half_a_pair_is_whole_tensors() -> None:
    weights = {"q.lora_B.weight": torch.ones(2, 3)}
    assert fitting_units(weights).ids == ("q.lora_B.weight",)


def test_weights_outside_the_optimizer_are_no_units() -> None:
    class HeadAlone(ForeignModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.model.head.parameters(), lr=0.1)

    callback = ContinualFusion()
    fit(HeadAlone(adapted=False), rows(0), [callback], epochs=1)
    assert callback.boundary_table()["unit"] == ["model.head.weight", "model.head.bias"]


def plain(value: Any) -> Any:
    """A state without tensors, to be compared bit for bit."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.tolist() if isinstance(value, Tensor) else value


def ended(callback: ContinualFusion, module: ForeignModule) -> Any:
    """All that is left of the tasks."""
    return plain({"callback": callback.state_dict(), "weights": module.weights()})


@pytest.mark.parametrize("last_epoch", [False, True])
@pytest.mark.parametrize("task", [0, 1])
def test_an_interrupted_fit_goes_on_bitwise(tmp_path: Path, task: int, last_epoch: bool) -> None:
    callback, module = ContinualFusion(), ForeignModule()
    for earlier in range(task):
        fit(module, rows(earlier), [callback])
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(module, rows(task), [callback, keep], epochs=3)
    again, other = ContinualFusion(), ForeignModule(seed=9)
    checkpoint = tmp_path / f"epoch={2 if last_epoch else 0}.ckpt"
    fit(other, rows(task), [again], epochs=3, ckpt_path=checkpoint)
    assert ended(again, other) == ended(callback, module)
    assert again.boundary_table() == callback.boundary_table()
    # And both learn the next task alike.
    for one, model in ((callback, module), (again, other)):
        fit(model, rows(2), [one])
    assert ended(again, other) == ended(callback, module)


def test_the_next_task_in_another_process(tmp_path: Path) -> None:
    callback, module = ContinualFusion(), ForeignModule()
    fit(module, rows(0), [callback])
    callback.save(tmp_path / "importance")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    again, other = ContinualFusion(), ForeignModule(seed=9)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    again.load(tmp_path / "importance")
    for one, model in ((callback, module), (again, other)):
        fit(model, rows(1), [one])
    assert ended(again, other) == ended(callback, module)
    assert again.boundary_table()["weight_of_past"] != [0.5] * 3


def test_a_checkpoint_after_the_fit_begins_the_next_task(tmp_path: Path) -> None:
    """Lightning goes on counting epochs: the fourth to sixth are the next task."""
    callback, module = ContinualFusion(), ForeignModule()
    fit(module, rows(0), [callback], epochs=3).save_checkpoint(tmp_path / "after.ckpt")
    again, other = ContinualFusion(), ForeignModule(seed=9)
    fit(other, rows(1), [again], epochs=6, ckpt_path=tmp_path / "after.ckpt")
    weights = again.boundary_table()["weight_of_past"]
    assert len(set(weights)) == 3


def test_testing_a_checkpoint_leaves_the_memory_alone(tmp_path: Path) -> None:
    callback, module = ContinualFusion(), ForeignModule()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = fit(module, rows(0), [callback, keep])
    before = ended(callback, module)["callback"]
    trainer.test(
        module,
        torch.utils.data.DataLoader(rows(0), BATCH),
        ckpt_path=tmp_path / "epoch=0.ckpt",
        verbose=False,
    )
    assert plain(callback.state_dict()) == before


def broken(data: Any, batches: list[int]) -> Any:
    """The rows with NaN in some batches."""
    for number in batches:
        data.tensors[0][number * BATCH] = float("nan")
    return data


def test_a_step_that_is_not_finite_is_skipped_whole() -> None:
    callback, module = ContinualFusion(), ForeignModule()
    with pytest.warns(UserWarning, match="1 optimizer steps of the task were skipped"):
        fit(module, broken(rows(0), [1]), [callback], epochs=1)
    whole, other = ContinualFusion(), ForeignModule()
    data = rows(0)
    kept = [i for i in range(len(data)) if i // BATCH != 1]
    fit(other, torch.utils.data.TensorDataset(*data[kept]), [whole], epochs=1)
    assert callback.skipped_steps == 1
    assert ended(callback, module) == ended(whole, other)


def test_steps_that_are_never_finite_stop_the_training() -> None:
    callback, module = ContinualFusion(max_skipped_in_a_row=3), ForeignModule()
    before = module.weights()
    with pytest.raises(DivergedError, match="in 3 optimizer steps in a row"):
        fit(module, broken(rows(0), [1, 2, 3]), [callback], epochs=1)
    assert not any(torch.isnan(weight).any() for weight in module.weights().values())
    assert (module.weights()[A] - before[A]).abs().max() > 0


def test_a_resumed_fit_goes_on_counting_skipped_steps(tmp_path: Path) -> None:
    data = broken(rows(0), [0, 3])
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    with pytest.warns(UserWarning, match="4 optimizer steps of the task were skipped"):
        fit(ForeignModule(), data, [ContinualFusion(), keep])
    checkpoint = tmp_path / "epoch=0.ckpt"
    callback = ContinualFusion()
    with pytest.warns(UserWarning, match="4 optimizer steps of the task were skipped"):
        fit(ForeignModule(), data, [callback], ckpt_path=checkpoint)
    with pytest.raises(DivergedError, match="in 2 optimizer steps in a row"):
        fit(
            ForeignModule(),
            data,
            [ContinualFusion(max_skipped_in_a_row=2)],
            ckpt_path=checkpoint,
        )


@pytest.mark.parametrize("scale", [2.0**8, 2.0**20])
def test_gradients_are_read_unscaled(scale: float) -> None:
    """With a loss scaler on the CPU; a step that the scaler skips counts for nothing."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    callback = ContinualFusion()
    data = rows(0, 10 * BATCH)
    fit(ForeignModule(), data, [callback], epochs=1, plugins=[plugin])
    overflows = round(np.log2(scale / scaler.get_scale()))
    assert (overflows > 0) == (scale > 2.0**16)
    whole = ContinualFusion()
    kept = torch.utils.data.TensorDataset(*data[overflows * BATCH :])
    fit(ForeignModule(), kept, [whole], epochs=1)
    scores = callback.boundary_table()["score"], whole.boundary_table()["score"]
    np.testing.assert_allclose(*scores, rtol=0.02)
    assert callback.skipped_steps == 0
