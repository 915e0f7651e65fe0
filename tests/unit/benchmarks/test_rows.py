"""Reading a split's rows, and drawing some of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from kif_lightning.benchmarks.rows import limit_rows, read_split
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
    rows, sha256 = split.rows, split.sha256
    assert rows == (
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
    rows, sha256 = split.rows, split.sha256
    assert [row.id for row in rows] == ["1", "2"]
    assert {row.output for row in rows} == {"Ü 雨"}
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
