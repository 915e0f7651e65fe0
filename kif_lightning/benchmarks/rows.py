"""Reading and limiting the rows of one split."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from kif_lightning.errors import UserError, require_count
from kif_lightning.interfaces import Row

_KEYS = ("id", "input", "output")


def read_rows(path: Path) -> tuple[tuple[Row, ...], str]:
    """All rows of a JSON-lines file and the file's sha256.

    Raises:
        UserError: the file is missing, empty, not UTF-8, or a line is no row; names file and line.
    """
    if not path.is_file():
        raise UserError(f"Expected the rows of a split in {path}, but there is no such file.")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8: {error.reason} at byte {error.start}.") from error
    lines = text.split("\n")
    rows = tuple(
        _row(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()
    )
    if not rows:
        raise UserError(f"{path} holds no row: expected one JSON object a line.")
    return rows, hashlib.sha256(data).hexdigest()


def _row(line: str, path: Path, number: int) -> Row:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: expected one JSON object, but it does not parse.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected a JSON object, got a {type(record).__name__}.")
    for key in _KEYS:
        if key not in record:
            raise UserError(
                f"{where}: the row has no '{key}'; expected the keys id, input and output, got "
                f"{', '.join(record) or 'none'}."
            )
        value = record[key]
        if not isinstance(value, str):
            raise UserError(
                f"{where}: '{key}' must be a text, got {type(value).__name__} {value!r:.40}."
            )
    if not record["input"].strip():
        raise UserError(f"{where}: 'input' is blank; expected the whole prompt.")
    return Row(id=record["id"], input=record["input"], output=record["output"])


def require_limits(train_rows: int | None, test_rows: int | None) -> None:
    """Raise :class:`UserError` unless both limits are None or at least 1."""
    for key, limit in (("train_rows", train_rows), ("test_rows", test_rows)):
        if limit is not None:
            require_count(f"benchmark.{key} (null for all)", limit)


def limit_rows(
    rows: Sequence[Row], limit: int | None, *, balanced: bool, generator: torch.Generator
) -> tuple[Row, ...]:
    """A seeded draw of at most ``limit`` rows, in the file's order.

    ``balanced``: as equal over the output texts as they allow; a class that runs out leaves its
    share to the others. Otherwise uniform.
    """
    if limit is None or limit >= len(rows):
        return tuple(rows)
    shuffled = torch.randperm(len(rows), generator=generator).tolist()
    if not balanced:
        return tuple(rows[i] for i in sorted(shuffled[:limit]))
    by_output: dict[str, list[int]] = defaultdict(list)
    for index in shuffled:
        by_output[rows[index].output].append(index)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < limit:
        in_turn = [by_output[output][turn] for output in by_output if turn < len(by_output[output])]
        chosen.extend(in_turn[: limit - len(chosen)])
        turn += 1
    return tuple(rows[i] for i in sorted(chosen))
