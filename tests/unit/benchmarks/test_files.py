"""Records of data files, and what is said of those that cannot be read."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kif_lightning.benchmarks import files
from kif_lightning.benchmarks.files import named, read_records
from kif_lightning.errors import UserError


def records(folder: Path, name: str, content: str | bytes) -> list[tuple[int, Any]]:
    """Mistakes as texts, without the file's path."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [
        (number, str(found).removeprefix(f"{path}, ") if isinstance(found, UserError) else found)
        for number, found in read_records(path)
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\n"a, ""b""\nc",1\n'),
        ("a.CSV", '\ufefftext , label\r\n"a, ""b""\nc",1'),
        ("a.tsv", 'text\tlabel\n"a, ""b""\nc"\t1\n'),
        ("a.jsonl", '{"text": "a, \\"b\\"\\nc", "label": "1"}'),
        ("a.ndjson", '\n{"text": "a, \\"b\\"\\nc", "label": "1"}\n'),
        ("a.json", '{"text": "a, \\"b\\"\\nc", "label": "1"}\n'),
    ],
)
def test_the_same_record_in_every_kind_of_text(tmp_path: Path, name: str, content: str) -> None:
    ((_, record),) = records(tmp_path, name, content)
    assert record == {"text": 'a, "b"\nc', "label": "1"}


def test_parquet_keeps_types_and_counts_rows(tmp_path: Path) -> None:
    rows = [{"text": "ü", "label": i, "more": [{"a": None}]} for i in range(2500)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=700)
    assert list(read_records(path)) == list(enumerate(rows, start=1))


def test_cells_are_texts_as_they_stand_there(tmp_path: Path) -> None:
    ((number, record),) = records(tmp_path, "a.csv", "a,b,c\n\n 01 ,,NaN\n")
    assert (number, record) == (3, {"a": " 01 ", "b": "", "c": "NaN"})


def test_reading_goes_on_after_a_wrong_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    content = b'a,b\n1\n"x"y,2\n\xff,"\n"\n' + b"%s,3\n4,5\n" % (b"z" * 9000)
    found = records(tmp_path, "a.csv", content)
    assert [number for number, _ in found] == [2, 3, 4, 6, 7]
    assert found[-1][1] == {"a": "4", "b": "5"}
    for (_, told), part in zip(
        found[:-1],
        ["line 2: expected 2 columns as in the header, got 1", "line 3: the row is no CSV, text",
         "line 4: must be UTF-8, but invalid start byte at byte 1", "line 6: the line is longer"],
        strict=True,
    ):  # fmt: skip
        assert told.startswith(part)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", "a,a\n1,2\n", "line 1: expected a header of different column names"),
        ("a.csv", "a,\n1,2\n", "line 1: expected a header of different column names"),
        ("a.csv", "a;b\n1;2\n", "line 1: expected commas (.csv) or tabs (.tsv)"),
        ("a.csv", "a\tb\n1\t2\n", "line 1: expected commas (.csv) or tabs (.tsv)"),
        ("a.tsv", "a,b\n1,2\n", "line 1: expected commas (.csv) or tabs (.tsv)"),
        ("a.csv", 'a,"b\n1,2\n', "line 1: the row is no CSV, a quote that begins in it is never"),
        ("a.csv", "a,b\r1,2\r", "line 1: the row is no CSV, a carriage return stands there alone"),
        ("a.csv", "é,b\n1,2\n".encode("cp1252"), "line 1: must be UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "line 1: must be UTF-8"),
    ],
)
def test_a_wrong_header_is_all_that_is_told(
    tmp_path: Path, name: str, content: str | bytes, part: str
) -> None:
    ((_, told),) = records(tmp_path, name, content)
    assert told.startswith(part)
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("[", "each object must stand whole on a line of its own"),
        ('[{"a": 1}]', "expected a JSON object, got a list"),
        ('{"a": 1,}', "at character 9"),
        ('{"a": 1} {"a": 2}', "more follows at character 9"),
        ('{"a": NaN}', "NaN is no JSON value"),
        ('{"a": {"b\\n": 1, "b\\n": 2}}', "the key 'b\\n' stands there twice"),
        ('{"a": "\\ud83d"}', "half of a character"),
        ("[" * 100_000, "nested too deep"),
        (f'{{"a": {"1" * 5000}}}', "too many digits"),
    ],
)
def test_what_is_no_json_is_told(tmp_path: Path, line: str, part: str) -> None:
    ((number, told), last) = records(tmp_path, "a.jsonl", f'{line}\n{{"a": 1}}')
    assert (number, last) == (1, (2, {"a": 1}))
    assert told.startswith("line 1: expected ")
    assert part in told
    assert told.isprintable()


def test_both_halves_of_a_character_are_one(tmp_path: Path) -> None:
    assert records(tmp_path, "a.jsonl", '{"a": "\\uD83D\\uDE00"}') == [(1, {"a": "😀"})]


def test_what_parquet_cannot_give_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    dates = pa.array([0, 2**30], pa.date32())
    pq.write_table(pa.table({"a": dates}), path)
    ((_, told),) = read_records(path)
    assert "from row 1 on: cannot be read as Parquet" in str(told)
    pq.write_table(pa.table([dates, dates], names=["a", "a"]), path)
    ((_, told),) = read_records(path)
    assert "different column names, got ['a', 'a']" in str(told)


def test_unknown_suffixes_and_missing_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    with pytest.raises(UserError, match="no such file"):
        read_records(path)
    path.touch()
    with pytest.raises(UserError, match=r"a\.xlsx: expected a file named \.jsonl, .*\.parquet"):
        read_records(path)
    with pytest.raises(UserError, match="no such file"):
        read_records(tmp_path)


def test_names_for_a_message_are_one_short_line() -> None:
    assert named([]) == "none"
    assert named(["a", "b\nc"]) == r"a, 'b\nc'"
    assert named(map(str, range(50))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..."
    assert len(named(["x" * 10_000])) <= 200


def test_many_keys_are_looked_at_once(tmp_path: Path) -> None:
    # At n^2 / 2 comparisons this takes minutes.
    keys = [f'"{i}": 0' for i in range(60_000)]
    path = tmp_path / "a.jsonl"
    path.write_text(f"{{{', '.join([*keys, keys[-1]])}}}")
    start = time.process_time()
    ((_, told),) = read_records(path)
    assert "the key '59999' stands there twice" in str(told)
    assert time.process_time() - start < 5
