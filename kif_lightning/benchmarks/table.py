"""Rows in Arrow: as many as the disk holds, as few in memory as are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa

from kif_lightning.interfaces import Row

SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "input", "output")])


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
            return self.take(range(*index.indices(len(self))))
        index = range(len(self))[index]
        return Row(**{name: self.table[name][index].as_py() for name in SCHEMA.names})

    def __iter__(self) -> Iterator[Row]:
        for batch in self.table.to_batches(max_chunksize=1000):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield Row(id=values[0], input=values[1], output=values[2])

    def take(self, indices: Sequence[int]) -> RowTable:
        """The rows at those places, in that order."""
        return RowTable(self.table.take(pa.array(indices, pa.int64())))

    def outputs(self) -> list[str]:
        """All outputs."""
        column: list[str] = self.table["output"].to_pylist()
        return column
