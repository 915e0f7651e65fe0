"""Normalisation, accumulation, rules and the fusion itself, against NumPy and loops."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kif_lightning.errors import UserError
from kif_lightning.kif import (
    AdaptiveRule,
    MeanRule,
    SkillUnits,
    StaticRule,
    UnitClass,
    accumulate,
    classify,
    fuse_,
    fusion,
    lora_rank_units,
    matrix_units,
    min_max,
)
from kif_lightning.kif.fusion import threshold

SHAPES = {"q.lora_A": (3, 5), "q.lora_B": (4, 3), "v.lora_A": (1, 2), "v.lora_B": (3, 1)}


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_tensors(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in SHAPES.items()}


def numpy_norm(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.0, 1.0], [0.0, 1.0]),
        ([3.0, -1.0, 1.0, 1.0], [1.0, 0.0, 0.5, 0.5]),
        ([1e-40, 3e-40, 2e-40], [0.0, 1.0, 0.5]),
    ],
    ids=["edges", "ties", "tiny"],
)
def test_min_max_by_hand(scores: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(min_max(vector(*scores)).numpy(), expected, rtol=1e-15)


def test_min_max_of_float32_is_taken_in_float64() -> None:
    scores = torch.rand(17, generator=torch.Generator().manual_seed(0))
    expected = numpy_norm(scores.numpy().astype(np.float64))
    assert np.array_equal(min_max(scores).numpy(), expected)


@pytest.mark.parametrize("scores", [(0.25,), (0.25, 0.25, 0.25), (0.0, 0.0)])
def test_equal_scores_become_zero_with_a_warning(scores: tuple[float, ...]) -> None:
    with pytest.warns(UserWarning, match=f"All {len(scores)} unit scores are equal"):
        normalised = min_max(vector(*scores))
    assert torch.equal(normalised, torch.zeros(len(scores), dtype=torch.float64))


@pytest.mark.parametrize("scores", [(), (float("nan"), 1.0), (1.0, float("inf"))])
def test_scores_that_cannot_be_normalised(scores: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least one score, all finite"):
        min_max(vector(*scores))


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.7, 1.0])
def test_accumulate(beta: float) -> None:
    past, score = np.random.default_rng(1).random((2, 11))
    expected = numpy_norm(beta * numpy_norm(past) + (1 - beta) * numpy_norm(score))
    got = accumulate(torch.tensor(past), torch.tensor(score), beta)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-13)


def test_the_first_task_starts_the_accumulation() -> None:
    assert torch.equal(accumulate(None, vector(4.0, 2.0, 3.0), 0.7), vector(1.0, 0.0, 0.5))


def test_a_past_without_contrast_counts_as_zero() -> None:
    with pytest.warns(UserWarning, match="All 3 unit scores are equal"):
        accumulated = accumulate(vector(1.0, 1.0, 1.0), vector(4.0, 2.0, 3.0), 0.7)
    np.testing.assert_allclose(accumulated.numpy(), [1.0, 0.0, 0.5], rtol=1e-15)


@pytest.mark.parametrize("top_percent", [0.5, 20.0, 33.3, 50.0, 100.0])
@pytest.mark.parametrize("number", [1, 2, 11, 96])
def test_threshold_is_the_interpolated_percentile(number: int, top_percent: float) -> None:
    scores = np.random.default_rng(number).random(number)
    expected = np.percentile(scores, 100.0 - top_percent, method="linear")
    assert threshold(torch.tensor(scores), top_percent) == pytest.approx(expected, rel=1e-14)


def test_the_four_classes_by_hand() -> None:
    # Percentile 50 of four scores: 0.45 for previous, 0.25 for current.
    previous, current = vector(0.9, 0.5, 0.4, 0.0), vector(1.0, 0.2, 0.3, 0.1)
    assert classify(previous, current, 50.0).tolist() == [
        UnitClass.TASK_SHARED,
        UnitClass.PREVIOUS_SPECIFIC,
        UnitClass.CURRENT_SPECIFIC,
        UnitClass.UNIMPORTANT,
    ]
    lam = StaticRule(gamma=0.7, top_percent=50.0)(previous, current)
    assert torch.equal(lam, vector(0.7, 1.0, 0.0, 0.5))


@pytest.mark.parametrize(
    ("scores", "top_percent", "above"),
    [
        ((0.0, 0.1, 0.2, 0.3, 1.0, 0.5), 20.0, [4]),  # percentile 80 is 0.5 itself
        ((0.0, 0.0, 1.0, 1.0, 1.0), 20.0, []),  # ties at the top: the threshold is 1
        ((0.0, 0.5, 1.0), 100.0, [1, 2]),  # the threshold is the least score
        ((0.4, 0.4, 0.4), 20.0, []),
        ((0.0,), 20.0, []),
    ],
)
def test_important_is_strictly_above_the_threshold(
    scores: tuple[float, ...], top_percent: float, above: list[int]
) -> None:
    classes = classify(vector(*scores), torch.zeros(len(scores)), top_percent)
    assert (classes == UnitClass.PREVIOUS_SPECIFIC).nonzero().flatten().tolist() == above
    classes = classify(torch.zeros(len(scores)), vector(*scores), top_percent)
    assert (classes == UnitClass.CURRENT_SPECIFIC).nonzero().flatten().tolist() == above


@pytest.mark.parametrize("tau", [0.15, 0.25, 3.0])
def test_adaptive_rule_is_the_ratio_of_exponentials(tau: float) -> None:
    previous, current = np.random.default_rng(2).random((2, 9))
    expected = np.exp(previous / tau) / (np.exp(previous / tau) + np.exp(current / tau))
    lam = AdaptiveRule(tau=tau)(torch.tensor(previous), torch.tensor(current))
    np.testing.assert_allclose(lam.numpy(), expected, rtol=1e-13)


def test_adaptive_rule_where_the_exponentials_would_overflow() -> None:
    lam = AdaptiveRule(tau=1e-4)(vector(1.0, 0.0, 0.5), vector(0.0, 1.0, 0.5))
    assert torch.equal(lam, vector(1.0, 0.0, 0.5))


def test_mean_rule_does_not_look() -> None:
    lam = MeanRule()(vector(0.0, 1.0, float("nan")), vector(1.0, 0.0, 0.3))
    assert torch.equal(lam, vector(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: StaticRule(gamma=1.2), "rule.gamma must lie in [0, 1], got 1.2."),
        (lambda: StaticRule(top_percent=0.0), "rule.top_percent must lie in (0, 100], got 0.0."),
        (lambda: StaticRule(top_percent=101), "rule.top_percent must lie in (0, 100], got 101."),
        (lambda: AdaptiveRule(tau=0.0), "rule.tau must lie in (0, inf], got 0.0."),
        (lambda: AdaptiveRule(tau=float("nan")), "rule.tau must lie in (0, inf], got nan."),
    ],
)
def test_rule_settings_out_of_range(build: Callable[[], object], told: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert str(caught.value) == told


@pytest.mark.parametrize("partition", [lora_rank_units, matrix_units])
def test_fuse_weight_by_weight(partition: Callable[[dict[str, Tensor]], SkillUnits]) -> None:
    previous, current = random_tensors(0), random_tensors(1)
    before = {name: (previous[name].clone(), current[name].clone()) for name in SHAPES}
    units = partition(current)
    lam = torch.rand(len(units), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    share = dict(zip(units.ids, lam.tolist(), strict=True))
    fuse_(units, lam, previous, current)
    for name, (old, new) in before.items():
        assert torch.equal(previous[name], old)
        for row, column in np.ndindex(*SHAPES[name]):
            rank = row if name.endswith("A") else column
            one = share[name if name in share else f"{name.split('.')[0]}/rank:{rank}"]
            expected = one * old[row, column].item() + (1 - one) * new[row, column].item()
            assert current[name][row, column].item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_lam_at_its_edges_keeps_one_side_bit_by_bit(lam: float, dtype: torch.dtype) -> None:
    previous, current = random_tensors(0, dtype), random_tensors(1, dtype)
    kept = {name: t.clone() for name, t in (previous if lam else current).items()}
    units = lora_rank_units(current)
    fuse_(units, torch.full((len(units),), lam, dtype=torch.float64), previous, current)
    assert all(torch.equal(current[name], kept[name]) for name in SHAPES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_fused_in_float32_and_cast_back(dtype: torch.dtype) -> None:
    previous, current = random_tensors(0, dtype), random_tensors(1, dtype)
    share = np.float32(0.3)
    expected = {
        name: share * previous[name].float().numpy()
        + (np.float32(1) - share) * current[name].float().numpy()
        for name in SHAPES
    }
    in_low_precision = {n: 0.3 * previous[n] + (1 - 0.3) * current[n] for n in SHAPES}
    fuse_(matrix_units(current), torch.full((4,), 0.3, dtype=torch.float64), previous, current)
    for name in SHAPES:
        assert current[name].dtype == dtype
        assert torch.equal(current[name], torch.tensor(expected[name]).to(dtype))
    assert any(not torch.equal(current[n], in_low_precision[n]) for n in SHAPES)


def test_fuse_works_in_place_on_parameters_and_leaves_others_alone() -> None:
    current = {name: nn.Parameter(tensor) for name, tensor in random_tensors(1).items()}
    other = nn.Parameter(torch.ones(2))
    places = {name: tensor.data_ptr() for name, tensor in current.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fuse_(
            lora_rank_units(current),
            vector(1.0, 1.0, 1.0, 1.0),
            random_tensors(0),
            {**current, "other": other},
        )
    assert {name: tensor.data_ptr() for name, tensor in current.items()} == places
    assert all(torch.equal(current[name], old) for name, old in random_tensors(0).items())
    assert all(tensor.requires_grad and tensor.grad_fn is None for tensor in current.values())
    assert torch.equal(other, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [3, 1 << 20])
def test_exact_where_lam_is_zero_or_one_whatever_the_pieces(
    dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion, "PIECE_ELEMENTS", piece)
    torch.manual_seed(3)
    shapes = {"m.lora_A": (3, 5), "m.lora_B": (4, 3)}
    old = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    new = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    fused = {name: tensor.clone() for name, tensor in new.items()}
    lam = torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64)
    fuse_(lora_rank_units(fused), lam, old, fused)
    for name, axis in (("m.lora_A", 0), ("m.lora_B", 1)):
        columns = [t.movedim(axis, 0) for t in (fused[name], old[name], new[name])]
        assert torch.equal(columns[0][0], columns[2][0])
        assert torch.equal(columns[0][1], columns[1][1])
        between = (0.25 * columns[1][2].double() + 0.75 * columns[2][2].double()).to(dtype)
        torch.testing.assert_close(columns[0][2], between)
