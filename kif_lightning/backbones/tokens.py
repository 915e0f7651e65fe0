"""Token-level helpers shared by the families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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


def cut_in_words(limit: int, truncation: Truncation, *, keeps_end: bool = False) -> list[str]:
    """The same as lines of Python on the list ``ids``; ``right`` may keep the last token."""
    if truncation == "middle":
        head = (limit + 1) // 2
        return [
            f"if len(ids) > {limit}:  # the start and the end stay",
            f"    ids = ids[:{head}] + ids[len(ids) - {limit - head} :]",
        ]
    if keeps_end:
        return [f"if len(ids) > {limit}:", f"    ids = ids[: {limit - 1}] + ids[-1:]"]
    return [f"ids = ids[:{limit}]"]


def ids_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of each text, uncut, as the tokenizer gives them for the text alone."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer written in Python
        return [tokenizer(text, add_special_tokens=special_tokens)["input_ids"] for text in texts]
    # As a call without truncation and padding leaves it. Such a call would also find where in the
    # text each token stands, which takes a quarter of its time.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    found = backend.encode_batch_fast(list(texts), add_special_tokens=special_tokens)
    return [encoding.ids for encoding in found]


def pad_right(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(N, longest), int64."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def pad_left(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """(N, longest), int64."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*[value] * (width - len(row)), *row] for row in rows])
