"""Tokenised rows: what ``encode`` gives row by row, held in Arrow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kif_lightning import tokenised as module
from kif_lightning.backbones.seq2seq import Seq2SeqBackbone
from kif_lightning.benchmarks.rows import write_arrow
from kif_lightning.benchmarks.table import RowTable
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Example, Row
from kif_lightning.tokenised import TokenisedRows, tokenised
from tests.helpers.streams import tiny_backbone
from tests.helpers.tiny import toy_rows

ROWS = toy_rows("colour", "train", 40, ("good", "round bad flat"))


class Counted:
    """A backbone that counts the rows it tokenises, call by call."""

    def __init__(self, backbone: Seq2SeqBackbone) -> None:
        self.backbone = backbone
        self.calls: list[int] = []

    def encode_rows(self, rows: Sequence[Row]) -> list[Example]:
        self.calls.append(len(rows))
        return self.backbone.encode_rows(rows)

    def encoding_fingerprint(self) -> str | None:
        return self.backbone.encoding_fingerprint()


@pytest.fixture
def counted(tiny_t5: Path) -> Any:
    return Counted(tiny_backbone(tiny_t5))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All rows are many; where their ids are kept."""
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def alone(backbone: Any, rows: Sequence[Row] = ROWS) -> list[Example]:
    return [backbone.backbone.encode(row) for row in rows]


def ids(number: int) -> list[Example]:
    """Examples of every length, empty ones too, with ids of up to 31 bits."""
    draw = random.Random(number)
    return [
        Example(
            prompt_ids=[draw.randrange(2**31) for _ in range(draw.randrange(6))],
            answer_ids=[draw.randrange(300) for _ in range(i % 4)],
        )
        for i in range(number)
    ]


@pytest.mark.parametrize(("batch_rows", "characters"), [(1000, 2**20), (7, 2**20), (99, 200)])
@pytest.mark.parametrize("many", [False, True])
def test_rows_are_those_of_encode(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    counted: Any,
    batch_rows: int,
    characters: int,
    many: bool,
) -> None:
    cache = request.getfixturevalue("cache") if many else None
    monkeypatch.setattr(module, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", characters)
    found, expected = tokenised(counted, ROWS), alone(counted)
    assert list(found) == [found[i] for i in range(40)] == expected
    assert found[-1] == expected[-1]
    assert found.prompt_lengths.tolist() == [len(e.prompt_ids) for e in expected]
    assert found.answer_lengths.tolist() == [len(e.answer_ids) for e in expected]
    assert all(type(i) is int for i in found[3].prompt_ids)
    assert sum(counted.calls) == 40
    assert max(counted.calls) <= batch_rows
    if characters == 200:
        assert len(counted.calls) > 5
    if cache is not None:
        assert len(list(cache.iterdir())) == 1
        again = tokenised(counted, ROWS)
        assert list(again) == list(found)
        assert sum(counted.calls) == 40, "from the file"


def test_few_rows_touch_no_disk(
    counted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    size = sum(len(row.input) + len(row.output) for row in ROWS)
    monkeypatch.setattr(module, "IN_MEMORY", size)
    tokenised(counted, ROWS)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(module, "IN_MEMORY", size - 1)
    tokenised(counted, ROWS)
    assert (tmp_path / "cache" / "tokens").exists()


@pytest.mark.parametrize("number", [0, 1, 30])
def test_examples_come_back_and_lengths_are_theirs(number: int) -> None:
    examples = ids(number)
    rows = TokenisedRows.of(examples)
    assert (len(rows), list(rows)) == (number, examples)
    assert rows.prompt_lengths.tolist() == [len(e.prompt_ids) for e in examples]
    assert rows.answer_lengths.tolist() == [len(e.answer_ids) for e in examples]
    for wrong in (number, -number - 1):
        with pytest.raises(IndexError):
            rows[wrong]


def test_taken_and_joined_rows_are_those_of_lists() -> None:
    draw = random.Random(1)
    examples = ids(30)
    rows = TokenisedRows.of(examples[:11]).followed_by(TokenisedRows.of(examples[11:]))
    for _ in range(40):
        places = [draw.randrange(len(examples)) for _ in range(draw.randrange(1, 20))]
        other = ids(draw.randrange(5))
        rows, examples = rows.take(places), [examples[i] for i in places]
        assert rows.prompt_lengths.tolist() == [len(e.prompt_ids) for e in examples]
        rows, examples = rows.followed_by(TokenisedRows.of(other)), [*examples, *other]
        assert list(rows) == examples
        assert rows.answer_lengths.tolist() == [len(e.answer_ids) for e in examples]
    none = rows.take([])
    assert (len(none), list(none), none.prompt_lengths.tolist()) == (0, [], [])


def test_rows_on_the_disk_are_read_in_one_pass(
    counted: Any, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_arrow(tmp_path / "rows.arrow", iter(ROWS))
    table = RowTable.mapped(tmp_path / "rows.arrow")
    monkeypatch.setattr(RowTable, "__getitem__", None)  # slow: one look-up a row
    assert list(tokenised(counted, table)) == alone(counted)


def test_what_decides_the_ids_decides_the_file(counted: Any, cache: Path, tmp_path: Path) -> None:
    backbone: Seq2SeqBackbone = counted.backbone
    tokenised(counted, ROWS)
    same = [replace(row, id="x") for row in ROWS]
    tokenised(counted, same)
    assert len(list(cache.iterdir())) == 1, "a row's name is no part of its text"

    other_answer = [*ROWS[:-1], replace(ROWS[-1], output="good")]
    border = [replace(ROWS[0], input=ROWS[0].input + "a"), *ROWS[1:]]
    moved = [replace(ROWS[0], output="a" + ROWS[0].output), *ROWS[1:]]
    changed = tmp_path / "changed"
    backbone.tokenizer.add_tokens(["green"])
    backbone.tokenizer.save_pretrained(changed)
    (changed / "config.json").write_text((Path(str(backbone.path)) / "config.json").read_text())
    counted.backbone = replace(backbone)
    cases: list[tuple[list[Row], dict[str, Any]]] = [
        (ROWS[:-1], {}),
        (other_answer, {}),
        (border, {}),
        (moved, {}),
        (ROWS, {"max_source_tokens": 9}),
        (ROWS, {"truncation": "right"}),
        (ROWS, {"path": str(changed)}),
    ]
    for number, (rows, settings) in enumerate(cases, start=2):
        counted.backbone = replace(backbone, **settings)
        assert list(tokenised(counted, rows)) == alone(counted, rows)
        assert len(list(cache.iterdir())) == number


def test_a_tokenizers_last_use_does_not_change_its_fingerprint(tiny_t5: Path) -> None:
    backbone: Any = tiny_backbone(tiny_t5)
    fresh = backbone.encoding_fingerprint()
    backbone.tokenizer(["a", "b c"], padding=True, truncation=True, max_length=3)
    assert backbone.encoding_fingerprint() == fresh == tiny_backbone(tiny_t5).encoding_fingerprint()
    # And the next rows are whole.
    assert list(tokenised(backbone, ROWS)) == alone(Counted(tiny_backbone(tiny_t5)))


def test_ids_that_nobody_can_name_are_not_kept(
    counted: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "encoding_fingerprint", lambda: None)
    assert list(tokenised(counted, ROWS)) == alone(counted)
    assert not cache.exists()


@pytest.mark.parametrize("damage", ["empty", "short", "no end", "ids", "text"])
def test_a_damaged_file_counts_as_not_there(
    counted: Any, cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_ROWS", 7)
    expected = list(tokenised(counted, ROWS))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "ids":
        needle = b"".join(i.to_bytes(4, "little") for i in expected[20].prompt_ids)
        place = whole.index(needle)
        damaged = whole[:place] + b"\7" + whole[place + 1 :]
    else:
        damaged = {
            "empty": b"",
            "short": whole[: len(whole) // 2],
            "no end": whole[:-500],
            "text": b"no Arrow at all",
        }[damage]
    file.write_bytes(damaged)
    counted.calls.clear()
    assert list(tokenised(counted, ROWS)) == expected
    assert sum(counted.calls) == 40
    assert file.read_bytes() == whole


def test_writers_at_the_same_time_do_not_hurt_each_other(counted: Any, cache: Path) -> None:
    """The second one begins and ends while the first is in the midst of its rows."""
    others: list[TokenisedRows] = []

    class Slow(Counted):
        def encode_rows(self, rows: Sequence[Row]) -> list[Example]:
            others.append(tokenised(counted, ROWS))
            return super().encode_rows(rows)

    slow: Any = Slow(counted.backbone)
    first = tokenised(slow, ROWS)
    assert len(others) == 1
    assert list(first) == list(others[0]) == alone(counted)
    assert len(list(cache.iterdir())) == 1, "no half-written file is left"


def test_a_failure_leaves_nothing_behind(counted: Any, cache: Path) -> None:
    class Failing(Counted):
        def encode_rows(self, rows: Sequence[Row]) -> list[Example]:
            raise RuntimeError("in the midst of it")

    failing: Any = Failing(counted.backbone)
    with pytest.raises(RuntimeError, match="midst"):
        tokenised(failing, ROWS)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_told(
    counted: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot be written .*: set KIF_CACHE to a folder"):
        tokenised(counted, ROWS)


def test_arrow_is_small(counted: Any) -> None:
    found = tokenised(counted, ROWS)
    tokens = int(found.prompt_lengths.sum() + found.answer_lengths.sum())
    assert 4 * tokens <= found.nbytes <= 4 * tokens + 8 * (len(ROWS) + 1)
