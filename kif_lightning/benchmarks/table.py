"""Rows in Arrow: as many as the disk holds, as few in memory as are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kif_lightning.interfaces import Row

SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "input", "output")])


Places = np.ndarray[Any, np.dtype[np.int64]]


class RowTable(Sequence[Row]):
    """Rows of an Arrow table with the text columns id, input, output.

    Args:
        table: in memory or mapped from a file.
        places: (N,) ascending, which of its rows; they are not copied out of it. None: all.
    """

    def __init__(self, table: pa.Table, places: Places | None = None) -> None:
        self.table = table.select(SCHEMA.names)
        self._places = places

    @classmethod
    def mapped(cls, path: Path) -> RowTable:
        """The rows of an Arrow stream file, read from the disk as they are looked at."""
        batches, told = [], None
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch, told in reader.iter_batches_with_custom_metadata():  # noqa: B007
                batches.append(batch)
            table = pa.Table.from_batches(batches, reader.schema)
        # What the last batch says of all.
        return cls(table if told is None else table.replace_schema_metadata(dict(told)))

    def __len__(self) -> int:
        return int(self.table.num_rows) if self._places is None else len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> RowTable: ...

    def __getitem__(self, index: int | slice) -> Row | RowTable:
        if isinstance(index, slice):
            places = range(len(self))[index]
            if self._places is None and places.step == 1:
                return RowTable(self.table.slice(places.start, len(places)))
            if places.step > 0:
                return self.take(places)
            return RowTable(self.table.take(pa.array(self._in_table(places))))
        index = range(len(self))[index]
        if self._places is not None:
            index = int(self._places[index])
        return Row(**{name: self.table[name][index].as_py() for name in SCHEMA.names})

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches():
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Row(id=values[0], input=values[1], output=values[2])

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """The rows, some at a time."""
        start = 0
        for batch in self.table.to_batches(max_chunksize=1000):
            if self._places is None:
                yield batch
                continue
            first, last = np.searchsorted(self._places, [start, start + batch.num_rows])
            yield batch.take(pa.array(self._places[first:last] - start))
            start += batch.num_rows

    def take(self, indices: Sequence[int] | Places) -> RowTable:
        """The rows at those places, which ascend."""
        return RowTable(self.table, self._in_table(indices))

    def _in_table(self, indices: Sequence[int] | Places) -> Places:
        places = np.asarray(indices, dtype=np.int64)
        return places if self._places is None else self._places[places]

    def output_codes(self) -> list[int]:
        """A number for each row, equal for equal outputs."""
        encoded = self.table["output"].combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy()
        found: list[int] = (codes if self._places is None else codes[self._places]).tolist()
        return found

    def distinct_outputs(self) -> list[str]:
        """The different outputs."""
        found: set[str] = set()
        for batch in self._batches():
            found.update(pc.unique(batch["output"]).to_pylist())
        return list(found)
