"""Rows in Arrow act as a tuple of rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from kif_lightning.benchmarks.rows import write_arrow
from kif_lightning.benchmarks.table import SCHEMA, RowTable
from kif_lightning.interfaces import Row

ROWS = tuple(Row(id=f"{i}", input=f"Ü\n{i}", output="abc"[i % 3]) for i in range(25))


def pieces(rows: tuple[Row, ...], size: int) -> RowTable:
    columns = [[getattr(row, name) for row in rows] for name in SCHEMA.names]
    whole = pa.Table.from_arrays([pa.array(c, pa.large_string()) for c in columns], schema=SCHEMA)
    return RowTable(pa.Table.from_batches(whole.to_batches(max_chunksize=size)))


@pytest.fixture(params=[(25, 1), (7, 1), (1, 1), (75, 3), (8, 3), (8, 6)], ids=str)
def table(request: pytest.FixtureRequest) -> RowTable:
    """The rows in pieces; where every n-th row of a larger table, taken once or twice."""
    size, every = request.param
    if every == 1:
        return pieces(ROWS, size)
    other = Row(id="other", input="", output="other")
    larger = tuple(r for row in ROWS for r in (other, row, *[other] * (every - 2)))
    taken = pieces(larger, size)
    if every == 6:
        taken = taken.take([i for i in range(len(larger)) if i % 6 in (1, 3)])
        return taken[::2]
    return taken.take(range(1, len(larger), every))


def test_taken_rows_are_not_copied() -> None:
    rows = pieces(tuple(Row(id=f"{i}", input="x" * 1000, output="") for i in range(2000)), 500)
    before = pa.total_allocated_bytes()
    part = rows.take(range(0, 2000, 2))
    assert pa.total_allocated_bytes() - before < 100_000
    assert [row.id for row in part] == [f"{i}" for i in range(0, 2000, 2)]


def test_it_is_the_sequence_of_its_rows(table: RowTable) -> None:
    assert len(table) == 25
    assert tuple(table) == ROWS
    assert tuple(reversed(table)) == ROWS[::-1]
    assert (table[0], table[24], table[-1], table[-25]) == (ROWS[0], ROWS[24], ROWS[24], ROWS[0])
    for part in (slice(None), slice(3, 9), slice(-2, None), slice(20, 2, -3), slice(9, 3)):
        assert tuple(table[part]) == ROWS[part]
    for outside in (25, -26):
        with pytest.raises(IndexError):
            table[outside]


@pytest.mark.parametrize("places", [[], [0], [24], [6, 7, 8], [0, 13, 14, 24], list(range(25))])
def test_rows_are_taken_in_order(table: RowTable, places: list[int]) -> None:
    assert tuple(table.take(places)) == tuple(ROWS[i] for i in places)


def test_outputs_are_told_apart_across_pieces(table: RowTable) -> None:
    codes = table.output_codes()
    assert len(codes) == 25
    same = [[a == b for b in codes] for a in codes]
    assert same == [[a.output == b.output for b in ROWS] for a in ROWS]
    assert sorted(table.distinct_outputs()) == ["a", "b", "c"]


@pytest.mark.parametrize("number", [0, 1, 25])
def test_a_file_gives_back_what_was_written(tmp_path: Path, number: int) -> None:
    path = tmp_path / "new" / "rows.arrow"
    write_arrow(path, iter(ROWS[:number]))
    table = RowTable.mapped(path)
    assert tuple(table) == ROWS[:number]
    assert (len(table), table.output_codes() == [], tuple(table.take([]))) == (
        number,
        number == 0,
        (),
    )
    assert [file.name for file in path.parent.iterdir()] == ["rows.arrow"]
