"""Token-level helpers shared by the families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

IGNORED = -100
Truncation = Literal["middle", "right"]


def cut(ids: Sequence[int], limit: int, truncation: Truncation) -> list[int]:
    """Cut a prompt to ``limit`` tokens.

    ``middle`` drops the middle: the instruction at the start and the cue at the end stay.
    ``right`` drops the end.
    """
    if len(ids) <= limit:
        return list(ids)
    if truncation == "right":
        return list(ids[:limit])
    head = (limit + 1) // 2
    return [*ids[:head], *ids[len(ids) - (limit - head) :]]


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(N, longest), int64."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(N, longest), int64."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*[value] * (width - len(row)), *row] for row in rows])
