"""Masks against NumPy's percentile and order, merges against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kif_lightning.errors import UserError
from kif_lightning.kif import merge_, top_mask


def distinct(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    """A permutation of 1..n over all tensors: no two scores are equal."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    order = np.random.default_rng(seed).permutation(sum(sizes)) + 1.0
    pieces = np.split(order, np.cumsum(sizes)[:-1])
    return {
        f"t{i}": torch.tensor(piece.reshape(shape))
        for i, (piece, shape) in enumerate(zip(pieces, shapes, strict=True))
    }


def flat(tensors: dict[str, Tensor]) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for tensor in tensors.values()])


@pytest.mark.parametrize("top", [0.5, 7.0, 20.0, 29.0, 50.0, 99.0])
@pytest.mark.parametrize("shapes", [[(7,)], [(10, 5), (50,)], [(3, 4), (2, 3, 2), (), (17,)]])
def test_the_largest_scores_over_all_tensors(shapes: list[tuple[int, ...]], top: float) -> None:
    scores = distinct(*shapes)
    masks = top_mask(scores, top)
    assert {name: mask.shape for name, mask in masks.items()} == {
        name: score.shape for name, score in scores.items()
    }
    every = flat(scores)
    kept = sorted(every[flat(masks)])
    number = int(np.floor(len(every) * top / 100))
    assert kept == list(range(len(every) - number + 1, len(every) + 1))


@pytest.mark.parametrize("top", [1.0, 20.0, 35.0, 100.0])
def test_ties_as_numpys_percentile_says(top: float) -> None:
    values = np.random.default_rng(1).integers(0, 6, 40) / 4.0
    masks = top_mask({"a": torch.tensor(values[:15]), "b": torch.tensor(values[15:])}, top)
    threshold = np.percentile(values, 100 - top, method="inverted_cdf")
    np.testing.assert_array_equal(flat(masks), values > threshold)


def test_a_tie_across_the_threshold_is_not_kept() -> None:
    scores = {"a": torch.tensor([1.0, 5.0, 3.0]), "b": torch.tensor([[3.0, 2.0]])}
    masks = top_mask(scores, 40.0)
    assert masks["a"].tolist() == [False, True, False]
    assert masks["b"].tolist() == [[False, False]]


@pytest.mark.parametrize("top", [20.0, 100.0])
def test_of_equal_scores_none_is_important(top: float) -> None:
    assert not flat(top_mask({"a": torch.zeros(6), "b": torch.zeros(2, 2)}, top)).any()


def test_too_few_weights_for_one_in_a_hundred() -> None:
    assert not flat(top_mask(distinct((9,)), 1.0)).any()


def test_scores_too_small_for_float32_are_told_apart() -> None:
    scores = {"a": torch.tensor([1e-60, 3e-60, 2e-60, 0.0, 1e-61], dtype=torch.float64)}
    assert top_mask(scores, 20.0)["a"].tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_scores_that_cannot_be_ranked(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one score, all finite"):
        top_mask({"a": torch.tensor(values)}, 20.0)
    with pytest.raises(ValueError, match="at least one score"):
        top_mask({}, 20.0)


@pytest.mark.parametrize("top", [0.0, -1.0, 100.5])
def test_top_percent_out_of_range(top: float) -> None:
    with pytest.raises(UserError, match=r"recurrent.top_percent must lie in \(0, 100\]"):
        top_mask({"a": torch.ones(2)}, top)


def four_cases(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Important to both, neither, the inner side alone, the outer side alone."""
    return {
        "theta": {"w": torch.full((2, 2), 99.0, dtype=dtype)},
        "start": {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)},
        "delta_in": {"w": torch.tensor([[10.0, 20.0], [30.0, 40.0]])},
        "delta_out": {"w": torch.tensor([[-5.0, 2.0], [7.0, -8.0]])},
        "mask_in": {"w": torch.tensor([[True, False], [True, False]])},
        "mask_out": {"w": torch.tensor([[True, False], [False, True]])},
    }


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        # 1 + 4 - 3, 2 + 10 + 1, 3 + 30, 4 - 8
        ({}, [[2.0, 13.0], [33.0, -4.0]]),
        # 1 + 7.5 - 1.25, 2 + 20
        ({"outer_share_both": 0.25, "outer_share_neither": 0.0}, [[7.25, 22.0], [33.0, -4.0]]),
    ],
)
def test_the_four_cases_by_hand(shares: Any, expected: list[list[float]]) -> None:
    given = four_cases()
    theta = given["theta"]["w"]
    merge_(**given, **shares)
    assert given["theta"]["w"] is theta
    np.testing.assert_allclose(theta.numpy(), expected, rtol=1e-12)
    untouched = four_cases()
    for side in ("start", "delta_in", "delta_out", "mask_in", "mask_out"):
        assert torch.equal(given[side]["w"], untouched[side]["w"])


def test_low_precision_weights_are_merged_in_float32() -> None:
    given = four_cases(torch.bfloat16)
    # 257.001 rounds to 258; 1.001 is 1 in bfloat16, and the tie 257 rounds to 256.
    given["start"]["w"].fill_(256.0)
    given["delta_in"]["w"].fill_(1.001)
    given["delta_out"]["w"].fill_(1.001)
    merge_(**given)
    assert given["theta"]["w"].dtype == torch.bfloat16
    assert given["theta"]["w"].tolist() == [[258.0, 258.0], [258.0, 258.0]]


def test_trainable_weights_take_the_merge_without_a_graph() -> None:
    given = four_cases()
    given["theta"] = {"w": torch.nn.Parameter(given["theta"]["w"])}
    merge_(**given)
    assert given["theta"]["w"].grad_fn is None
    assert given["theta"]["w"].requires_grad


@pytest.mark.parametrize("name", ["outer_share_both", "outer_share_neither"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_out_of_range(name: str, share: float) -> None:
    wrong: Any = {name: share}
    with pytest.raises(UserError, match=rf"recurrent.{name} must lie in \[0, 1\]"):
        merge_(**four_cases(), **wrong)
