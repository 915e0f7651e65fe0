"""What is taken out of a run, after which task, and what cannot be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from kif_lightning.continual_state import read_state
from kif_lightning.errors import UserError
from kif_lightning.packing import open_state, pack
from kif_lightning.runner import StreamRunner
from tests.helpers.states import Workshop, content, differences

TASKS = ("colour", "shape", "size")


@pytest.fixture(scope="module")
def whole(workshop: Workshop) -> Path:
    """A finished run of three tasks that kept the state after each."""
    return workshop.learn("packing_whole", TASKS, "keep_states=true")


def test_the_state_after_each_task_is_that_of_a_shorter_run(
    workshop: Workshop, whole: Path
) -> None:
    one = workshop.learn("packing_one", TASKS[:1])
    assert differences(open_state(one), open_state(whole, "1")) == []
    assert [len(open_state(whole, after).tasks) for after in ("1", "2", "3")] == [1, 2, 3]
    assert differences(open_state(whole, "1"), open_state(whole, "2"))


def test_a_task_goes_by_its_number_or_its_name(whole: Path, tmp_path: Path) -> None:
    for name, after in (("by_number", "2"), ("by_name", "shape")):
        pack(whole, tmp_path / name, after=after)
    pack(whole, tmp_path / "last")
    pack(whole, tmp_path / "third", after="3")
    assert content(tmp_path / "by_number") == content(tmp_path / "by_name")
    assert content(tmp_path / "last") == content(tmp_path / "third")
    found = read_state(tmp_path / "by_name")
    assert [task.name for task in found.tasks] == ["colour", "shape"]
    # What came later is not in it.
    assert all(len(row) == 2 and None not in row[: i + 1]
               for i, row in enumerate(found.score_matrix))  # fmt: skip
    assert all(set(task.scores) <= {"0", "1"} for task in found.tasks)


@pytest.mark.parametrize("after", ["0", "4", "-1", "colours", ""])
def test_a_task_that_there_is_not(whole: Path, tmp_path: Path, after: str) -> None:
    with pytest.raises(UserError, match=r"--after must be the number \(1 to 3\).*colour"):
        pack(whole, tmp_path / "s", after=after)
    assert list(tmp_path.iterdir()) == []


def test_without_keep_states_only_the_last_ones_are_there(
    workshop: Workshop, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "state" / "after_001")  # as a run without keep_states does
    with pytest.raises(UserError, match=r"task 1 any more, only after 2, 3: .*keep_states=true"):
        pack(run, tmp_path / "s", after="1")
    plain = workshop.learn("packing_plain", TASKS)
    assert [path.name for path in sorted((plain / "state").glob("after_*"))] == [
        "after_002",
        "after_003",
    ]
    assert differences(open_state(plain), open_state(whole)) == []


def test_a_run_that_went_on_gives_what_it_learnt_itself(
    workshop: Workshop, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state it began with is its origin's: taken out of it, it would be its own parent."""
    first = workshop.pack(whole, "packing_first", "1")
    held: list[Any] = []

    def judge(self: StreamRunner, task_index: int) -> None:
        assert self.parts.origin is not None
        held.append((self.parts.origin.parts, self.parts.origin.memory))
        whole_judge(self, task_index)

    whole_judge = StreamRunner._judge
    monkeypatch.setattr(StreamRunner, "_judge", judge)
    workshop.go_on(first, "packing_on", "keep_states=true")
    assert held == [({}, None)]  # its tensors are the model's by then
    run = workshop.folder / "packing_on"
    for after in ("1", "colour"):
        with pytest.raises(UserError, match=r"the number \(2 to 2\) .* learnt in the run"):
            open_state(run, after)
    for after in (None, "2", "shape"):
        found = open_state(run, after)
        assert found.parent == read_state(first).digest
        assert len(found.tasks) == 2


def test_a_state_has_no_states_before_it(whole: Path, tmp_path: Path) -> None:
    pack(whole, tmp_path / "s")
    with pytest.raises(UserError, match="--after is for a run's folder"):
        open_state(tmp_path / "s", "1")


def test_nothing_of_the_machine_is_in_it(whole: Path, workshop: Workshop, tmp_path: Path) -> None:
    pack(whole, tmp_path / "s")
    text = b"".join(content(tmp_path / "s").values())
    for place in (workshop.folder, workshop.data, workshop.model, Path.home()):
        assert f"{place}/".encode() not in text
    assert b"What is the colour" not in text


def test_a_run_of_before_there_were_states(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "state" / "stream.json").unlink()
    with pytest.raises(UserError, match=r"stream\.json.*earlier version"):
        pack(tmp_path / "run", tmp_path / "s")


@pytest.mark.parametrize("what", ["a folder", "a file", "nothing"])
def test_no_run(tmp_path: Path, what: str) -> None:
    run = tmp_path / "run"
    if what == "a folder":
        run.mkdir()
    elif what == "a file":
        run.write_text("mine")
    with pytest.raises(UserError, match=r"neither config\.yaml nor state\.json"):
        pack(run, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_all_tasks_at_once_leave_no_state(workshop: Workshop, tmp_path: Path) -> None:
    run = workshop.learn("packing_at_once", TASKS[:2], "method=multi_task")
    with pytest.raises(UserError, match="all tasks at once"):
        pack(run, tmp_path / "s")


def test_a_run_in_its_midst(
    workshop: Workshop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a task that is learnt but not judged yet nothing is taken: its scores are missing."""
    judge = StreamRunner._judge
    stop_at = 0

    def stops(self: StreamRunner, task_index: int) -> None:
        if task_index == stop_at:
            raise KeyboardInterrupt
        judge(self, task_index)

    monkeypatch.setattr(StreamRunner, "_judge", stops)
    with pytest.raises(KeyboardInterrupt):
        workshop.learn("packing_cut", TASKS)
    run = workshop.folder / "packing_cut"
    with pytest.raises(UserError, match="not finished its first task"):
        pack(run, tmp_path / "s")
    stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        workshop.learn("packing_cut", TASKS)
    pack(run, tmp_path / "s")
    assert differences(read_state(tmp_path / "s"), open_state(whole, "1")) == []
    with pytest.raises(UserError, match=r"1 to 1"):
        pack(run, tmp_path / "t", after="2")


def test_the_documented_example_reads_the_importance(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/state_format.md, as a stranger would run it: with safetensors and json alone."""
    page = (Path(__file__).parents[2] / "docs" / "state_format.md").read_text(encoding="utf-8")
    block = page.partition("<!-- example -->")[2].partition("<!-- end example -->")[0]
    code = block.strip().removeprefix("```python").removesuffix("```")
    assert "kif_lightning" not in code
    pack(whole, tmp_path / "STATE")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)  # noqa: S102
    expected = read_state(tmp_path / "STATE").parts["boundary"]["fusion"]
    assert list(found["importance"]) == expected["unit_ids"]
    assert list(found["importance"].values()) == expected["accumulated"].tolist()


def test_the_documented_keys_are_those_there_are(whole: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "state_format.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    pack(whole, tmp_path / "s")
    record = json.loads((tmp_path / "s" / "state.json").read_text())
    parts = json.loads((tmp_path / "s" / "parts" / "state.json").read_text())
    assert record.keys() | record["tasks"][0].keys() | parts.keys() == documented


def test_a_damaged_run(whole: Path, tmp_path: Path) -> None:
    for name in ("state/latest.json", "state/finished.jsonl", "state/stream.json",
                 "state/after_003/tensors.safetensors"):  # fmt: skip
        run = tmp_path / name.replace("/", "_")
        shutil.copytree(whole, run)
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError) as error:
            pack(run, tmp_path / "s")
        assert str(run) in str(error.value)
    assert not (tmp_path / "s").exists()
