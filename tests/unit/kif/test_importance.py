"""Importance against naive loops over single weights, and unit scores against outer products."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kif_lightning.errors import UserError
from kif_lightning.kif import ImportanceTracker, importance, lora_rank_units, matrix_units

Step = tuple[dict[str, Tensor], dict[str, Tensor | None]]

SHAPES = {
    "q.lora_A": (3, 5),
    "q.lora_B": (4, 3),
    "v.lora_A": (1, 6),
    "v.lora_B": (2, 1),
    "o.lora_A": (3, 5),
    "o.lora_B": (4, 3),
}


def random_steps(
    shapes: Mapping[str, tuple[int, ...]],
    number: int = 4,
    dtype: torch.dtype = torch.float64,
    scale: float = 1.0,
) -> list[Step]:
    generator = torch.Generator().manual_seed(3)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    return [
        ({n: draw(s) for n, s in shapes.items()}, {n: draw(s) for n, s in shapes.items()})
        for _ in range(number)
    ]


def track(steps: list[Step], **settings: Any) -> ImportanceTracker:
    tracker = ImportanceTracker(**settings)
    tracker.reset(steps[0][0])
    for weights, gradients in steps:
        tracker.update(weights, gradients)
    return tracker


def naive(
    steps: list[Step], name: str, *, order: int = 2, alpha1: float = 0.85, alpha2: float = 0.85
) -> tuple[np.ndarray, np.ndarray]:
    """Sensitivity and uncertainty of one tensor, weight by weight in Python's float64."""
    shape = steps[0][0][name].shape
    sensitivity, uncertainty = np.zeros(shape), np.zeros(shape)
    for weights, gradients in steps:
        gradient = gradients[name]
        for index in np.ndindex(*shape):
            g = 0.0 if gradient is None else gradient[index].item()
            product = weights[name][index].item() * g
            value = abs(product) if order == 1 else abs(product - product**2 / 2.0)
            sensitivity[index] = alpha1 * sensitivity[index] + (1.0 - alpha1) * value
            distance = abs(value - sensitivity[index])
            uncertainty[index] = alpha2 * uncertainty[index] + (1.0 - alpha2) * distance
    return sensitivity, uncertainty


def assert_matches_naive(
    tracker: ImportanceTracker, steps: list[Step], rtol: float = 1e-12, **settings: Any
) -> None:
    for name in steps[0][0]:
        expected = naive(steps, name, **settings)
        for got, want in zip((tracker.sensitivity, tracker.uncertainty), expected, strict=True):
            np.testing.assert_allclose(got[name].double().numpy(), want, rtol=rtol, atol=rtol**2)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("bucket_elements", [1, 7, 20, 1 << 20])
def test_averages_whatever_the_buckets(
    order: int, bucket_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "CPU_BUCKET_ELEMENTS", bucket_elements)
    steps = random_steps({"wide": (5, 9), "bias": (3,), "cube": (2, 3, 2), "scalar": ()})
    assert_matches_naive(track(steps, order=order), steps, order=order)


@pytest.mark.parametrize(("alpha1", "alpha2"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.3, 0.9)])
def test_smoothing_factors_up_to_their_edges(alpha1: float, alpha2: float) -> None:
    steps = random_steps({"w": (4, 3)})
    settings = {"alpha1": alpha1, "alpha2": alpha2}
    assert_matches_naive(track(steps, **settings), steps, **settings)


@pytest.mark.parametrize("without", [0, 1, 2])
def test_a_missing_gradient_counts_as_zero_and_averages_decay(without: int) -> None:
    steps = random_steps({"w": (2, 3), "v": (4,)}, number=3)
    steps[without][1]["v"] = None
    assert_matches_naive(track(steps), steps)


def test_strided_weights_and_gradients() -> None:
    steps = [
        ({"w": w["w"].t()}, {"w": g["w"][:1].expand(4, 3).t()})  # type: ignore[index]
        for w, g in random_steps({"w": (4, 3)})
    ]
    assert not steps[0][0]["w"].is_contiguous()
    assert_matches_naive(track(steps), steps)


def test_inputs_stay_as_they_are_and_no_graph_is_kept() -> None:
    [(weights, gradients)] = random_steps(SHAPES, number=1)
    weights = {name: torch.nn.Parameter(weight) for name, weight in weights.items()}
    before = [t.detach().clone() for t in (*weights.values(), *gradients.values())]  # type: ignore[union-attr]
    tracker = track([(weights, gradients)])
    for was, now in zip(before, (*weights.values(), *gradients.values()), strict=True):
        assert torch.equal(was, now)  # type: ignore[arg-type]
    assert not any(t.requires_grad for t in tracker.sensitivity.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_weights_keep_float32_averages(dtype: torch.dtype) -> None:
    # Products near 1e-8 are zero in float16, and have two digits in bfloat16.
    steps = random_steps(SHAPES, dtype=dtype, scale=1e-4)
    tracker = track(steps)
    kept = [*tracker.sensitivity.values(), *tracker.uncertainty.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert_matches_naive(tracker, steps, rtol=1e-5)


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).double().numpy()


@pytest.mark.parametrize("bucket_elements", [7, 1 << 20])
@pytest.mark.parametrize("offload", [False, True])
def test_bfloat16_averages_are_rounded_once_a_step(
    offload: bool, bucket_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "CPU_BUCKET_ELEMENTS", bucket_elements)
    steps = random_steps({"wide": (5, 9), "bias": (3,)}, number=6)
    tracker = track(steps, average_dtype="bfloat16", offload=offload)
    for name, weight in steps[0][0].items():
        sensitivity, uncertainty = np.zeros(weight.shape), np.zeros(weight.shape)
        for weights, gradients in steps:
            product = (weights[name] * gradients[name]).numpy()  # type: ignore[operator]
            value = abs(product - product**2 / 2)
            exact = 0.85 * sensitivity + 0.15 * value
            uncertainty = rounded(0.85 * uncertainty + 0.15 * abs(value - exact))
            sensitivity = rounded(exact)
        # Computed in float32, so that a tie may round the other way: one unit of the 8 bits.
        for kept, expected in (
            (tracker.sensitivity, sensitivity),
            (tracker.uncertainty, uncertainty),
        ):
            assert kept[name].dtype == torch.bfloat16
            found = kept[name].double().numpy()
            np.testing.assert_allclose(found, expected, rtol=2**-7)
            assert np.mean(found == expected) > 0.9


def test_bfloat16_averages_need_half_the_memory() -> None:
    steps = random_steps(SHAPES, dtype=torch.float32)
    half, full = (
        sum(t.nbytes for t in track(steps, average_dtype=dtype).sensitivity.values())
        for dtype in ("bfloat16", "float32")
    )
    assert 2 * half == full


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_offloaded_averages_are_the_same_bit_by_bit(dtype: torch.dtype) -> None:
    steps = random_steps(SHAPES, dtype=dtype)
    units = lora_rank_units(steps[0][0])
    plain, offloaded = track(steps), track(steps, offload=True)
    for name in SHAPES:
        assert offloaded.sensitivity[name].device.type == "cpu"
        assert torch.equal(plain.sensitivity[name], offloaded.sensitivity[name])
        assert torch.equal(plain.uncertainty[name], offloaded.uncertainty[name])
    assert torch.equal(plain.unit_scores(units), offloaded.unit_scores(units))


@pytest.mark.parametrize("alpha", ["alpha1", "alpha2"])
def test_smoothing_that_bfloat16_cannot_follow_is_refused(alpha: str) -> None:
    settings: dict[str, Any] = {alpha: 0.997}
    ImportanceTracker(**settings)
    ImportanceTracker(average_dtype="bfloat16", **{alpha: 1.0})
    with pytest.raises(UserError, match=f"importance.{alpha} must be at most 0.99 .*got 0.997"):
        ImportanceTracker(average_dtype="bfloat16", **settings)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("bucket", [1, 7, 1 << 19])
def test_rank_scores_are_the_mean_of_the_whole_outer_product(
    order: int, number: int, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "CPU_BUCKET_ELEMENTS", bucket)
    steps = random_steps(SHAPES, number=number)
    units = lora_rank_units(steps[0][0])
    expected = []
    for module, rank in (("q", 3), ("v", 1), ("o", 3)):
        s_a, s_b = (np.multiply(*naive(steps, f"{module}.lora_{x}", order=order)) for x in "AB")
        expected += [np.outer(s_b[:, r], s_a[r, :]).mean() for r in range(rank)]
    scores = track(steps, order=order).unit_scores(units)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-11)


def test_rank_scores_of_a_convolution_pair() -> None:
    steps = random_steps({"c.lora_A": (2, 3, 2, 2), "c.lora_B": (4, 2, 1, 1)})
    s_a, s_b = (np.multiply(*naive(steps, f"c.lora_{side}")) for side in "AB")
    expected = [np.outer(s_b[:, r].ravel(), s_a[r].ravel()).mean() for r in range(2)]
    scores = track(steps).unit_scores(lora_rank_units(steps[0][0]))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("shapes", [{"one": (3, 2)}, {"w": (3, 2), "bias": (4,), "scalar": ()}])
@pytest.mark.parametrize("use_uncertainty", [True, False])
@pytest.mark.parametrize("bucket", [1, 4, 1 << 19])
def test_matrix_scores_are_means_of_the_weight_scores(
    shapes: dict[str, tuple[int, ...]],
    use_uncertainty: bool,
    bucket: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance, "CPU_BUCKET_ELEMENTS", bucket)
    steps = random_steps(shapes)
    expected = []
    for name in shapes:
        sensitivity, uncertainty = naive(steps, name)
        expected.append(np.mean(sensitivity * uncertainty if use_uncertainty else sensitivity))
    tracker = track(steps, use_uncertainty=use_uncertainty)
    scores = tracker.unit_scores(matrix_units(steps[0][0]))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("use_uncertainty", [True, False])
def test_weight_scores_in_float64(use_uncertainty: bool, dtype: torch.dtype) -> None:
    # I is about 1e-24, its square 1e-48: zero in float32.
    steps = random_steps(SHAPES, dtype=dtype, scale=1e-12)
    tracker = track(steps, use_uncertainty=use_uncertainty)
    scores = tracker.weight_scores()
    assert list(scores) == list(SHAPES)
    for name, score in scores.items():
        sensitivity, uncertainty = naive(steps, name)
        expected = sensitivity * uncertainty if use_uncertainty else sensitivity
        np.testing.assert_allclose(score.numpy(), expected, rtol=1e-4)
        score.zero_()
        assert tracker.sensitivity[name].all()  # not the tracker's own memory


def test_scores_too_small_for_float32_are_not_lost() -> None:
    # I is about 1e-24, its square 1e-48 and a pair's product 1e-96: zero in float32.
    steps = random_steps(SHAPES, dtype=torch.float32, scale=1e-12)
    scores = track(steps).unit_scores(lora_rank_units(steps[0][0]))
    s_a, s_b = (np.multiply(*naive(steps, f"q.lora_{side}")) for side in "AB")
    expected = [np.outer(s_b[:, r], s_a[r, :]).mean() for r in range(3)]
    np.testing.assert_allclose(scores[:3].numpy(), expected, rtol=1e-4)


def test_a_task_starts_at_zero() -> None:
    steps = random_steps(SHAPES)
    tracker = track(steps)
    assert tracker.num_steps == 4
    tracker.reset(steps[0][0])
    assert tracker.num_steps == 0
    assert not any(t.any() for t in (*tracker.sensitivity.values(), *tracker.uncertainty.values()))


def test_saved_and_loaded_averages_go_on_bit_by_bit() -> None:
    steps = random_steps(SHAPES, dtype=torch.float32)
    source, loaded = track(steps[:2]), ImportanceTracker()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    shared = ImportanceTracker()
    shared.load_state_dict(source.state_dict())
    for tracker in (source, loaded, shared):  # sharing memory would count the steps twice
        for step in steps[2:]:
            tracker.update(*step)
    whole = track(steps)
    for tracker in (source, loaded, shared):
        assert tracker.num_steps == 4
        for name in SHAPES:
            assert torch.equal(tracker.sensitivity[name], whole.sensitivity[name])
            assert torch.equal(tracker.uncertainty[name], whole.uncertainty[name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("offload", [False, True])
def test_loaded_averages_go_on_with_the_same_dtype(offload: bool, dtype: Any) -> None:
    settings = {"average_dtype": dtype, "offload": offload}
    steps = random_steps(SHAPES, dtype=torch.float32)
    resumed = ImportanceTracker(**settings)
    resumed.load_state_dict(track(steps[:2], **settings).state_dict())
    whole = track(steps, **settings)
    units = lora_rank_units(steps[0][0])
    assert resumed.unit_scores(units).all()  # even before the next step
    for step in steps[2:]:
        resumed.update(*step)
    for name, average in whole.sensitivity.items():
        assert resumed.sensitivity[name].dtype == average.dtype == getattr(torch, dtype)
        assert torch.equal(resumed.sensitivity[name], average)
        assert torch.equal(resumed.uncertainty[name], whole.uncertainty[name])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"order": 0}, "importance.order must be 1 or 2, got 0."),
        ({"order": 3}, "importance.order must be 1 or 2, got 3."),
        ({"alpha1": -0.1}, "importance.alpha1 must lie in [0, 1], got -0.1."),
        ({"alpha1": float("nan")}, "importance.alpha1 must lie in [0, 1], got nan."),
        ({"alpha2": 1.1}, "importance.alpha2 must lie in [0, 1], got 1.1."),
        (
            {"average_dtype": "float16"},
            "importance.average_dtype must be 'float32' or 'bfloat16', got 'float16'.",
        ),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        ImportanceTracker(**settings)
    assert str(caught.value) == told
