"""Records of a data file, one after another, each with its place: JSON lines, CSV, TSV, Parquet.

A file is streamed: no more than a batch of it is in memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kif_lightning.errors import UserError

Record = dict[str, Any]
Records = Iterator[tuple[int, Record | UserError]]
"""(line number, or row number in Parquet, from 1; what stands there or what is wrong with it)."""

LONGEST_LINE = 2**26
"""Bytes; a longer line is refused rather than read into memory."""


def read_records(path: Path) -> Records:
    """The records of a file by its suffix; a bad one is given as the mistake and reading goes on.

    What makes the rest of the file unreadable is given as the last one.

    Raises:
        UserError: there is no such file, or its suffix is unknown.
    """
    if not path.is_file():
        raise UserError(f"Expected the rows of a split in {path}, but there is no such file.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: expected a file named {', '.join(_READERS)}.")
    return reader(path)


def _json_lines(path: Path) -> Records:
    for number, line in _lines(path):
        if isinstance(line, UserError):
            yield number, line
            continue
        text = line.strip(" \t\r\n")
        if not text:
            continue
        try:
            record, end = _decode(text)
            if end < len(text):
                raise _NotJSONError(f"more follows at character {end + 1}")
            if "\\ud" in text or "\\uD" in text:
                _require_whole_characters(record)
        except (ValueError, RecursionError) as error:
            why = f": {error}" if isinstance(error, _NotJSONError) else ""
            told = f"expected one JSON object, but it does not parse{why}"
            yield number, _wrong(path, number, told)
            continue
        if not isinstance(record, dict):
            kind = type(record).__name__
            yield number, _wrong(path, number, f"expected a JSON object, got a {kind}")
            continue
        yield number, record


class _NotJSONError(ValueError):
    """Accepted by Python's parser, but no JSON or of two meanings."""


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise _NotJSONError(f"the key '{doubled:.40}' stands there twice")
    return record


def _no_number(constant: str) -> None:
    raise _NotJSONError(f"{constant} is no JSON value")


def _require_whole_characters(record: Any) -> None:
    """JSON can spell half of a character (a surrogate), which no file can hold as text."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _NotJSONError("a surrogate stands there alone, half of a character") from error


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number).raw_decode


def _csv(path: Path) -> Records:
    return _table(path, csv.excel)


def _tsv(path: Path) -> Records:
    return _table(path, csv.excel_tab)


def _table(path: Path, dialect: type[csv.Dialect]) -> Records:
    """The first line names the columns."""
    csv.field_size_limit(LONGEST_LINE)
    problem: list[tuple[int, UserError]] = []

    def lines() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, UserError):
                problem.append((number, line))
                return
            yield line

    reader = csv.reader(lines(), dialect, strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            number, start = start, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(path, number, cells)
            elif len(cells) != len(header):
                told = f"expected {len(header)} columns as in the header, got {len(cells)}"
                yield number, _wrong(path, number, told)
            else:
                yield number, dict(zip(header, cells, strict=True))
    except UserError as error:
        problem = [(start, error)]
    except csv.Error as error:
        # A quote that is never closed swallows the file: the place it began is what helps.
        problem = problem or [(start, _wrong(path, start, f"the row is no CSV, {error}"))]
    yield from problem


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if len(set(names)) < len(names) or not all(names):
        told = f"expected a header of different column names, got {names!r:.80}"
        raise _wrong(path, number, told)
    return names


def _parquet(path: Path) -> Records:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pa.ArrowException, OSError, ValueError) as error:
        told = str(error).splitlines()[0][:120]
        yield number + 1, UserError(f"{path}, row {number + 1}: cannot be read as Parquet, {told}.")


_READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
SUFFIXES = tuple(_READERS)


def _lines(path: Path) -> Iterator[tuple[int, str | UserError]]:
    """Lines with their end; a line that is no UTF-8 is given as the mistake."""
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                told = f"the line is longer than {LONGEST_LINE // 2**20} MiB"
                yield number, _wrong(path, number, told)
                return
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                told = f"must be UTF-8: {error.reason} at byte {error.start} of the line"
                yield number, _wrong(path, number, told)


def _wrong(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}, line {number}: {what}.")


def place(path: Path, number: int) -> str:
    """Where a record stands, for messages."""
    return f"{path}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"
