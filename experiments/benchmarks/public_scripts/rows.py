"""What the scripts of this folder share: rows from files, their tokens, files of numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MASK = "<extra_id_0>"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def prompt_ids(tokenizer: Any, text: str, limit: int) -> list[int]:
    """The prompt as a cloze: text, mask, end token; a long one loses its middle."""
    ids = tokenizer(text)["input_ids"]
    if len(ids) > limit - 1:
        head = limit // 2
        ids = ids[:head] + ids[head - limit + 1 :]
    return [*ids[:-1], tokenizer.convert_tokens_to_ids(MASK), ids[-1]]


def answer_ids(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text_target=text)["input_ids"]
    return [tokenizer.convert_tokens_to_ids(MASK), *ids]


def longest_answer(tokenizer: Any, answers: Sequence[str]) -> int:
    """Tokens to generate at most for a classification task."""
    return max(len(answer_ids(tokenizer, answer)) for answer in set(answers))
