"""What the callback for foreign projects refuses, each in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
)
from torch import nn

from kif_lightning.callbacks import ContinualFusion
from kif_lightning.callbacks.learnt import require_whole_weights, the_optimizer
from kif_lightning.errors import UserError
from kif_lightning.kif import MeanRule
from kif_lightning.storage import save_state
from tests.helpers.foreign import ForeignModule, fit, rows

AVERAGING = [
    partial(StochasticWeightAveraging, swa_lrs=0.1, swa_epoch_start=1),
    partial(WeightAveraging, use_buffers=True),
]


def learnt_once(module: ForeignModule) -> ContinualFusion:
    callback = ContinualFusion()
    fit(module, rows(0), [callback], epochs=1)
    return callback


def test_values_out_of_range() -> None:
    with pytest.raises(UserError, match="beta must lie in"):
        ContinualFusion(beta=1.5)
    with pytest.raises(UserError, match="max_skipped_in_a_row must be a whole number"):
        ContinualFusion(max_skipped_in_a_row=0)


def test_nothing_that_learns() -> None:
    class Frozen(ForeignModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(UserError, match="Expected weights that learn"):
        fit(Frozen(), rows(0), [ContinualFusion()])


def test_two_adapters_that_learn() -> None:
    module = ForeignModule()
    module.model.add_adapter("second", module.model.peft_config["default"])
    for parameter in module.model.parameters():
        parameter.requires_grad_(True)
    with pytest.raises(UserError, match=r"several in model\.query\.lora_A\.weight"):
        fit(module, rows(0), [ContinualFusion()])


def test_several_optimizers() -> None:
    class Two(ForeignModule):
        def __init__(self) -> None:
            super().__init__(adapted=False)
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            halves = (self.model.query, self.model.head)
            return [torch.optim.SGD(half.parameters(), lr=0.1) for half in halves]

    with pytest.raises(UserError, match="Expected one optimizer, got 2"):
        fit(Two(), rows(0), [ContinualFusion()])


def test_an_optimizer_that_takes_several_gradients_a_step() -> None:
    class Searching(ForeignModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.LBFGS([p for p in self.parameters() if p.requires_grad])

    with pytest.raises(UserError, match="one gradient a step, got LBFGS"):
        fit(Searching(), rows(0), [ContinualFusion()])


@pytest.mark.parametrize("averaging", AVERAGING)
def test_averaged_weights_that_would_overwrite_the_fused(averaging: Callable[[], Callback]) -> None:
    with pytest.raises(UserError, match="put it before ContinualFusion"):
        fit(ForeignModule(), rows(0), [ContinualFusion(), averaging()])


@pytest.mark.parametrize("averaging", AVERAGING)
def test_averaged_weights_are_fused(averaging: Callable[[], Callback]) -> None:
    callback, module, alone = ContinualFusion(rule=MeanRule()), ForeignModule(), ForeignModule()
    fit(module, rows(0), [averaging(), callback], epochs=3)
    alone.load_state_dict(module.state_dict())
    old = alone.weights()
    fit(module, rows(1), [averaging(), callback], epochs=3)
    fit(alone, rows(1), [averaging()], epochs=3)
    for name, weight in module.weights().items():
        torch.testing.assert_close(weight, (old[name] + alone.weights()[name]) / 2)


def test_other_units_than_before() -> None:
    callback = learnt_once(ForeignModule())
    with pytest.raises(UserError, match="accumulated importance is of 3 units"):
        fit(ForeignModule(adapted=False), rows(1), [callback])


def test_weights_that_the_last_fusion_did_not_leave() -> None:
    module = ForeignModule()
    callback = learnt_once(module)
    with pytest.raises(UserError, match=r"2 of 2 tensors differ \(model\.query\.lora_A\.weight\)"):
        fit(ForeignModule(), rows(1), [callback])


def test_weights_of_a_checkpoint_within_the_fit(tmp_path: Path) -> None:
    """Even where every tensor is as long as after the fit."""

    class Slow(ForeignModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=3e-4)

    callback, module = ContinualFusion(), Slow(adapted=False)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(module, rows(0), [callback, keep], epochs=3)
    within = Slow(adapted=False)
    within.load_state_dict(torch.load(tmp_path / "epoch=0.ckpt")["state_dict"])
    for name, weight in module.weights().items():
        assert abs(within.weights()[name].norm() / weight.norm() - 1) < 1e-3
    with pytest.raises(UserError, match=r"of 4 tensors differ .*within a fit are not fused"):
        fit(within, rows(1), [callback])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_are_the_same(dtype: torch.dtype) -> None:
    """As another library may save them."""

    class Scaled(ForeignModule):
        def __init__(self) -> None:
            super().__init__(adapted=False)
            # Each between two numbers of bfloat16, and one too small for float16.
            self.scale = nn.Parameter(torch.tensor(1 + 2**-8 + 2**-12))
            self.unused = nn.Parameter(torch.tensor([1e-8, -1 - 2**-8 - 2**-12]))

    callback, module = ContinualFusion(), Scaled()
    fit(module, rows(0), [callback], epochs=1)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype).float()
    fit(module, rows(1), [callback], epochs=1)


def test_weights_that_are_not_finite() -> None:
    module = ForeignModule()
    module.model.base_model.model.query.lora_B.default.weight.data[1, 1] = float("nan")
    with pytest.raises(UserError, match=r"finite weights .* in model\.query\.lora_B\.weight"):
        fit(module, rows(0), [ContinualFusion()])


def test_weights_that_begin_to_learn_within_the_task() -> None:
    class Unfreeze(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                head = pl_module.model.base_model.model.head.requires_grad_(True)
                trainer.optimizers[0].add_param_group({"params": list(head.parameters())})

    with pytest.raises(UserError, match=r"got 4 tensors instead of 2, or others \(model\.head\."):
        fit(ForeignModule(), rows(0), [ContinualFusion(), Unfreeze()], epochs=3)


def test_no_step_at_all() -> None:
    class Nothing(ForeignModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    with pytest.raises(UserError, match="at least one optimizer step"):
        fit(Nothing(), rows(0), [ContinualFusion()])


def test_a_fit_without_a_step_is_told() -> None:
    callback = ContinualFusion()
    with pytest.warns(UserWarning, match="no task was learnt and nothing was fused"):
        fit(ForeignModule(), rows(0), [callback], epochs=0)
    assert callback.boundary is None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The fit ended without a step")
        fit(ForeignModule(), rows(0), [callback], epochs=1)
    with pytest.warns(UserWarning, match="no task was learnt"):
        fit(ForeignModule(), rows(0), [callback], epochs=0)


def test_a_checkpoint_that_was_not_tracked(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(ForeignModule(), rows(0), [keep])
    path = tmp_path / "epoch=0.ckpt"
    with pytest.raises(UserError, match="written with ContinualFusion"):
        fit(ForeignModule(), rows(0), [ContinualFusion()], ckpt_path=path)


def test_a_checkpoint_of_other_weights(tmp_path: Path) -> None:
    class NotStrict(ForeignModule):
        strict_loading = False

    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(ForeignModule(), rows(0), [ContinualFusion(), keep])
    other = NotStrict(adapted=False)
    other.configure_optimizers = (
        lambda: torch.optim.SGD(  # type: ignore[method-assign]
            list(other.parameters())[:2], lr=0.1, momentum=0.5
        )
    )
    with pytest.raises(UserError, match="as at the checkpoint, got 2 tensors instead of 2"):
        fit(other, rows(0), [ContinualFusion()], ckpt_path=tmp_path / "epoch=0.ckpt")


def test_saving_and_loading(tmp_path: Path) -> None:
    callback = ContinualFusion()
    with pytest.raises(UserError, match="call save after"):
        callback.save(tmp_path / "state")
    with pytest.raises(UserError, match="call it after"):
        callback.boundary_table()

    class SavesWithin(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            callback.save(tmp_path / "state")

    module = ForeignModule()
    fit(module, rows(0), [callback], epochs=1)
    with pytest.raises(UserError, match="call save after"):
        fit(module, rows(1), [callback, SavesWithin()], epochs=1)
    assert not (tmp_path / "state").exists()
    with pytest.raises(UserError, match="missing or damaged"):
        callback.load(tmp_path / "state")
    save_state(tmp_path / "other", {"fusion": {}})
    with pytest.raises(UserError, match=r"ContinualFusion\.save wrote, got another"):
        callback.load(tmp_path / "other")


def test_saving_takes_no_others_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ForeignModule()
    callback = learnt_once(module)
    other = tmp_path / "run"
    save_state(other / "state", {"fusion": {}})
    (other / "best.ckpt").write_text("weights")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for taken in (other, other / "best.ckpt", other / "state"):
        with pytest.raises(UserError, match="which holds other things, is a file"):
            callback.save(taken)
    monkeypatch.chdir(tmp_path / "empty")
    for working in (".", tmp_path / "empty"):
        with pytest.raises(UserError, match="the working folder: name another"):
            callback.save(working)
    assert sorted(tmp_path.rglob("*")) == before
    assert (other / "best.ckpt").read_text() == "weights"

    callback.save("inner/../../new")
    monkeypatch.chdir(tmp_path)
    callback.save("empty")
    fit(module, rows(1), [callback], epochs=1)
    callback.save("empty")
    again = ContinualFusion()
    again.load("empty")
    assert again.state_dict()["fusion"]["unit_ids"] == callback.state_dict()["fusion"]["unit_ids"]
    accumulated = callback.state_dict()["fusion"]["accumulated"]
    assert torch.equal(again.state_dict()["fusion"]["accumulated"], accumulated)


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy])
def test_weights_spread_over_devices(strategy: Any) -> None:
    trainer: Any = SimpleNamespace(strategy=object.__new__(strategy))
    with pytest.raises(UserError, match=f"got {strategy.__name__}, which spreads them"):
        require_whole_weights(trainer)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_processes_that_end_with_the_fit(start: Any) -> None:
    trainer: Any = SimpleNamespace(strategy=DDPStrategy(start_method=start))
    with pytest.raises(UserError, match="importance is lost: use strategy='ddp'"):
        require_whole_weights(trainer)
    trainer.strategy = DDPStrategy()
    require_whole_weights(trainer)


def test_a_fused_optimizer_with_a_loss_scale() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2))]
    plugin = SimpleNamespace(scaler=object())
    trainer: Any = SimpleNamespace(precision_plugin=plugin, precision="16-mixed")
    trainer.optimizers = [torch.optim.AdamW(weights, fused=True)]
    with pytest.raises(UserError, match=r"got AdamW\(fused=True\)"):
        the_optimizer(trainer)
    trainer.optimizers = [torch.optim.AdamW(weights)]
    assert the_optimizer(trainer) is trainer.optimizers[0]
