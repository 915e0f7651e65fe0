"""Rows of one split: made from records, held in memory or in Arrow, limited by a seeded draw."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

import pyarrow as pa
import torch

from kif_lightning.benchmarks.files import Record, Records, named, place, read_records
from kif_lightning.benchmarks.table import SCHEMA, RowTable
from kif_lightning.errors import UserError, require_count
from kif_lightning.interfaces import Row, Split
from kif_lightning.paths import cache_dir

MakeRow = Callable[[Record, int], Row]
"""(record, its number from 1) -> row; raises UserError without the place, which the reader adds."""

IN_MEMORY = 2**26
"""Bytes of a file up to which its rows are held in memory; of a larger one in Arrow on the disk."""
BATCH_ROWS, BATCH_CHARACTERS = 10_000, 2**23
MOST_PROBLEMS = 1000


def plain_row(record: Record, number: int) -> Row:
    """A record with exactly what a row holds: id, input and output, all texts."""
    for key in ("id", "input", "output"):
        value = record.get(key)
        if value.__class__ is not str:
            if key not in record:
                raise UserError(
                    f"the row has no '{key}'; expected the keys id, input and output, got "
                    f"{named(record)}."
                )
            raise UserError(f"'{key}' must be a text, got {type(value).__name__} {value!r:.40}.")
    if not record["input"].strip():
        raise UserError("'input' is blank; expected the whole prompt.")
    return Row(id=record["id"], input=record["input"], output=record["output"])


def read_split(
    path: Path, make_row: MakeRow = plain_row, *, settings: str = "", tolerant: bool = False
) -> Split:
    """All rows of a file.

    Args:
        path: the file, see :func:`~kif_lightning.benchmarks.files.read_records`.
        make_row: makes rows of its records.
        settings: everything that decides what ``make_row`` makes, for the cache of large files.
        tolerant: note what cannot be read in the split's ``problems`` and go on, up to 1000.

    Raises:
        UserError: the file is missing, unreadable or holds no row; names file and line.
    """
    records = read_records(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    problems: list[str] = []
    rows = rows_of(records, make_row, partial(place, path), problems=problems if tolerant else None)
    if path.stat().st_size <= IN_MEMORY:
        held: Sequence[Row] = tuple(rows)
    else:
        # The same bytes are other rows under another suffix.
        decides = json.dumps([1, sha256, path.suffix.lower(), settings, tolerant])
        key = hashlib.sha256(decides.encode()).hexdigest()[:32]
        stored = cache_dir() / "rows" / f"{key}.arrow"
        if tolerant or not stored.is_file():
            write_arrow(stored, rows)
        held = RowTable.mapped(stored)
    if not held and not problems:
        raise UserError(f"{path} holds no row: expected one a line.")
    return Split(rows=held, sha256=sha256, problems=tuple(problems))


def rows_of(
    records: Records,
    make_row: MakeRow,
    place_of: Callable[[int], str],
    *,
    problems: list[str] | None = None,
) -> Iterator[Row]:
    """The rows of records, one by one.

    Args:
        records: with their numbers.
        make_row: makes a row of one.
        place_of: what messages call the record of a number.
        problems: where to note what cannot be read; None: it is raised.

    Raises:
        UserError: a record is unreadable or no row; names its place.
    """
    # A refusal holds on to what was being read: the file is closed here, not when it is forgotten.
    with closing(records):
        for number, record in records:
            try:
                if isinstance(record, UserError):
                    raise record
                yield make_row(record, number)
            except UserError as error:
                told = error if error is record else UserError(f"{place_of(number)}: {error}")
                if problems is None:
                    raise told from error
                problems.append(str(told))
                if len(problems) == MOST_PROBLEMS:
                    problems.append(f"After {MOST_PROBLEMS} such rows the rest was not read.")
                    return


def write_arrow(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as an Arrow stream file, whole or not at all, no more than a batch in memory.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
            for columns in _batches(rows):
                arrays = [pa.array(column, pa.large_string()) for column in columns]
                writer.write_batch(pa.record_batch(arrays, SCHEMA))
        Path(temporary).replace(path)
    except OSError as error:
        raise UserError(
            f"Large files are kept as Arrow in {path.parent}, which cannot be written "
            f"({error.strerror or error}): set KIF_CACHE to a folder that can."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _batches(rows: Iterator[Row]) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """The columns of some rows at a time."""
    ids, inputs, outputs = [], [], []
    characters = 0
    for row in rows:
        ids.append(row.id)
        inputs.append(row.input)
        outputs.append(row.output)
        characters += len(row.input) + len(row.output)
        if len(ids) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield ids, inputs, outputs
            ids, inputs, outputs = [], [], []
            characters = 0
    if ids:
        yield ids, inputs, outputs


def sha256_of(rows: Sequence[Row]) -> str:
    """Of the rows as JSON lines."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{json.dumps(asdict(row))}\n".encode())
    return digest.hexdigest()


def require_limits(train_rows: int | None, test_rows: int | None) -> None:
    """Raise :class:`UserError` unless both limits are None or at least 1."""
    for key, limit in (("train_rows", train_rows), ("test_rows", test_rows)):
        if limit is not None:
            require_count(f"benchmark.{key} (null for all)", limit)


def limit_rows(
    rows: Sequence[Row], limit: int | None, *, balanced: bool, generator: torch.Generator
) -> Sequence[Row]:
    """A seeded draw of at most ``limit`` rows, in the file's order.

    ``balanced``: as equal over the output texts as they allow; a class that runs out leaves its
    share to the others. Otherwise uniform.
    """
    if limit is None or limit >= len(rows):
        return rows
    shuffled = torch.randperm(len(rows), generator=generator).tolist()
    if not balanced:
        return take(rows, shuffled[:limit])
    outputs = output_codes(rows)
    by_output: dict[Hashable, list[int]] = defaultdict(list)
    for index in shuffled:
        by_output[outputs[index]].append(index)
    # In turns: a row of every class, then another of every class that has one, ...
    turns = chain.from_iterable(zip_longest(*by_output.values()))
    return take(rows, list(islice((i for i in turns if i is not None), limit)))


def take(rows: Sequence[Row], indices: Iterable[int]) -> Sequence[Row]:
    """The rows at those places, in the file's order."""
    in_order = sorted(indices)
    return rows.take(in_order) if isinstance(rows, RowTable) else tuple(rows[i] for i in in_order)


def output_codes(rows: Sequence[Row]) -> Sequence[Hashable]:
    """Something that is equal for equal outputs, for each row."""
    return rows.output_codes() if isinstance(rows, RowTable) else [row.output for row in rows]


def distinct_outputs(rows: Sequence[Row]) -> tuple[str, ...]:
    """The different outputs, sorted."""
    outputs = rows.distinct_outputs() if isinstance(rows, RowTable) else {r.output for r in rows}
    return tuple(sorted(outputs))
