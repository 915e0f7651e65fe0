"""Reading a split's rows, and drawing some of them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kif_lightning.benchmarks import rows
from kif_lightning.benchmarks.files import Record, Records
from kif_lightning.benchmarks.rows import limit_rows, read_split
from kif_lightning.benchmarks.table import RowTable
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from kif_lightning.seeding import generator

GOOD = '{"id": "1", "input": "Where?", "output": "Ü 雨"}'


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_rows_come_in_the_files_order_with_its_sha256(tmp_path: Path) -> None:
    second = '{"output": "", "extra": 3, "input": "a\\nb", "id": "2"}'
    content = f"{GOOD}\n\n  \n{second}"
    split = read_split(written(tmp_path, content))
    sha256 = split.sha256
    assert split.rows == (
        Row(id="1", input="Where?", output="Ü 雨"),
        Row(id="2", input="a\nb", output=""),
    )
    assert sha256 == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
def test_byte_order_mark_and_windows_lines_are_accepted(
    tmp_path: Path, prefix: bytes, end: bytes
) -> None:
    content = prefix + GOOD.encode() + end + GOOD.replace('"1"', '"2"').encode() + end
    split = read_split(written(tmp_path, content))
    sha256 = split.sha256
    assert [row.id for row in split.rows] == ["1", "2"]
    assert {row.output for row in split.rows} == {"Ü 雨"}
    assert sha256 == hashlib.sha256(content).hexdigest(), "of the file as it is"


def test_line_separators_within_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\u2029d"
    line = json.dumps({"id": "1", "input": text, "output": "x"}, ensure_ascii=False)
    assert read_split(written(tmp_path, line)).rows[0].input == text


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"id": "2", "output": "x"}', ["'input'", "id, output"]),
        ('{"id": "2", "input": "x"}', ["'output'", "id, input"]),
        ("{}", ["'id'", "none"]),
        ('{"id": "2", "input": ', ["does not parse"]),
        ("Where? yes", ["does not parse"]),
        ('["2", "Where?", "x"]', ["JSON object", "list"]),
        ('"text"', ["JSON object", "str"]),
        ('{"id": 2, "input": "x", "output": "y"}', ["'id'", "int", "2"]),
        ('{"id": "2", "input": null, "output": "y"}', ["'input'", "NoneType"]),
        ('{"id": "2", "input": "x", "output": ["y"]}', ["'output'", "list", "['y']"]),
        ('{"id": "2", "input": "x", "output": true}', ["'output'", "bool"]),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str, parts: list[str]) -> None:
    path = written(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(UserError) as error:
        read_split(path)
    message = str(error.value)
    for part in (f"{path}, line 3:", *parts):
        assert part in message
    assert "\n" not in message


def test_a_long_value_is_not_repeated_whole(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"id": list(range(9999)), "input": "", "output": ""}))
    with pytest.raises(UserError) as error:
        read_split(path)
    assert len(str(error.value)) < len(str(path)) + 200


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"", "holds no row"), (b"\n \r\n", "holds no row"), (GOOD.encode("utf-16"), "must be UTF-8"),
     (GOOD.encode("latin-1", "replace"), "must be UTF-8")],
    ids=["empty", "blank", "utf-16", "latin-1"],
)  # fmt: skip
def test_a_file_without_rows_is_named(tmp_path: Path, content: bytes, part: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=part) as error:
        read_split(path)
    assert str(path) in str(error.value)


def test_a_refused_file_is_closed_while_the_refusal_is_held() -> None:
    closed = []

    def records() -> Records:
        try:
            yield 1, {"id": "1", "input": "x", "output": "y"}
            yield 2, {}
            yield 3, {}
        finally:
            closed.append(True)

    with pytest.raises(UserError, match=r"^here 2: ") as error:
        list(rows.rows_of(records(), rows.plain_row, lambda number: f"here {number}"))
    assert closed == [True], error


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    with pytest.raises(UserError, match="no such file") as error:
        read_split(path)
    assert str(path) in str(error.value)


def rows_of(counts: dict[str, int]) -> list[Row]:
    """Rows of the classes one after another."""
    labels = [label for label, number in counts.items() for _ in range(number)]
    return [Row(id=str(i), input="", output=label) for i, label in enumerate(labels)]


def drawn(rows: list[Row], limit: int | None, seed: int = 0, *, balanced: bool) -> list[str]:
    return [r.id for r in limit_rows(rows, limit, balanced=balanced, generator=generator(seed))]


@pytest.mark.parametrize("balanced", [False, True])
def test_a_draw_is_a_function_of_the_seed(balanced: bool) -> None:
    rows = rows_of({"a": 40, "b": 40})
    first = drawn(rows, 20, 1, balanced=balanced)
    assert first == drawn(rows, 20, 1, balanced=balanced)
    assert first != drawn(rows, 20, 2, balanced=balanced)
    assert len(first) == len(set(first)) == 20
    assert first == sorted(first, key=int), "in the file's order"


@pytest.mark.parametrize("limit", [None, 5, 6])
@pytest.mark.parametrize("balanced", [False, True])
def test_no_limit_or_enough_of_it_keeps_all(limit: int | None, balanced: bool) -> None:
    rows = rows_of({"a": 4, "b": 1})
    assert drawn(rows, limit, balanced=balanced) == [row.id for row in rows]


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 9, 12, 14, 16, 26])
@pytest.mark.parametrize("seed", range(3))
def test_classes_are_equal_and_short_ones_leave_their_share(limit: int, seed: int) -> None:
    there = {"a": 20, "b": 5, "short": 2}
    rows = rows_of(there)
    counts = Counter(rows[int(name)].output for name in drawn(rows, limit, seed, balanced=True))
    assert counts.total() == limit
    # A class is behind the largest by more than one row only if it has no more rows.
    for label, number in there.items():
        assert counts[label] == number or counts[label] >= max(counts.values()) - 1


def test_an_unbalanced_draw_is_uniform() -> None:
    rows = rows_of({"a": 9, "b": 1})
    hits = Counter(name for seed in range(600) for name in drawn(rows, 5, seed, balanced=False))
    # Each of 10 rows is in with chance 1/2: 300 +- 12; five deviations.
    assert all(240 <= hits[row.id] <= 360 for row in rows)


def test_within_a_class_the_draw_is_uniform() -> None:
    rows = rows_of({"a": 10, "b": 2})
    hits = Counter(name for seed in range(600) for name in drawn(rows, 4, seed, balanced=True))
    # Two of ten: 120 +- 10; five deviations.
    assert all(70 <= hits[str(i)] <= 170 for i in range(10))
    assert hits["10"] == hits["11"] == 600


# Large files: their rows are kept in Arrow on the disk.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every file is large; where their rows are kept."""
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def many(folder: Path, number: int = 300) -> Path:
    lines = [json.dumps({"id": f"{i}", "input": f"{i}?", "output": "é"}) for i in range(number)]
    return written(folder, "\n".join(lines))


@pytest.mark.parametrize(("batch_rows", "batch_characters"), [(10_000, 2**23), (7, 2**23), (99, 9)])
def test_large_files_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, batch_characters: int
) -> None:
    path = many(tmp_path)
    held = read_split(path)
    monkeypatch.setattr(rows, "BYTES_A_ROW", 0)
    monkeypatch.setattr(rows, "IN_MEMORY", path.stat().st_size)
    assert isinstance(read_split(path).rows, tuple), "of this size still in memory"
    monkeypatch.setattr(rows, "IN_MEMORY", path.stat().st_size - 1)
    monkeypatch.setattr(rows, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(rows, "BATCH_CHARACTERS", batch_characters)
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    large = read_split(path)
    assert isinstance(large.rows, RowTable)
    assert (tuple(large.rows), large.sha256, large.problems) == (held.rows, held.sha256, ())


def test_a_large_file_is_parsed_once(tmp_path: Path, cache: Path) -> None:
    seen = []

    def make(record: Record, number: int) -> Row:
        seen.append(number)
        return rows.plain_row(record, number)

    path = many(tmp_path)
    first = read_split(path, make, settings="a")
    again = read_split(path, make, settings="a")
    assert list(first.rows) == list(again.rows)
    assert seen == list(range(1, 301))
    # Another layout, other bytes or another kind of file is another reading.
    read_split(path, make, settings="b")
    assert len(seen) == 600
    many(tmp_path, 301)
    assert len(read_split(path, make, settings="a").rows) == 301
    assert len(list(cache.iterdir())) == 3


def test_the_same_bytes_under_another_suffix_are_read_anew(tmp_path: Path, cache: Path) -> None:
    line = f"{GOOD}\n"
    assert len(read_split(written(tmp_path, line)).rows) == 1
    path = tmp_path / "train.csv"
    path.write_text(line)
    with pytest.raises(UserError, match="holds no row"):
        read_split(path)


def test_a_tolerant_reading_never_feeds_a_strict_one(tmp_path: Path, cache: Path) -> None:
    path = written(tmp_path, f"{GOOD}\n{{}}\n{GOOD}")
    for _ in range(2):
        split = read_split(path, tolerant=True)
        assert len(split.rows) == 2
        assert ["line 2" in problem for problem in split.problems] == [True]
        with pytest.raises(UserError, match="line 2"):
            read_split(path)


def test_an_interrupted_reading_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    def interrupted(record: Record, number: int) -> Row:
        if number == 200:
            raise KeyboardInterrupt
        return rows.plain_row(record, number)

    path = many(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        read_split(path, interrupted)
    assert list(cache.iterdir()) == []
    assert len(read_split(path).rows) == 300


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, cache: Path) -> None:
    cache.parent.touch()
    with pytest.raises(UserError, match=r"cannot be written.*set KIF_CACHE") as error:
        read_split(many(tmp_path))
    assert str(cache) in str(error.value)


def test_a_full_disk_is_told(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rows.pa.ipc, "new_stream", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        read_split(many(tmp_path))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("large", [False, True])
def test_tolerant_reading_counts_each_bad_row_and_tells_the_first(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(rows, "IN_MEMORY", 0 if large else 2**26)
    split = read_split(written(tmp_path, "{}\n" * 3), tolerant=True)
    assert (len(split.rows), len(split.problems), split.num_problems) == (0, 3, 3)
    path = written(tmp_path, f"{GOOD}\n" + "{}\n" * 2000 + GOOD)
    for _ in range(2):  # the second time from the cache, where large
        split = read_split(path, tolerant=True)
        assert len(split.rows) == 2, "good rows behind bad ones are read"
        assert (len(split.problems), split.num_problems) == (rows.MOST_PROBLEMS, 2000)
        assert "line 2:" in split.problems[0]
        assert "line 1001:" in split.problems[-1]


def test_problems_of_a_copy_name_the_copy(tmp_path: Path, cache: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        path = written(tmp_path / name, f"{GOOD}\n{{}}")
        assert str(path) in read_split(path, tolerant=True).problems[0]


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_an_empty_split_to_the_tolerant(tmp_path: Path, content: str) -> None:
    split = read_split(written(tmp_path, content), tolerant=True)
    assert (tuple(split.rows), split.problems, split.num_problems) == ((), (), 0)


@pytest.mark.parametrize("tolerant", [False, True])
def test_damaged_rows_in_the_cache_are_made_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tolerant: bool
) -> None:
    monkeypatch.setattr(rows, "BATCH_ROWS", 100)
    path = many(tmp_path)
    expected = list(read_split(path, tolerant=tolerant).rows)
    (stored,) = cache.iterdir()
    whole = stored.read_bytes()
    rng = random.Random(0)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(40)]
    without_problems = rows.RowTable.mapped(stored).table.replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, without_problems.schema) as writer:
        writer.write_table(without_problems.slice(0, 200))  # whole batches, some are missing
    for content in (b"", whole[:-8] + b"garbage!", *damaged, sink.getvalue().to_pybytes()):
        stored.write_bytes(content)
        assert list(read_split(path, tolerant=tolerant).rows) == expected
    stored.unlink()
    stored.mkdir()
    with pytest.raises(UserError, match="set KIF_CACHE"):
        read_split(path, tolerant=tolerant)


def test_what_is_in_the_cache_is_not_written_again(tmp_path: Path, cache: Path) -> None:
    path = many(tmp_path)
    for tolerant in (False, True):
        read_split(path, tolerant=tolerant)
        before = {file: file.stat().st_ino for file in cache.iterdir()}
        read_split(path, tolerant=tolerant)
        assert {file: file.stat().st_ino for file in cache.iterdir()} == before


@pytest.mark.parametrize("large", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(rows, "IN_MEMORY", 0 if large else 2**26)
    path = many(tmp_path)
    content, digest = path.read_bytes(), hashlib.file_digest

    def replaced(*given: Any) -> Any:
        found = digest(*given)
        path.write_bytes(content.replace(b"7?", b"8?"))
        os.utime(path, ns=(1, 1))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", replaced)
        with pytest.raises(UserError, match="changed while it was read"):
            read_split(path)
    path.write_bytes(content)
    assert read_split(path).rows[7].input == "7?"


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refused)
    with pytest.raises(UserError, match=r"train\.jsonl cannot be read \(Permission denied\)"):
        read_split(many(tmp_path))


def test_a_small_file_of_large_rows_goes_to_the_disk(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.parquet"
    columns = [pa.array([f"{i}" for i in range(500)]), *[pa.array(["long " * 99] * 500)] * 2]
    pq.write_table(pa.table(columns, names=["id", "input", "output"]), path)
    monkeypatch.setattr(rows, "IN_MEMORY", 10 * path.stat().st_size)
    seen = []

    def make(record: Record, number: int) -> Row:
        seen.append(number)
        return rows.plain_row(record, number)

    for _ in range(2):
        held = read_split(path, make).rows
        assert isinstance(held, RowTable)
        assert [row.id for row in held] == [f"{i}" for i in range(500)]
    assert seen == list(range(1, 501)), "each row once"
