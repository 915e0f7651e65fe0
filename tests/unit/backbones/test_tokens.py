"""Cutting and padding of token ids."""

from __future__ import annotations

import pytest
import torch

from kif_lightning.backbones.tokens import cut, pad_left, pad_right


@pytest.mark.parametrize("limit", [2, 3, 4, 7, 9])
def test_middle_keeps_start_and_end(limit: int) -> None:
    ids = list(range(100, 110))
    kept = cut(ids, limit, "middle")
    dropped = [i for i in ids if i not in kept]
    assert len(kept) == limit
    assert kept == sorted(kept)
    assert {ids[0], ids[-1]} <= set(kept)
    # What is dropped is one gap, and it lies in the middle: the sides differ by one token at most.
    assert dropped == list(range(dropped[0], dropped[-1] + 1))
    head, tail = dropped[0] - ids[0], ids[-1] - dropped[-1]
    assert head - tail in (0, 1)


def test_right_keeps_the_start() -> None:
    assert cut([5, 6, 7, 8, 9], 3, "right") == [5, 6, 7]


@pytest.mark.parametrize("truncation", ["middle", "right"])
@pytest.mark.parametrize("limit", [3, 4, 100])
def test_nothing_is_cut_within_the_limit(truncation: str, limit: int) -> None:
    ids = [7, 8, 9]
    kept = cut(ids, limit, truncation)  # type: ignore[arg-type]
    assert kept == [7, 8, 9]
    assert kept is not ids


def test_padding_sides() -> None:
    rows = [[1, 2, 3], [4], []]
    right, left = pad_right(rows, -100), pad_left(rows, 0)
    assert right.dtype == left.dtype == torch.int64
    assert right.tolist() == [[1, 2, 3], [4, -100, -100], [-100, -100, -100]]
    assert left.tolist() == [[1, 2, 3], [0, 0, 4], [0, 0, 0]]
