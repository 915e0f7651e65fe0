"""Which gradient rows MagnitudeMask lets through, against plain torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from kif_lightning.callbacks import MagnitudeMask, SelectBestStep
from kif_lightning.errors import UserError
from tests.helpers.fits import PenaltyBase, PlainLoop, TinyFit, padded
from tests.helpers.streams import toy_task

ANY: Any = None


def after_tasks(number: int, quantile: float = 0.7) -> MagnitudeMask:
    mask = MagnitudeMask(quantile=quantile)
    mask.load_state_dict({"tasks_learnt": number})
    return mask


def plain_sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@contextmanager
def inputs_of(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Name -> what the layer was given, (N, positions, I) a pass."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def listener(name: str) -> Any:
        return lambda _, args: found[name].append(args[0].detach())

    handles = [layer.register_forward_pre_hook(listener(name)) for name, layer in layers.items()]
    yield found
    for handle in handles:
        handle.remove()


def real_positions(name: str, rows: Any) -> Tensor:
    """(N, positions): the decoder's own layers and the output see the target, others the source."""
    batch = padded(rows)
    of_source = not name.startswith(("decoder", "shared")) or "EncDecAttention.k" in name
    if of_source or "EncDecAttention.v" in name:
        return batch["attention_mask"] > 0
    return batch["labels"] != -100


def expected_rows(fit: TinyFit, parts: Any, quantile: float) -> dict[str, np.ndarray]:
    """Weight's exported name -> kept rows (O,), for the model before training.

    By NumPy: |x W^T| of what each layer is given, summed over positions, its sorted values. For
    LoRA's B, W is that of the merged layer, and x what this is given (there is no dropout).
    """
    model = copy.deepcopy(fit.before).train()
    exported = {id(p): name for name, p in fit.adapter.trainable(model).items()}
    layers = {
        exported[id(layer.weight)]: layer
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and id(layer.weight) in exported
    }
    given: dict[str, nn.Module] = dict(layers)
    for name, module in model.named_modules():
        for exported_name in layers:
            module_name, _, side = exported_name.partition(".lora_B")
            if side and name == f"base_model.model.{module_name}":
                given[exported_name] = module
    with torch.no_grad(), inputs_of(given) as found:
        for rows in parts:
            model(**padded(rows))
    kept = {}
    for name, layer in layers.items():
        weight = layer.weight.detach().double().numpy()
        if given[name] is not layer:
            lora: Any = given[name]
            a = lora.lora_A["default"].weight.detach().double().numpy()
            weight = lora.base_layer.weight.detach().double().numpy() + weight @ a
        real = [real_positions(name, rows) for rows in parts]
        x = torch.cat([x[mask] for x, mask in zip(found[name], real, strict=True)]).double().numpy()
        magnitude = np.abs(x @ weight.T).sum(axis=0)
        place = quantile * (len(magnitude) - 1)
        low, high = np.sort(magnitude)[[int(np.floor(place)), int(np.ceil(place))]]
        kept[name] = magnitude >= low + (place % 1) * (high - low)
    return kept


def fit_recording_gradients(fit: TinyFit) -> list[dict[str, Tensor]]:
    """The gradients that the module's own hook sees, step by step."""
    seen: list[dict[str, Tensor]] = []
    own = fit.module.on_before_optimizer_step

    def record(optimizer: Any) -> None:
        parameters = fit.module.trainable_parameters
        seen.append({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})
        own(optimizer)

    fit.module.on_before_optimizer_step = record  # type: ignore[method-assign]
    fit.fit()
    return seen


@pytest.mark.parametrize(("full", "quantile"), [(False, 0.7), (True, 0.7), (True, 0.3)])
def test_one_step_moves_the_expected_rows_only(tiny_t5: Path, full: bool, quantile: float) -> None:
    """With accumulation; masked rows are bitwise those of before."""
    mask = after_tasks(1, quantile)
    fit = TinyFit(
        tiny_t5,
        micro=2,
        task=toy_task(train=7),
        full=full,
        optimizer=plain_sgd,
        callbacks=[mask],
    )
    kept = expected_rows(fit, fit.steps()[0], quantile)
    assert len(fit.steps()) == 1
    assert [len(rows) for rows in fit.steps()[0]] == [2, 2, 2, 1]
    assert len(kept) == (33 if full else 24)
    start = {n: p.detach().clone() for n, p in fit.adapter.trainable(fit.before).items()}
    plain = PlainLoop(fit).before[0][1]
    (seen,) = fit_recording_gradients(fit)
    assert seen.keys() == plain.keys()
    # The output layer is the embeddings.
    assert ("shared.weight" in kept) == full
    for name, gradient in plain.items():
        rows = torch.from_numpy(kept.get(name, np.ones(len(gradient), dtype=bool)))
        expected = gradient * rows.view(-1, *[1] * (gradient.dim() - 1))
        torch.testing.assert_close(seen[name], expected, rtol=1e-3, atol=1e-6, msg=name)
        after = fit.module.trainable_parameters[name].detach()
        assert torch.equal(after[~rows], start[name][~rows]), name
        if name in kept:
            assert 0 < int(rows.sum()) < len(rows)
            assert not torch.equal(after[rows], start[name][rows]), name
    assert mask.state_dict() == {"tasks_learnt": 2}


def test_each_step_forgets_the_magnitudes_of_the_last(tiny_t5: Path) -> None:
    """Steps of learning rate zero: each one's rows follow from its own batch alone."""

    def still(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.0)

    fit = TinyFit(
        tiny_t5, micro=4, optimizer=still, callbacks=[after_tasks(3)], full=True, epochs=2
    )
    steps = fit.steps()
    assert [len(parts) for parts in steps] == [2, 2, 1] * 2
    kept = [expected_rows(fit, parts, 0.7) for parts in steps]
    assert any((kept[0][name] != kept[1][name]).any() for name in kept[0])
    for rows, gradients in zip(kept, fit_recording_gradients(fit), strict=True):
        for name in rows.keys() & gradients.keys():
            passed = gradients[name].any(dim=1).numpy()
            assert not passed[~rows[name]].any()


def test_the_first_task_is_not_masked_the_second_is(tiny_t5: Path) -> None:
    mask = MagnitudeMask()
    assert mask.state_dict() == {"tasks_learnt": 0}
    options: Any = {"task": toy_task(train=8), "optimizer": plain_sgd}
    first = fit_recording_gradients(TinyFit(tiny_t5, callbacks=[mask], **options))[0]
    plain = PlainLoop(TinyFit(tiny_t5, **options)).before[0][1]
    for name, gradient in plain.items():
        torch.testing.assert_close(first[name], gradient, rtol=1e-3, atol=1e-6)
        assert first[name].any(dim=1).all()
    resumed = MagnitudeMask()
    resumed.load_state_dict(mask.state_dict())
    for each in (mask, resumed):
        second = fit_recording_gradients(TinyFit(tiny_t5, callbacks=[each], **options))[0]
        assert not any(gradient.any(dim=1).all() for gradient in second.values())
        assert each.state_dict() == {"tasks_learnt": 2}


def test_looks_at_held_out_rows_do_not_count(tiny_t5: Path) -> None:
    def gradients(*others: Callback) -> list[dict[str, Tensor]]:
        callbacks = [after_tasks(1), *others]
        return fit_recording_gradients(TinyFit(tiny_t5, micro=2, held_out=4, callbacks=callbacks))

    looking = gradients(SelectBestStep(num_held_out=4, every_steps=1))
    blind = gradients()
    assert len(looking) == len(blind) > 1
    for one, other in zip(looking, blind, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name])


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_hooks_are_gone_after_the_task_and_after_a_failure(tiny_t5: Path) -> None:
    fit = TinyFit(tiny_t5, callbacks=[after_tasks(1)])
    fit.fit()
    assert hooks(fit.module) == 0

    class Breaks(PenaltyBase):
        hooks = 0

        def __call__(self, context: Any) -> Tensor:
            self.hooks = hooks(context.model)
            raise RuntimeError("broken")

    breaks, mask = Breaks(), after_tasks(1)
    fit = TinyFit(tiny_t5, callbacks=[mask], module_options={"penalties": [breaks]})
    with pytest.raises(RuntimeError, match="broken"):
        fit.fit()
    assert breaks.hooks == 24
    assert hooks(fit.module) == 0
    assert mask.state_dict() == {"tasks_learnt": 1}


class Layers(nn.Module):
    """Two linear layers with biases; the second one frozen but for its bias."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(1, 4), nn.Linear(4, 2)
        with torch.no_grad():
            first.weight.copy_(torch.tensor([[1.0], [-4.0], [0.0], [3.0]]))
            first.bias.zero_()
        second.weight.requires_grad_(False)
        self.model: Any = nn.Sequential(first, second)
        self.trainable_parameters = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }
        self.identification = None

    def step(self, mask: MagnitudeMask, *inputs: Tensor) -> None:
        """One optimizer step's gradient, all ones, then the mask."""
        for x in inputs:
            self.model(x)
        for parameter in self.trainable_parameters.values():
            parameter.grad = torch.ones_like(parameter)
        mask.on_before_optimizer_step(ANY, self, ANY)  # type: ignore[arg-type]


def started(mask: MagnitudeMask, module: Layers) -> MagnitudeMask:
    mask.on_train_start(ANY, module)  # type: ignore[arg-type]
    return mask


@pytest.mark.parametrize(
    ("quantile", "rows"),
    [  # magnitudes 1, 4, 0, 3 a unit of input
        (0.0, [1, 1, 1, 1]),
        (0.3, [1, 1, 0, 1]),
        (1 / 3, [1, 1, 0, 1]),
        (0.5, [0, 1, 0, 1]),
        (0.7, [0, 1, 0, 0]),
        (1.0, [0, 1, 0, 0]),
    ],
)
def test_rows_and_biases_below_the_quantile_are_masked(quantile: float, rows: list[int]) -> None:
    module = Layers()
    mask = started(after_tasks(1, quantile), module)
    module.step(mask, torch.tensor([[1.0]]), torch.tensor([[[-2.0], [0.5]]]))
    first, second = module.model
    assert first.weight.grad.squeeze(1).tolist() == rows
    assert first.bias.grad.tolist() == rows
    # No hook on a layer whose weight is frozen.
    assert second.bias.grad.tolist() == [1, 1]
    assert second.weight.grad is None


def test_a_filler_does_not_count() -> None:
    found = []
    for filler in (False, True):
        module, positions = Layers(), torch.ones(1, 1)
        mask = started(after_tasks(1, 0.5), module)
        for weight, x in ((0.0, 99.0), (1.0, 1.0))[0 if filler else 1 :]:
            inputs = {"attention_mask": positions, "labels": positions}
            mask.on_train_batch_start(ANY, ANY, {"inputs": inputs, "weight": weight}, 0)
            with torch.no_grad():  # the filler drives the third output alone
                module.model[0].bias[2] = 1e3 * (1 - weight)
            module.model(torch.tensor([[x]]))
        module.step(mask)
        found.append(module.model[0].bias.grad.tolist())
    assert found[0] == found[1] == [0, 1, 0, 1]


def test_equal_magnitudes_are_all_kept() -> None:
    module = Layers()
    with torch.no_grad():
        module.model[0].weight.copy_(torch.tensor([[0.1], [-0.1], [0.1], [-0.1]]))
    mask = started(after_tasks(1), module)
    module.step(mask, torch.randn(5, 1, generator=torch.Generator().manual_seed(0)))
    assert module.model[0].bias.grad.tolist() == [1, 1, 1, 1]


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    module = Layers()
    mask = started(after_tasks(1), module)
    module.model(torch.ones(1, 1))
    module.model[0].bias.grad = torch.tensor([1.0, 1.0, float("inf"), 1.0])
    mask.on_before_optimizer_step(ANY, module, ANY)  # type: ignore[arg-type]
    assert not torch.isfinite(module.model[0].bias.grad).all()


def test_a_layer_that_was_not_used_is_left_alone() -> None:
    module = Layers()
    mask = started(after_tasks(1), module)
    module.step(mask)
    assert module.model[0].bias.grad.tolist() == [1, 1, 1, 1]
    module.model.eval()
    module.step(mask, torch.ones(1, 1))  # a teacher's pass
    assert module.model[0].bias.grad.tolist() == [1, 1, 1, 1]


def test_a_model_without_trainable_linear_layers_is_refused() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    others: Any = SimpleNamespace(
        model=model, trainable_parameters={"1.weight": model[1].weight}, identification=None
    )
    with pytest.raises(UserError, match="linear layers with trainable weights"):
        MagnitudeMask().check(others)
    MagnitudeMask().check(Layers())


@pytest.mark.parametrize("quantile", [-0.1, 1.1, float("nan"), "most", None])
def test_a_quantile_that_is_none(quantile: Any) -> None:
    with pytest.raises(UserError, match=r"magnitude_mask\.quantile"):
        MagnitudeMask(quantile=quantile)
