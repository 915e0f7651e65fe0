"""The state's folder: read as written, and never what is not whole."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kif_lightning import continual_state
from kif_lightning.continual_state import (
    STATE,
    digest_of,
    is_state,
    memory_note,
    past_task,
    read_state,
    write_state,
)
from kif_lightning.errors import UserError
from kif_lightning.interfaces import RowsElsewhere
from tests.helpers.states import content, differences, past, state

FILES = (
    STATE,
    *(f"{part}/{name}" for part in ("parts", "memory")
      for name in ("contents.json", "state.json", "tensors.safetensors")),
)  # fmt: skip


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    digest = write_state(state(), tmp_path / "s", with_memory=True)
    found = read_state(tmp_path / "s")
    assert found.digest == digest == digest_of(tmp_path / "s")
    assert differences(found, state()) == []
    same = ("config", "tasks", "protocols", "stand_ins", "keeps_memory", "parent")
    for name in same:
        assert getattr(found, name) == getattr(state(), name), name
    assert found.score_matrix == [[50.0, None], [None, 75.0]]


def test_rows_stay_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    write_state(state(), tmp_path / "without")
    write_state(state(), tmp_path / "with", with_memory=True)
    assert read_state(tmp_path / "without").memory is None
    assert read_state(tmp_path / "without").keeps_memory
    held = {
        name: b"cret words" in b"".join(content(tmp_path / name).values())
        for name in ("with", "without")
    }
    assert held == {"with": True, "without": False}
    notes = {name: memory_note(tmp_path / name) or "" for name in held}
    assert "raw rows" in notes["with"]
    assert "--with-memory" in notes["without"]


def test_a_past_task_knows_how_many_rows_it_had_and_holds_none() -> None:
    task = past("colour").task()
    assert (len(task.train), len(task.test), task.at_hand) == (16, 6, False)
    assert isinstance(task.test, RowsElsewhere)
    with pytest.raises(LookupError):
        list(task.test)


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = [
        write_state(made, tmp_path / str(number))
        for number, made in enumerate(
            [state(), state(), state(seed=1), state(parent="6"), state(tasks=(past("colour"),))]
        )
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert content(tmp_path / "0") == content(tmp_path / "1")


def test_no_memory_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --with-memory out"):
        write_state(state(memory=None), tmp_path / "s", with_memory=True)
    assert not (tmp_path / "s").exists()


def test_where_no_state_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file" / "s", tmp_path / "file" / "deep" / "s"):
        with pytest.raises(UserError, match=r"cannot be written to .*file is no folder"):
            write_state(state(), folder)
    with pytest.raises(UserError, match="cannot be written to"):
        write_state(state(), tmp_path / ("long" * 100))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="never written over another"):
        write_state(state(), Path("."))
    with monkeypatch.context() as patch:
        patch.setattr(continual_state.os, "access", lambda *_: False)
        with pytest.raises(UserError, match="nothing may be written to"):
            write_state(state(), tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(continual_state, "save_state", _fails)
        with pytest.raises(UserError, match=r"cannot be written to .*s \(No space left"):
            write_state(state(), tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _fails(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left")


def test_keys_of_a_task_that_are_not_known_or_not_there(tmp_path: Path) -> None:
    record = {**vars(past("colour")), "labels": ["good"], "of_a_later_program": 1}
    assert past_task(record) == replace(past("colour"), labels=("good",))
    del record["decode"], record["metric"]
    with pytest.raises(UserError, match="Task colour of the state lacks metric, decode"):
        past_task(record)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_nothing_is_written_over(tmp_path: Path, there: str) -> None:
    place = tmp_path / "s"
    (place if there == "file" else place / "thesis.txt").parent.mkdir(exist_ok=True)
    (place if there == "file" else place / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="never written over another"):
        write_state(state(), place)
    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine"]


def damaged(file: Path, how: str, other: Path) -> None:
    data = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "of another state":
        shutil.copy(other, file)
    else:
        data[len(data) * 3 // 5] ^= 1
        file.write_bytes(data)


DAMAGES = ("missing", "empty", "cut", "a bit", "of another state")
SAME = "memory/tensors.safetensors"  # rows hold no tensors: one file is as good as another


@pytest.mark.parametrize(
    ("file", "how"), [(f, h) for f in FILES for h in DAMAGES if (f, h) != (SAME, DAMAGES[-1])]
)
def test_a_damaged_file_is_refused(tmp_path: Path, file: str, how: str) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    write_state(state(), whole, with_memory=True)
    rows = {"shape": [{"id": "8", "input": "more words", "output": "bad"}]}
    parts = {**state(seed=1).parts, "boundary": {}}
    write_state(state(parts=parts, memory=rows), other, with_memory=True)
    assert sorted(content(whole)) == sorted(FILES)
    damaged(whole / file, how, other / file)
    with pytest.raises(UserError) as error:
        read_state(whole)
    assert str(whole) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_bit_counts(tmp_path: Path) -> None:
    """Wherever one is flipped: refused, or read as it was written (1e-05 and 1E-05 are one)."""
    write_state(state(), tmp_path / "s", with_memory=True)
    before = read_state(tmp_path / "s")
    refused = 0
    for name in FILES:
        data = (tmp_path / "s" / name).read_bytes()
        for place in range(0, len(data), max(1, len(data) // 40)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            (tmp_path / "s" / name).write_bytes(flipped)
            try:
                found = read_state(tmp_path / "s")
            except UserError:
                refused += 1
            else:
                assert differences(found, before) == []
                assert replace(found, parts={}, memory=None) == replace(
                    before, parts={}, memory=None
                )
        (tmp_path / "s" / name).write_bytes(data)
    assert refused > 250


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "missing or damaged"),
        ("{", "missing or damaged"),
        ("[1]", "no continual state"),
        ('{"format": "another"}', "no continual state"),
        ('{"format": "kif-lightning continual state", "version": 1}', "is damaged"),
    ],
)
def test_what_is_no_state(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / STATE).write_text(text)
    for read in (read_state, digest_of):
        with pytest.raises(UserError, match=told):
            read(tmp_path)


def test_a_version_from_the_future(tmp_path: Path) -> None:
    write_state(state(), tmp_path / "s")
    record = json.loads((tmp_path / "s" / STATE).read_text())
    record |= {"version": 2, "made_by": "kif-lightning 9.0", "new": {"kind": ["of", "thing"]}}
    (tmp_path / "s" / STATE).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"version 2, expected 1: use .*kif-lightning 9\.0"):
        read_state(tmp_path / "s")


def test_a_folder_without_a_state_says_how_to_make_one(tmp_path: Path) -> None:
    assert not is_state(tmp_path)
    for read in (read_state, digest_of):
        with pytest.raises(UserError, match="kif pack RUN --to FOLDER"):
            read(tmp_path)
