"""Records of a data file, one after another, each with its place: JSON lines, CSV, TSV, Parquet.

A file is streamed: no more than a batch of it is in memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kif_lightning.errors import UserError

Record = dict[str, Any]
Records = Generator[tuple[int, Record | UserError], None, None]
"""(line number, or row number in Parquet, from 1; what stands there or what is wrong with it)."""

LONGEST_LINE = 2**26
"""Bytes; a longer line is refused rather than read into memory."""


def read_records(path: Path) -> Records:
    """The records of a file by its suffix; a bad one is given as the mistake and reading goes on.

    What makes the rest of the file unreadable (a wrong header, a damaged Parquet file) is given as
    the last one.

    Raises:
        UserError: there is no such file, or its suffix is unknown.
    """
    if not path.is_file():
        raise UserError(f"Expected the rows of a split in {path}, but there is no such file.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: expected a file named {', '.join(_READERS)}.")
    return reader(path)


def read_lines(path: Path) -> Records:
    """The lines of a text, each as the ``input`` of a record; a blank one is a mistake."""
    for number, line in _lines(path):
        if isinstance(line, UserError):
            yield number, line
            continue
        try:
            text = line.decode(_encoding(number)).rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield number, _not_utf8(path, number, error)
        else:
            blank = _wrong(path, number, "the line is blank; expected a prompt")
            yield number, {"input": text} if text.strip() else blank


def read_json_lines(path: Path) -> Records:
    """A JSON object of each line that is not blank, whatever the file is called."""
    for number, line in _lines(path):
        if isinstance(line, UserError):
            yield number, line
            continue
        try:
            text = line.decode(_encoding(number)).strip(" \t\r\n")
            if not text:
                continue
            record, end = _decode(text)
            if end < len(text):
                raise _NotJSONError(f"more follows at character {end + 1}")
            if "\\u" in text and "\\ud" in text.lower():  # one scan of most lines
                _require_whole_characters(record)
        except UnicodeDecodeError as error:
            yield number, _not_utf8(path, number, error)
        except (ValueError, RecursionError) as error:
            told = f"expected one JSON object, but it does not parse{_why(text, error)}"
            yield number, _wrong(path, number, told)
        else:
            if isinstance(record, dict):
                yield number, record
            else:
                kind = type(record).__name__
                yield number, _wrong(path, number, f"expected a JSON object, got a {kind}")


def _why(text: str, error: Exception) -> str:
    if text in ("[", "{"):
        return ": each object must stand whole on a line of its own"
    if isinstance(error, json.JSONDecodeError):
        return f": {error.msg} at character {error.pos + 1}"
    if isinstance(error, _NotJSONError):
        return f": {error}"
    # What Python cannot hold.
    deep = isinstance(error, RecursionError)
    return f": {'it is nested too deep' if deep else 'a number has too many digits'}"


class _NotJSONError(ValueError):
    """Accepted by Python's parser, but no JSON or of two meanings."""


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _NotJSONError(f"the key {name!r:.40} stands there twice")
            seen.add(name)
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
    damaged: list[UserError] = []

    def lines() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, UserError):
                damaged.append(line)
                yield "\n"
                continue
            try:
                yield line.decode(_encoding(number))
            except UnicodeDecodeError as error:
                damaged.append(_not_utf8(path, number, error))
                # The row is refused; its quotes still tell where it ends.
                yield line.decode(errors="replace")

    reader = csv.reader(lines(), dialect, strict=True)
    header: list[str] | None = None
    start = 1
    while True:
        damaged.clear()
        cells, told = None, ""
        try:
            cells = next(reader, None)
        except csv.Error as error:
            # A quote that is never closed swallows the file: the place it began is what helps.
            told = f"the row is no {path.suffix[1:].upper()}, {_mistake(error)}"
        if cells is None and not told:
            return
        number, start = start, reader.line_num + 1
        if header is None and cells and not damaged:
            header = cells = [cell.strip() for cell in cells]
            told = _header_mistake(header)
            if not told:
                continue
        elif header is not None and cells and len(cells) != len(header):
            told = f"expected {len(header)} columns as in the header, got {len(cells)}"
        if damaged or told:
            yield number, damaged[0] if damaged else _wrong(path, number, told)
            if header is None or header is cells:
                return
        elif cells and header is not None:
            yield number, dict(zip(header, cells, strict=True))


def _mistake(error: csv.Error) -> str:
    told = str(error)
    if told.startswith("new-line"):
        return "a carriage return stands there alone: end lines with line feeds"
    if "end of data" in told:
        return "a quote that begins in it is never closed"
    if "expected after" in told:
        return "text follows a closing quote: a quote within a quoted cell is written twice"
    return told


def _header_mistake(names: list[str]) -> str:
    if len(set(names)) < len(names) or not all(names):
        return f"expected a header of different column names, got {names!r:.80}"
    if len(names) == 1 and set(names[0]) & set(";\t,"):
        told = "expected commas (.csv) or tabs (.tsv) between column names, got"
        return f"{told} {names[0]!r:.80}: save the file so"
    return ""


def _parquet(path: Path) -> Records:
    number = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                told = f"{path}: expected different column names, got {names!r:.80}."
                yield 1, UserError(told)
                return
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    # Overflow: a date that Python cannot hold.
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        told = " ".join(str(error).split())[:120]
        yield (
            number + 1,
            UserError(f"{path}, from row {number + 1} on: cannot be read as Parquet ({told})."),
        )


_READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_lines,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
SUFFIXES = tuple(_READERS)


def _lines(path: Path) -> Iterator[tuple[int, bytes | UserError]]:
    """Lines with their end; one that is too long is given as the mistake, and passed over."""
    with path.open("rb") as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) <= LONGEST_LINE:
                yield number, line
                continue
            told = f"the line is longer than {LONGEST_LINE // 2**20} MiB"
            yield number, _wrong(path, number, told)
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)


def _encoding(number: int) -> str:
    """Of a line; a byte order mark may precede the first."""
    return "utf-8-sig" if number == 1 else "utf-8"


def _not_utf8(path: Path, number: int, error: UnicodeDecodeError) -> UserError:
    told = f"must be UTF-8, but {error.reason} at byte {error.start + 1} of the line"
    return _wrong(path, number, f"{told}: save the file in that encoding")


def _wrong(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}, line {number}: {what}.")


def place(path: Path, number: int) -> str:
    """Where a record stands, for messages."""
    return f"{path}, {'row' if path.suffix.lower() == '.parquet' else 'line'} {number}"


def named(names: Iterable[str]) -> str:
    """Names for a message of one line, not too many."""
    shown = [name if name.isprintable() else repr(name) for name in islice(names, 13)]
    return (", ".join(shown[:12])[:200] + (", ..." if len(shown) > 12 else "")) or "none"
