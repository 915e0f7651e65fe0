"""Replay at the boundary: what is fixed stays so bit for bit, and what is fused and when."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from kif_lightning.callbacks import FusionWithReplay, KnowledgeFusion
from kif_lightning.callbacks.replay import FrozenUnits, frozen_masks
from kif_lightning.errors import UserError
from kif_lightning.kif import AdaptiveRule, SkillUnits, lora_rank_units, matrix_units
from kif_lightning.storage import load_state, save_state
from tests.helpers.fits import BreaksAt, TinyFit
from tests.unit.callbacks.test_fusion import RANK, Stream, fused, merged, norm, shares

Weights = dict[str, Tensor]
ROWS: Any = ("first row", "second row")


class Watched(Callback):
    """The gradients as the backward pass left them, and the weights of each forward pass."""

    def __init__(self) -> None:
        self.gradients: list[Weights] = []
        self.forward: list[Weights] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        self.forward.append(weights_of(pl_module))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.trainable_parameters.items()
        self.gradients.append({name: p.grad.clone() for name, p in named})


def weights_of(module: Any) -> Weights:
    return {name: p.detach().clone() for name, p in module.trainable_parameters.items()}


def recording(kind: Any, **options: Any) -> tuple[Callable[..., Any], list[list[Tensor]]]:
    """An optimizer that tells the gradients it stepped with."""
    steps: list[list[Tensor]] = []

    class Recording(kind):
        def step(self, closure: Any = None) -> Any:
            result = super().step(closure)
            parameters = self.param_groups[0]["params"]
            steps.append([p.grad.clone() for p in parameters if p.grad is not None])
            return result

    return lambda parameters: Recording(parameters, **options), steps


def by_hand(kind: str, parameters: Weights) -> tuple[SkillUnits, Tensor, Weights]:
    """Units, which of them are frozen, and where that is.

    The first module whole, the second not at all, of each other one its rank 1; or every third
    tensor.
    """
    places = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in parameters.items()}
    frozen = {}
    if kind == "matrix":
        units = matrix_units(parameters)
        for number, name in enumerate(parameters):
            frozen[name] = number % 3 == 1
            places[name][:] = frozen[name]
    else:
        units = lora_rank_units(parameters)
        modules = [name.removesuffix(".lora_A.weight") for name in parameters if ".lora_A" in name]
        for number, module in enumerate(modules):
            for r in range(3):
                frozen[f"{module}/rank:{r}"] = number == 0 or (number > 1 and r == 1)
                places[f"{module}.lora_A.weight"][r, :] = frozen[f"{module}/rank:{r}"]
                places[f"{module}.lora_B.weight"][:, r] = frozen[f"{module}/rank:{r}"]
    return units, torch.tensor([frozen[unit] for unit in units.ids]), places


def frozen_fit(folder: Path, kind: str, **options: Any) -> tuple[TinyFit, Watched, Weights]:
    """A fit with some units frozen, not yet run, and where they are."""
    fit = TinyFit(folder, **options)
    parameters = fit.adapter.trainable(fit.module.model)
    units, frozen, places = by_hand(kind, parameters)
    watched = Watched()
    # Watching first, so before the gradients are zeroed.
    fit.callbacks = [watched, FrozenUnits(units, frozen, parameters)]
    return fit, watched, places


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["lora_rank", "matrix"])
def test_frozen_units_stay_bit_for_bit(tiny_t5: Path, kind: str, precision: str) -> None:
    clip = 0.05
    optimizer, steps = recording(AdamW, lr=0.05, weight_decay=0.1)
    fit, watched, places = frozen_fit(
        tiny_t5, kind, micro=4, epochs=3, clip=clip, precision=precision, optimizer=optimizer
    )
    before = weights_of(SimpleNamespace(trainable_parameters=fit.adapter.trainable(fit.before)))
    after = fit.fit()
    assert len(steps) == fit.module.counts.optimizer_steps == 9
    assert len(watched.forward) == 15
    for seen in (*watched.forward, after):
        for name, place in places.items():
            assert torch.equal(seen[name][place], before[name][place]), name
    for name, place in places.items():
        assert (after[name][~place] != before[name][~place]).all(), name
    for number, gradients in enumerate(steps):
        for gradient, (name, place) in zip(gradients, places.items(), strict=True):
            assert not gradient[place].any()
            raw = watched.gradients[number][name]
            assert (raw[place] != 0).float().mean() > 0.9 or not place.any(), "zero anyway"
    state = fit.trainer.optimizers[0].state
    for name, p in fit.module.trainable_parameters.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert not state[p][key][places[name]].any()
            assert state[p][key][~places[name]].all()


def test_clipping_does_not_count_what_is_frozen(tiny_t5: Path) -> None:
    clip = 1e-3
    optimizer, steps = recording(SGD, lr=0.1)
    fit, watched, places = frozen_fit(tiny_t5, "lora_rank", clip=clip, optimizer=optimizer)
    fit.fit()
    for number, gradients in enumerate(steps):
        norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
        assert float(norm) == pytest.approx(clip, rel=1e-3)
        raw = watched.gradients[number]
        learning = [raw[name][~place] for name, place in places.items()]
        free = torch.cat(learning).norm()
        everything = torch.cat([tensor.flatten() for tensor in raw.values()]).norm()
        assert everything > 1.1 * free > clip
        for gradient, (name, place) in zip(gradients, places.items(), strict=True):
            expected = (raw[name] * clip / free).masked_fill(place, 0.0)
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-9)


def test_decay_that_runs_through_the_momentum_is_undone_too(tiny_t5: Path) -> None:
    optimizer, _ = recording(SGD, lr=0.1, momentum=0.9, weight_decay=0.5, nesterov=True)
    fit, _, places = frozen_fit(tiny_t5, "lora_rank", epochs=2, optimizer=optimizer)
    before = fit.adapter.trainable(fit.before)
    after = fit.fit()
    for name, place in places.items():
        assert torch.equal(after[name][place], before[name][place])
        assert (after[name][~place] != before[name][~place]).all()


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_skipped_step_leaves_them_too(tiny_t5: Path, where: str) -> None:
    optimizer, _ = recording(AdamW, lr=0.05, weight_decay=0.1)
    options = {"penalties": [BreaksAt([1], where)]}
    fit, _, places = frozen_fit(tiny_t5, "lora_rank", optimizer=optimizer, module_options=options)
    before = fit.adapter.trainable(fit.before)
    after = fit.fit()
    assert fit.module.counts.skipped_steps + fit.module.counts.optimizer_steps == 3
    for name, place in places.items():
        assert torch.equal(after[name][place], before[name][place])
        assert torch.isfinite(after[name]).all()


def test_masks_of_rank_units_written_out() -> None:
    tensors = {
        "q.lora_A.weight": torch.zeros(2, 3),
        "q.lora_B.weight": torch.zeros(4, 2),
        "k.lora_A.weight": torch.zeros(2, 1),
        "k.lora_B.weight": torch.zeros(1, 2),
        "conv.lora_A.weight": torch.zeros(2, 1, 2, 2),
        "conv.lora_B.weight": torch.zeros(2, 2, 1, 1),
    }
    frozen = torch.tensor([False, True, False, False, True, False])
    found = frozen_masks(lora_rank_units(tensors), frozen, tensors)
    no, yes = False, True
    expected = {
        "q.lora_A.weight": [[no, no, no], [yes, yes, yes]],
        "q.lora_B.weight": [[no, yes]] * 4,
        "conv.lora_A.weight": [[[[yes, yes], [yes, yes]]], [[[no, no], [no, no]]]],
        "conv.lora_B.weight": [[[[yes]], [[no]]]] * 2,
    }
    assert {name: mask.tolist() for name, mask in found.items()} == expected


def test_masks_of_whole_tensors_written_out() -> None:
    tensors = {"a": torch.zeros(2, 2), "b": torch.zeros(3), "c": torch.zeros(())}
    units = matrix_units(tensors)
    found = frozen_masks(units, torch.tensor([False, True, True]), tensors)
    assert {name: mask.tolist() for name, mask in found.items()} == {"b": [True] * 3, "c": True}
    assert frozen_masks(units, torch.zeros(3, dtype=torch.bool), tensors) == {}


class Replaying:
    """Stands for the runner: three steps of a decaying random walk, as the callbacks let it."""

    def __init__(self, stream: Stream) -> None:
        self.module = stream.module
        self.calls: list[tuple[Any, int]] = []
        self.seen: Weights = {}
        self.left: Weights = {}
        self.gradients: Weights = {}

    def __call__(self, rows: Any, *, epochs: int, callbacks: Sequence[Any]) -> None:
        self.calls.append((rows, epochs))
        self.seen = weights_of(self.module)
        draw = torch.Generator().manual_seed(8)
        parameters = self.module.trainable_parameters
        for _ in range(3):
            for p in parameters.values():
                p.grad = torch.randn(p.shape, generator=draw)
            for callback in callbacks:
                callback.on_before_optimizer_step(None, self.module, None)
            self.gradients = {name: p.grad.clone() for name, p in parameters.items()}
            with torch.no_grad():
                for p in parameters.values():
                    p.mul_(0.9).sub_(p.grad, alpha=0.1)
            for callback in callbacks:
                callback.on_train_batch_end(None, self.module, None, None, 0)
        self.left = weights_of(self.module)


def replay(position: Any = "after_fusion", epochs: int = 1) -> Any:
    fusion = KnowledgeFusion(rule=AdaptiveRule(), units=lora_rank_units)
    return FusionWithReplay(fusion=fusion, position=position, epochs=epochs)


def learn(stream: Stream, rows: Any = ROWS) -> tuple[Weights, Replaying]:
    """One task with its boundary: the weights between, and what the replay saw."""
    trained = stream.train()
    fit_rows = Replaying(stream)
    callback: Any = stream.callback
    callback.at_boundary(stream.module, rows, fit_rows)
    return trained, fit_rows


def owned(classes: Sequence[str], kind: str) -> Weights:
    """Where the units of that class are, by hand."""
    found = {}
    for m, module in enumerate(("q", "v")):
        which = torch.tensor([classes[m * RANK + r] == kind for r in range(RANK)])
        sizes = {"q": (4, 3), "v": (6, 2)}[module]
        found[f"{module}.lora_A"] = which[:, None].repeat(1, sizes[0])
        found[f"{module}.lora_B"] = which[None, :].repeat(sizes[1], 1)
    return found


@pytest.mark.parametrize("position", ["after_fusion", "before_fusion"])
def test_order_of_fusion_and_replay(position: str) -> None:
    stream = Stream(replay(position, epochs=4), seed=7)
    trained, fit_rows = learn(stream)
    assert fit_rows.calls == [], "nothing is past yet"
    torch.testing.assert_close(stream.weights(), trained, rtol=0, atol=0)
    past = norm(stream.scores())
    for _ in range(2):
        old = stream.weights()
        trained, fit_rows = learn(stream)
        score = stream.scores()
        lam, classes = shares("adaptive", past, score)
        assert 0 < classes.count("current_specific") < len(classes)
        assert fit_rows.calls == [(ROWS, 4)]
        start = trained if position == "before_fusion" else fused(old, trained, lam)
        torch.testing.assert_close(fit_rows.seen, start, rtol=1e-5, atol=1e-6)
        # Only the current-specific units are fixed, and they wholly.
        for name, place in owned(classes, "current_specific").items():
            assert torch.equal(fit_rows.left[name][place], fit_rows.seen[name][place])
            assert not fit_rows.gradients[name][place].any()
            assert (fit_rows.left[name][~place] != fit_rows.seen[name][~place]).all()
            assert fit_rows.gradients[name][~place].all()
        left = fit_rows.left
        end = fused(old, left, lam) if position == "before_fusion" else left
        torch.testing.assert_close(stream.weights(), end, rtol=1e-5, atol=1e-6)
        past = merged(past, score)


@pytest.mark.parametrize("position", ["after_fusion", "before_fusion"])
def test_without_memory_it_is_plain_fusion(position: str) -> None:
    stream = Stream(replay(position))
    plain = Stream(KnowledgeFusion(rule=AdaptiveRule(), units=lora_rank_units))
    for _ in range(3):
        _, fit_rows = learn(stream, rows=())
        assert fit_rows.calls == []
        plain.train()
        plain.end()
        torch.testing.assert_close(stream.weights(), plain.weights(), rtol=0, atol=0)


@pytest.mark.parametrize("position", ["after_fusion", "before_fusion"])
def test_replay_leaves_importance_and_report_as_they_were(position: str) -> None:
    with_memory, without = Stream(replay(position)), Stream(replay(position))
    learn(with_memory)
    learn(without)
    start = copy.deepcopy(with_memory.identification.state_dict())
    learn(with_memory)
    learn(without, rows=())
    assert any(
        not torch.equal(with_memory.weights()[name], tensor)
        for name, tensor in without.weights().items()
    )
    one, other = with_memory.callback.boundary, without.callback.boundary
    assert one is not None
    assert other is not None
    for key in ("score", "current", "accumulated", "previous", "weight"):
        assert torch.equal(getattr(one, key), getattr(other, key)), key
    assert (one.classes, one.unit_ids) == (other.classes, other.unit_ids)
    averages = with_memory.identification.state_dict()
    expected = without.identification.state_dict()
    torch.testing.assert_close(averages, expected, rtol=0, atol=0)
    assert averages["tracker"].keys() == start["tracker"].keys()
    states = [stream.callback.state_dict() for stream in (with_memory, without)]
    assert torch.equal(states[0]["accumulated"], states[1]["accumulated"])


@pytest.mark.parametrize("position", ["after_fusion", "before_fusion"])
def test_reloaded_state_goes_on_bitwise(position: str, tmp_path: Path) -> None:
    stream, other = Stream(replay(position)), Stream(replay(position))
    for one in (stream, other):
        learn(one)
        learn(one)
    save_state(tmp_path / "state", stream.callback.state_dict())
    other.callback = replay(position)
    other.callback.load_state_dict(load_state(tmp_path / "state"))
    for one in (stream, other):
        _, fit_rows = learn(one)
        assert fit_rows.calls
    torch.testing.assert_close(other.weights(), stream.weights(), rtol=0, atol=0)
    state, expected = other.callback.state_dict(), stream.callback.state_dict()
    assert state["unit_ids"] == expected["unit_ids"]
    assert torch.equal(state["accumulated"], expected["accumulated"])
    fresh = replay(position)
    fresh.load_state_dict(replay(position).state_dict())
    assert fresh.state_dict() == {}


def test_nothing_happens_at_the_end_of_a_fit() -> None:
    """The runner calls the boundary; a hook at the fit's end would fuse twice."""
    stream = Stream(replay())
    learn(stream)
    trained = stream.train()
    stream.end()
    torch.testing.assert_close(stream.weights(), trained, rtol=0, atol=0)


def test_what_fusion_refuses_is_refused() -> None:
    module: Any = SimpleNamespace(
        trainable_parameters={"a": nn.Parameter(torch.ones(2))}, identification=None
    )
    with pytest.raises(UserError, match="method/importance=order2"):
        replay().check(module)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"position": "during_fusion"}, r"replay\.position.*'during_fusion'"),
        ({"epochs": 0}, r"replay\.epochs"),
        ({"epochs": 1.5}, r"replay\.epochs"),
    ],
)
def test_mistakes_are_told(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replay(**wrong)
