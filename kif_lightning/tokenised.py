"""Tokenised rows in Arrow: a few bytes a token, on the disk where there are many.

Shapes: R rows.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from kif_lightning import ranks
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Backbone, Example, Row
from kif_lightning.paths import cache_dir
from kif_lightning.storage import replacing

IN_MEMORY = 2**26
"""Characters of rows up to which their token ids are held in memory; more: on the disk."""
BATCH_ROWS, BATCH_CHARACTERS = 1000, 2**20
"""Rows tokenised together: many enough for speed, few enough for what a tokenizer keeps of each."""
SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in ("prompt_ids", "answer_ids")])
_VERSION = 1
_WHOLE = b"crc32"

Lengths = np.ndarray[Any, np.dtype[np.int32]]
Places = np.ndarray[Any, np.dtype[np.int64]]


class TokenisedRows:
    """Examples that are made as they are looked at, of token ids held in Arrow; immutable.

    Args:
        batches: of :data:`SCHEMA`, in memory or mapped from a file.
        places: (R,) which of their rows, in which order; the ids are not copied. None: all.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], places: Places | None = None) -> None:
        self._batches = tuple(batches)
        self._ends = list(accumulate(batch.num_rows for batch in self._batches))
        # Views of Arrow's own memory: (offsets, ids) of each batch, by column.
        self._columns = [
            [(c.offsets.to_numpy(), c.values.to_numpy()) for c in map(column, self._batches)]
            for column in (lambda batch: batch.column(0), lambda batch: batch.column(1))
        ]
        self._places = places

    @classmethod
    def of(cls, examples: Sequence[Example]) -> TokenisedRows:
        """Examples that were made one by one."""
        return cls([_as_batch(examples)])

    def __len__(self) -> int:
        return self._num_held if self._places is None else len(self._places)

    @property
    def _num_held(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Example]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        place = index if self._places is None else int(self._places[index])
        batch = bisect_right(self._ends, place)
        row = place - (self._ends[batch - 1] if batch else 0)
        prompt, answer = (_row(*column[batch], row) for column in self._columns)
        return Example(prompt_ids=prompt, answer_ids=answer)

    @cached_property
    def prompt_lengths(self) -> Lengths:
        """(R,) tokens of each prompt, without making examples."""
        return self._lengths(0)

    @cached_property
    def answer_lengths(self) -> Lengths:
        """(R,) tokens of each answer, its end token included, without making examples."""
        return self._lengths(1)

    def _lengths(self, column: int) -> Lengths:
        found = [np.diff(offsets) for offsets, _ in self._columns[column]]
        lengths: Lengths = np.concatenate([np.empty(0, np.int32), *found])
        return lengths if self._places is None else lengths[self._places]

    @property
    def nbytes(self) -> int:
        """Bytes of the token ids and of where each row's begin, in memory or on the disk."""
        return sum(batch.nbytes for batch in self._batches)

    def take(self, indices: Sequence[int] | Places) -> TokenisedRows:
        """The rows at those places, in that order."""
        places = np.asarray(indices, dtype=np.int64)
        return TokenisedRows(
            self._batches, places if self._places is None else self._places[places]
        )

    def followed_by(self, others: TokenisedRows) -> TokenisedRows:
        """These rows, then the others; no id is copied."""
        mine, theirs = (
            np.arange(len(rows)) if rows._places is None else rows._places
            for rows in (self, others)
        )
        places = np.concatenate([mine, theirs + self._num_held])
        return TokenisedRows([*self._batches, *others._batches], places)


def tokenised(backbone: Backbone, rows: Sequence[Row]) -> TokenisedRows:
    """All rows as ``backbone.encode`` gives them, made in batches.

    Many rows go to a file in the cache, and come from there the next time; to memory all the same
    where the backbone cannot name what decides their ids. Several processes may make the same file:
    each writes its own, which takes the place of the other's once it is whole.

    Args:
        backbone: tokenises.
        rows: read from their beginning to their end, a batch in memory.

    Raises:
        UserError: the cache cannot be written.
    """
    fingerprint = backbone.encoding_fingerprint() if _many(rows) else None
    if fingerprint is None:
        return TokenisedRows(list(_batches(backbone, rows)))
    file = cache_dir() / "tokens" / f"{_key(fingerprint, rows)}.arrow"
    # What cannot be read back counts as not there.
    with suppress(OSError, pa.ArrowException, ValueError, KeyError):
        return _stored(file)
    try:
        with replacing(file) as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
            checksum = 0
            for batch in _batches(backbone, rows):
                writer.write_batch(batch)
                checksum = _checksum(batch, checksum)
            # Stands with the last batch: without it the file is not whole.
            told = {_WHOLE: str(checksum).encode()}
            writer.write_batch(_as_batch([]), custom_metadata=told)
    except OSError as error:
        raise UserError(
            f"Token ids of many rows are kept in {file.parent}, which cannot be written "
            f"({error.strerror or error}): set KIF_CACHE to a folder that can."
        ) from error
    return _stored(file)


def _many(rows: Sequence[Row]) -> bool:
    weights = accumulate(len(row.input) + len(row.output) for row in rows)
    return any(weight > IN_MEMORY for weight in weights)


def _key(fingerprint: str, rows: Sequence[Row]) -> str:
    """Of everything that decides the token ids."""
    digest = hashlib.sha256(json.dumps([_VERSION, fingerprint]).encode())
    for row in rows:
        digest.update(repr((row.input, row.output)).encode())
    return digest.hexdigest()[:32]


def _batches(backbone: Backbone, rows: Sequence[Row]) -> Iterator[pa.RecordBatch]:
    hidden = not (sys.stderr.isatty() and ranks.is_first())
    bar = tqdm(total=len(rows), desc="tokenising", unit="row", disable=hidden, leave=False, delay=2)
    with bar:
        for some in _parts(rows):
            yield _as_batch(backbone.encode_rows(some))
            bar.update(len(some))


def _parts(rows: Sequence[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    characters = 0
    for row in rows:
        part.append(row)
        characters += len(row.input) + len(row.output)
        if len(part) == BATCH_ROWS or characters > BATCH_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _as_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    ids = [[e.prompt_ids for e in examples], [e.answer_ids for e in examples]]
    arrays = [pa.array(column, field.type) for column, field in zip(ids, SCHEMA, strict=True)]
    return pa.record_batch(arrays, SCHEMA)


def _stored(path: Path) -> TokenisedRows:
    """The rows of a whole file, mapped.

    Raises:
        OSError: there is no such file.
        KeyError: it is not whole.
        ValueError: it is damaged; pyarrow's own errors too.
    """
    batches, told, checksum = [], None, 0
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        for batch, told in reader.iter_batches_with_custom_metadata():  # noqa: B007
            batch.validate(full=True)
            if batch.num_rows:  # the last has none
                checksum = _checksum(batch, checksum)
                batches.append(batch)
    if int(dict(told or {})[_WHOLE]) != checksum:
        raise ValueError(f"{path} is damaged")
    return TokenisedRows(batches)


def _checksum(batch: pa.RecordBatch, so_far: int) -> int:
    for column in batch.columns:
        for numbers in (column.offsets.to_numpy(), column.values.to_numpy()):
            so_far = zlib.crc32(numbers, so_far)
    return so_far


def _row(offsets: Any, ids: Any, row: int) -> list[int]:
    found: list[int] = ids[offsets[row] : offsets[row + 1]].tolist()
    return found
