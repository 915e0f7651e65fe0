"""Rows in Arrow: as many as the disk holds, as few in memory as are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kif_lightning.interfaces import Row

SCHEMA = pa.schema([(name, pa.large_string()) for name in ("id", "input", "output")])


class RowTable(Sequence[Row]):
    """Rows of an Arrow table with the text columns id, input, output.

    Args:
        table: N rows, in memory or mapped from a file.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.select(SCHEMA.names)

    @classmethod
    def mapped(cls, path: Path) -> RowTable:
        """The rows of an Arrow stream file, read from the disk as they are looked at."""
        with pa.memory_map(str(path)) as source:
            return cls(pa.ipc.open_stream(source).read_all())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> RowTable: ...

    def __getitem__(self, index: int | slice) -> Row | RowTable:
        if isinstance(index, slice):
            places = range(len(self))[index]
            if places.step == 1:
                return RowTable(self.table.slice(places.start, len(places)))
            return RowTable(self.table.take(pa.array(places, pa.int64())))
        index = range(len(self))[index]
        return Row(**{name: self.table[name][index].as_py() for name in SCHEMA.names})

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=1000):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Row(id=values[0], input=values[1], output=values[2])

    def take(self, indices: Sequence[int]) -> RowTable:
        """The rows at those places, which ascend."""
        # Taking from the whole table would first copy it into one piece.
        places, taken, start = np.asarray(indices, dtype=np.int64), [], 0
        for batch in self.table.to_batches():
            first, last = np.searchsorted(places, [start, start + batch.num_rows])
            taken.append(batch.take(pa.array(places[first:last] - start)))
            start += batch.num_rows
        return RowTable(pa.Table.from_batches(taken, self.table.schema))

    def output_codes(self) -> list[int]:
        """A number for each row, equal for equal outputs."""
        encoded = self.table["output"].combine_chunks().dictionary_encode()
        codes: list[int] = encoded.indices.to_pylist()
        return codes

    def distinct_outputs(self) -> list[str]:
        """The different outputs."""
        outputs: list[str] = pc.unique(self.table["output"]).to_pylist()
        return outputs
