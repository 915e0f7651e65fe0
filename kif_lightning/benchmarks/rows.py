"""Rows of one split: made from records, held in memory or in Arrow, limited by a seeded draw."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice, zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from kif_lightning.benchmarks.files import Record, Records, named, place, read_records
from kif_lightning.benchmarks.table import SCHEMA, RowTable
from kif_lightning.errors import UserError, require_count
from kif_lightning.interfaces import Row, Split
from kif_lightning.paths import cache_dir
from kif_lightning.storage import replacing

MakeRow = Callable[[Record, int], Row]
"""(record, its number from 1) -> row; raises UserError without the place, which the reader adds."""

IN_MEMORY = 2**26
"""Bytes of a file, or of its rows, up to which they are held in memory; more: in Arrow on the disk.
"""
BYTES_A_ROW = 300
"""What a row weighs in memory beside its characters."""
BATCH_ROWS, BATCH_CHARACTERS = 10_000, 2**23
MOST_PROBLEMS = 1000
"""Of which it is told what is wrong; all are counted."""
_PROBLEMS = b"problems"


@dataclass
class Problems:
    """What could not be read: the first of it in words, and how many."""

    told: list[str] = field(default_factory=list)
    number: int = 0

    def note(self, what: str) -> None:
        """One more."""
        self.number += 1
        if self.number <= MOST_PROBLEMS:
            self.told.append(what)


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
        tolerant: note what cannot be read in the split's ``problems`` and go on.

    Raises:
        UserError: the file is missing, unreadable, changes meanwhile or, unless tolerant, holds no
            row; names file and line.
    """
    records = read_records(path)
    before = _version(path)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check who may.") from error
    problems = Problems()
    rows = rows_of(records, make_row, partial(place, path), problems=problems if tolerant else None)
    held, problems = hold(
        _unless_changed(path, before, rows),
        problems,
        # The same bytes are other rows under another suffix; what is told of them names the file.
        decides=[sha256, path.suffix.lower(), settings, str(path) if tolerant else None],
        size=before[0],
    )
    if not held and not tolerant:
        raise UserError(f"{path} holds no row: expected one a line.")
    return Split(
        rows=held, sha256=sha256, problems=tuple(problems.told), num_problems=problems.number
    )


def _version(path: Path) -> tuple[int, int]:
    """Size and time: what differs once a file is written anew."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _unless_changed(path: Path, before: tuple[int, int], rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; what is read of a changing file must not be kept as the one that was hashed."""
    try:
        yield from rows
    except OSError as error:
        raise UserError(f"{path} cannot be read to its end ({error.strerror or error}).") from error
    if not path.is_file() or _version(path) != before:
        raise UserError(f"{path} changed while it was read: try again once it is written.")


def hold(
    rows: Iterator[Row], problems: Problems, *, decides: Sequence[object], size: int = 0
) -> tuple[Sequence[Row], Problems]:
    """All rows with what could not be read: in memory or, where they are large, in Arrow.

    Args:
        rows: are not touched if the Arrow file is there already.
        problems: are filled by reading the rows.
        decides: everything that decides what the rows are: the key of the Arrow file.
        size: bytes that are known to come; more than :data:`IN_MEMORY` go to Arrow at once.
    """
    key = hashlib.sha256(json.dumps([2, *decides]).encode()).hexdigest()[:32]
    file = cache_dir() / "rows" / f"{key}.arrow"
    # What cannot be read back counts as not there.
    with suppress(OSError, pa.ArrowException, ValueError, KeyError):
        return stored(file)
    first: list[Row] = []
    weight = size if size > IN_MEMORY else 0
    for row in rows:
        first.append(row)
        weight += len(row.input) + len(row.output) + BYTES_A_ROW
        if weight > IN_MEMORY:
            write_arrow(file, chain(first, rows), problems)
            return stored(file)
    return tuple(first), problems


def stored(path: Path) -> tuple[RowTable, Problems]:
    """The rows that :func:`write_arrow` wrote, and what could not be read of their source.

    Raises:
        OSError: there is no such file.
        KeyError: it is not whole.
        ValueError: it is damaged; pyarrow's own errors too.
    """
    table = RowTable.mapped(path)
    # Stands with the last batch: without it the file is not whole.
    told, number = json.loads((table.table.schema.metadata or {})[_PROBLEMS])
    return table, Problems(told, number)


def rows_of(
    records: Records,
    make_row: MakeRow,
    place_of: Callable[[int], str],
    *,
    problems: Problems | None = None,
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
                problems.note(str(told))


def write_arrow(path: Path, rows: Iterator[Row], problems: Problems | None = None) -> None:
    """Write rows as an Arrow stream file, whole or not at all, no more than a batch in memory.

    Args:
        path: of the file.
        rows: read once.
        problems: what reading the rows notes; kept in the file.

    Raises:
        UserError: the folder cannot be written.
    """
    problems = problems or Problems()
    try:
        with replacing(path) as file, pa.ipc.new_stream(file, SCHEMA) as writer:
            for columns in _batches(rows):
                arrays = [pa.array(column, pa.large_string()) for column in columns]
                writer.write_batch(pa.record_batch(arrays, SCHEMA))
            told = json.dumps([problems.told, problems.number]).encode()
            none = pa.RecordBatch.from_pylist([], SCHEMA)
            writer.write_batch(none, custom_metadata={_PROBLEMS: told})
    except OSError as error:
        raise UserError(
            f"Large files are kept as Arrow in {path.parent}, which cannot be written "
            f"({error.strerror or error}): set KIF_CACHE to a folder that can."
        ) from error


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
    in_order = np.sort(np.fromiter(indices, np.int64))
    if isinstance(rows, RowTable):
        return rows.take(in_order)
    return tuple(rows[i] for i in in_order.tolist())


def output_codes(rows: Sequence[Row]) -> Sequence[Hashable]:
    """Something that is equal for equal outputs, for each row."""
    return rows.output_codes() if isinstance(rows, RowTable) else [row.output for row in rows]


def distinct_outputs(rows: Sequence[Row]) -> tuple[str, ...]:
    """The different outputs, sorted."""
    outputs = rows.distinct_outputs() if isinstance(rows, RowTable) else {r.output for r in rows}
    return tuple(sorted(outputs))
