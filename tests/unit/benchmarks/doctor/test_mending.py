"""The corrected copy: whole, read as any other folder, and without what was mended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kif_lightning.benchmarks.doctor import examine, fix, mending, write_fixed
from kif_lightning.benchmarks.folder import read_manifest, read_task, task_names
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row, SourceTask
from tests.helpers.defects import Draft, row, spoilt

TRAIN_0 = "What shape has thing train 0?"


def everything(draft: Draft) -> None:
    """One defect of each kind that can be mended."""
    draft.problems["train"] = ("line 3", "line 4")
    draft.change("train", 1, input=" ")
    draft.change("train", 3, output="")
    draft.change("train", 5, input="caf\x08Ã©?")
    draft.change("train", 7, id="train9")
    draft.change("train", 8, input="What shape has thing test 8?")
    draft.change("dev", 1, input="What shape has thing test 1?")
    draft.change("dev", 2, input="What shape has thing train 2?")
    # Equal to an earlier row only once it is mended; train0 contradicts itself.
    draft.splits["train"] += [
        row("new", "café?", "square"),
        row("again", TRAIN_0),
        row("against", TRAIN_0, "square"),
    ]


COUNTS = {
    "unreadable_row": 2,
    "blank_input": 1,
    "blank_output": 1,
    "mojibake": 1,
    "control_character": 1,
    "duplicate_rows": 2,
    "conflicting_rows": 2,
    "train_test_overlap": 1,
    "train_dev_overlap": 1,
    "dev_test_overlap": 1,
    "reused_id": 1,
}


def test_what_can_be_mended_is_gone_and_counted() -> None:
    task = spoilt(everything)
    fixed, counts = fix(task)
    assert counts == COUNTS
    assert examine(fixed).findings == ()
    train = {r.id: r for r in fixed.splits["train"].rows}
    dropped = {"train0", "train1", "train3", "train8", "new", "again", "against"}
    # train7 had been given train9's id, and came first.
    assert train.keys() == {r.id for r in task.splits["train"].rows} - dropped | {"train9-2"}
    assert train["train5"] == Row(id="train5", input="café?", output="square")
    assert train["train9"].input == "What shape has thing train 7?"
    assert train["train9-2"].input == "What shape has thing train 9?"
    assert [r.id for r in fixed.splits["dev"].rows] == ["dev0", *(f"dev{i}" for i in range(3, 10))]
    assert fixed.splits["test"].rows[:] == task.splits["test"].rows


def test_a_clean_task_stays_as_it_is() -> None:
    task = spoilt()
    fixed, counts = fix(task)
    assert counts == {}
    for name, split in task.splits.items():
        assert tuple(fixed.splits[name].rows) == split.rows
        assert fixed.splits[name].rows[-1] == split.rows[-1]
        assert len(fixed.splits[name].rows) == len(split.rows)


def test_the_original_rows_are_untouched() -> None:
    task = spoilt(everything)
    before = {name: tuple(replace(r) for r in split.rows) for name, split in task.splits.items()}
    fixed, _ = fix(task)
    list(fixed.splits["train"].rows)
    assert {name: split.rows for name, split in task.splits.items()} == before


def test_all_unreadable_and_damaged_rows_are_counted() -> None:
    def spoil(draft: Draft) -> None:
        draft.splits["train"] = [row(f"r{i}", f"cafÃ© {i}?") for i in range(700)]
        draft.problems["train"], draft.num_problems["train"] = ("line 1",), 5000

    fixed, counts = fix(spoilt(spoil))
    assert counts == {"mojibake": 700, "unreadable_row": 5000}
    assert fixed.splits["train"].rows[699].input == "café 699?"


def test_rows_that_were_looked_at_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Sequence[Row], int]] = []
    real = mending.scan

    def looking(rows: Sequence[Row], **settings: Any) -> Any:
        seen.append((rows, len(rows)))
        return real(rows, **settings)

    monkeypatch.setattr(mending, "scan", looking)
    fix(spoilt(everything))
    assert len(seen) == 6
    assert [len(list(rows)) for rows, _ in seen] == [number for _, number in seen]


def test_label_words_are_never_changed() -> None:
    def damaged(draft: Draft) -> None:
        draft.relabel({"square": "squÃ©"})

    fixed, counts = fix(spoilt(damaged))
    assert counts == {}
    assert {r.output for r in fixed.splits["train"].rows} == {"round", "squÃ©"}


def test_free_answers_are_mended_and_may_differ() -> None:
    def spoil(draft: Draft) -> None:
        draft.change("train", 1, output="cafÃ©")
        draft.splits["train"].append(row("other", TRAIN_0, "square"))

    fixed, counts = fix(spoilt(spoil, kind="generation", closed_answers=False))
    assert counts == {"mojibake": 1}
    assert fixed.splits["train"].rows[1].output == "café"
    assert fixed.splits["train"].rows[-1].id == "other"


def test_a_new_id_is_none_that_is_there() -> None:
    def spoil(draft: Draft) -> None:
        for place in (1, 2, 3):
            draft.change("train", place, id="train0")
        draft.change("train", 4, id="train0-2")

    fixed, counts = fix(spoilt(spoil))
    ids = [r.id for r in fixed.splits["train"].rows]
    assert ids[:5] == ["train0", "train0-3", "train0-4", "train0-5", "train0-2"]
    assert counts == {"reused_id": 3}


def test_a_dev_row_stays_if_its_like_in_train_is_dropped() -> None:
    def spoil(draft: Draft) -> None:
        draft.splits["train"].append(row("against", TRAIN_0, "square"))
        draft.change("dev", 0, input=TRAIN_0)

    fixed, counts = fix(spoilt(spoil))
    assert counts == {"conflicting_rows": 2}
    assert len(fixed.splits["dev"].rows) == 10


def test_a_dev_split_that_is_all_test_goes() -> None:
    def spoil(draft: Draft) -> None:
        draft.splits["dev"] = draft.splits["test"][:10]

    fixed, counts = fix(spoilt(spoil))
    assert set(fixed.splits) == {"train", "test"}
    assert counts == {"dev_test_overlap": 10}


def test_a_task_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    def spoil(draft: Draft) -> None:
        draft.splits["train"] = draft.splits["test"]

    with pytest.raises(UserError, match="Task shapes: no row of train would be left"):
        write_fixed([spoilt(), spoilt(spoil)], tmp_path / "copy")
    assert list(tmp_path.iterdir()) == [], "nothing, not half of it"


def read(folder: Path) -> list[SourceTask]:
    described = read_manifest(folder)
    return [read_task(folder / name, described[name]) for name in task_names(folder)]


def test_the_copy_reads_as_any_folder(tmp_path: Path) -> None:
    closed = spoilt(everything)
    free = replace(
        spoilt(everything, kind="generation", closed_answers=False), name="free", metric="rouge_l"
    )
    lettered = replace(spoilt(kind="multiple_choice"), name="lettered")
    counts = write_fixed(iter([closed, free, lettered]), tmp_path / "deep" / "copy")
    assert counts["shapes"] == COUNTS
    assert counts["lettered"] == {}
    tasks = {task.name: task for task in read(tmp_path / "deep" / "copy")}
    assert tasks.keys() == {"shapes", "free", "lettered"}
    for original in (closed, free, lettered):
        copy = tasks[original.name]
        assert (copy.kind, copy.metric) == (original.kind, original.metric)
        assert copy.closed_answers == original.closed_answers
        for name, split in fix(original)[0].splits.items():
            assert tuple(copy.splits[name].rows) == tuple(split.rows)
        mended = {finding.check for finding in examine(copy).findings} & COUNTS.keys()
        assert mended <= {"conflicting_rows"}, "of free answers"
    assert mended == set()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy"]


def test_a_copy_of_collections_describes_each(tmp_path: Path) -> None:
    lettered = replace(spoilt(kind="multiple_choice"), name="letters/shapes")
    free = replace(
        spoilt(kind="generation", closed_answers=False), name="texts/shapes", metric="rouge_l"
    )
    write_fixed([lettered, free], tmp_path / "copy")
    (one,) = read(tmp_path / "copy" / "letters")
    (other,) = read(tmp_path / "copy" / "texts")
    assert (one.kind, one.metric, one.closed_answers) == ("multiple_choice", "exact_match", True)
    assert (other.kind, other.metric, other.closed_answers) == ("generation", "rouge_l", False)
    described = json.loads((tmp_path / "copy" / "manifest.json").read_text())
    assert described["collections"].keys() == {"letters", "texts"}


def test_lines_are_plain_and_hold_any_text(tmp_path: Path) -> None:
    text = 'Ü 雨 😀 "quoted"\n\u2028 \\'

    def spoil(draft: Draft) -> None:
        draft.change("train", 0, input=text)

    write_fixed([spoilt(spoil)], tmp_path / "copy")
    first = (tmp_path / "copy/shapes/train.jsonl").read_bytes().split(b"\n")[0]
    assert json.loads(first) == {"id": "train0", "input": text, "output": "round"}
    assert "雨".encode() in first
    assert read(tmp_path / "copy")[0].splits["train"].rows[0].input == text


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    write_fixed([spoilt()], tmp_path / "copy", original=tmp_path / "data")
    assert task_names(tmp_path / "copy") == ["shapes"]


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="needs a new or an empty folder"):
            write_fixed([spoilt()], out)
    assert (tmp_path / "file").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("inside", ["", "sub", "sub/../other", "../data"])
def test_the_copy_is_not_put_into_the_original(tmp_path: Path, inside: str) -> None:
    original = tmp_path / "data"
    original.mkdir()
    with pytest.raises(UserError, match="must not lie in the folder"):
        write_fixed([spoilt()], original / inside, original=original)
    assert list(original.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file/copy"):
        write_fixed([spoilt()], tmp_path / "file" / "copy")
