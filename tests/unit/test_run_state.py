"""The run folder: who may write into it, and the states that a run can go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kif_lightning.run_state
from kif_lightning import ranks
from kif_lightning.errors import UserError
from kif_lightning.run_state import Resumed, RunFolder, RunState
from kif_lightning.storage import flat, save_state

SETTINGS: dict[str, Any] = {
    "seed": 1,
    "optim": {"lr": 3e-4, "clip": None, "tiny": 1e-05, "text": "1e-3"},
    "benchmark": {"order": ["b", "a"], "tasks": {}, "seed": 1},
    "method": {"name": "on", "title": "KIF: a 'title'\nof two lines", "grows": False},
}


def changed(**optim: Any) -> dict[str, Any]:
    return {**SETTINGS, "optim": {**SETTINGS["optim"], **optim}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "cell")
    folder.open(SETTINGS, rerun=False)
    return folder


def content(path: Path) -> dict[str, bytes]:
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def test_the_same_settings_open_the_folder_again(folder: RunFolder) -> None:
    before = content(folder.path)
    folder.open(SETTINGS, rerun=False)
    assert content(folder.path) == before
    assert list(before) == ["config.yaml"]


def test_other_settings_are_told_key_by_key(folder: RunFolder) -> None:
    other = {**changed(lr=0.1), "seed": 2, "new": {"key": 5}}
    del other["optim"]["clip"]
    with pytest.raises(UserError) as error:
        folder.open(other, rerun=False)
    message = str(error.value)
    for part in (
        str(folder.path),
        "seed: 1 there, 2 now",
        "optim.lr: 0.0003 there, 0.1 now",
        "optim.clip: None there, absent now",
        "new.key: absent there, 5 now",
        "rerun=true",
        "run_dir=FOLDER",
    ):
        assert part in message
    for same in ("benchmark", "method", "optim.tiny", "optim.text"):
        assert same not in message


def test_a_changed_order_of_tasks_is_another_setting(folder: RunFolder) -> None:
    other = {**SETTINGS, "benchmark": {**SETTINGS["benchmark"], "order": ["a", "b"]}}
    with pytest.raises(UserError, match=r"benchmark\.order: \['b', 'a'\] there"):
        folder.open(other, rerun=False)


@pytest.mark.parametrize("rerun", [False, True])
def test_a_foreign_folder_is_refused_and_left_as_it_is(tmp_path: Path, rerun: bool) -> None:
    for name in ("thesis.txt", "results.json"):
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        (folder.path / name).write_text("{}")
        assert not folder.is_finished(SETTINGS)
        with pytest.raises(UserError, match=r"no run's config\.yaml") as error:
            folder.open(SETTINGS, rerun=rerun)
        assert str(folder.path) in str(error.value)
        assert content(folder.path) == {name: b"{}"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunFolder(tmp_path).open(SETTINGS, rerun=False)
    assert list(content(tmp_path)) == ["config.yaml"]


@pytest.mark.parametrize("settings", [SETTINGS, changed(lr=0.1)], ids=["same", "other"])
def test_rerun_starts_anew(folder: RunFolder, settings: dict[str, Any]) -> None:
    folder.save(RunState(num_tasks=2, next_task=1), {})
    folder.write_results({"a": 1})
    folder.open(settings, rerun=True)
    assert list(content(folder.path)) == ["config.yaml"]
    assert folder.load() is None
    folder.open(settings, rerun=False)


def test_a_new_run_has_no_state(folder: RunFolder) -> None:
    assert folder.load() is None
    assert RunFolder(folder.path / "nowhere").load() is None


class Equal(list[float]):
    """Equal to a tensor of these numbers."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, torch.Tensor) and other.tolist() == list(self)

    __hash__ = None  # type: ignore[assignment]


def loaded(folder: RunFolder, resume: str = "latest") -> Resumed:
    return RunFolder(folder.path).load(resume) or pytest.fail("no state")


def save_step(folder: RunFolder, state: RunState, step: int) -> None:
    content = {"step": torch.tensor(step)}
    folder.save_training(state, step, lambda path: save_state(path, content))


def test_state_and_parts_come_back(folder: RunFolder) -> None:
    state = RunState(
        num_tasks=2,
        next_task=1,
        learnt=True,
        evaluated={"0": 50.0},
        score_matrix=[[71.5, None]],
        untrained=[1 / 3, 0.0],
        phases=[{"name": "colour", "last_loss": None, "seconds": {"train": 0.1}}],
        logged_steps=12,
    )
    weights = torch.tensor([1 / 3, float("nan")]).bfloat16()
    folder.save(state, {"adapter": {"q.lora_A.weight": weights}, "penalties": {}})
    resumed = loaded(folder)
    assert resumed.state == state
    assert not resumed.state.finished
    assert resumed.training is None
    assert resumed.parts is not None
    assert resumed.parts["penalties"] == {}
    found = resumed.parts["adapter"]["q.lora_A.weight"]
    assert torch.equal(found.view(torch.int16), weights.view(torch.int16))


def test_the_newest_state_and_the_one_before_are_kept(folder: RunFolder) -> None:
    for task in (1, 2, 3):
        folder.save(RunState(num_tasks=3, next_task=task), {"w": torch.full((2,), float(task))})
        names = {path.name for path in (folder.path / "state").iterdir()}
        before = {f"after_{task - 1:03d}", "previous.json", "earlier.json"} if task > 1 else set()
        assert names == {f"after_{task:03d}", "latest.json", *before}
    assert loaded(folder).state.finished
    assert loaded(folder).parts == {"w": Equal([3.0, 3.0])}


def test_a_checkpoint_within_a_task_stands_on_the_task_before(folder: RunFolder) -> None:
    state = RunState(num_tasks=3, next_task=1)
    folder.save(state, {"w": torch.ones(2)})
    for step in (5, 10, 15):
        save_step(folder, state, step)
    resumed = loaded(folder)
    assert resumed.parts == {"w": Equal([1.0, 1.0])}
    assert resumed.training == folder.path / "state" / "task_002_step_00000015"
    assert resumed.state.reached(resumed.training.name) == "step 15 of task 2 of 3"
    names = {path.name for path in (folder.path / "state").iterdir() if path.is_dir()}
    assert names == {"after_001", "task_002_step_00000010", "task_002_step_00000015"}
    folder.save(RunState(num_tasks=3, next_task=1, learnt=True), {"w": torch.zeros(2)})
    assert loaded(folder).training is None
    assert loaded(folder).state.reached() == "the evaluation after task 2 of 3"


def test_scores_alone_leave_the_files_and_the_state_before(folder: RunFolder) -> None:
    folder.save(RunState(num_tasks=3, next_task=1), {"w": torch.ones(2)})
    folder.save(RunState(num_tasks=3, next_task=1, learnt=True), {"w": torch.zeros(2)})
    for score in (1.0, 2.0):
        evaluated = {"0": score}
        folder.save(RunState(num_tasks=3, next_task=1, learnt=True, evaluated=evaluated))
    assert loaded(folder).state.evaluated == {"0": 2.0}
    assert loaded(folder).parts == {"w": Equal([0.0, 0.0])}
    assert loaded(folder, "previous").state.evaluated == {"0": 2.0}, "the latest is whole"
    (folder.path / "state" / "after_002" / "state.json").unlink()
    assert loaded(folder, "previous").parts == {"w": Equal([1.0, 1.0])}


@pytest.mark.parametrize("dies_in", ["save_state", "write_json"])
def test_a_kill_while_saving_leaves_the_state_before(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, dies_in: str
) -> None:
    folder.save(RunState(num_tasks=3, next_task=1), {"w": torch.ones(2)})

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kif_lightning.run_state, dies_in, die)
    with pytest.raises(KeyboardInterrupt):
        folder.save(RunState(num_tasks=3, next_task=2), {"w": torch.zeros(2)})
    monkeypatch.undo()
    assert loaded(folder).state.next_task == 1
    assert loaded(folder).parts == {"w": Equal([1.0, 1.0])}
    folder.save(RunState(num_tasks=3, next_task=2), {"w": torch.zeros(2)})
    assert loaded(folder).state.next_task == 2


@pytest.mark.parametrize(
    "name", ["latest.json", "after_002/state.json", "after_002/tensors.safetensors"]
)
def test_a_damaged_state_is_named_and_the_one_before_offered(folder: RunFolder, name: str) -> None:
    for task in (1, 2):
        folder.save(RunState(num_tasks=3, next_task=task), {"w": torch.full((2,), float(task))})
    path = folder.path / "state" / name
    path.write_text("{")
    before = content(folder.path)
    with pytest.raises(UserError, match=r"the end of task 1 of 3, with resume=previous") as error:
        RunFolder(folder.path).load()
    assert str(path) in str(error.value)
    assert content(folder.path) == before
    resumed = loaded(folder, "previous")
    assert (resumed.state.next_task, resumed.parts) == (1, {"w": Equal([1.0, 1.0])})
    assert loaded(folder).state.next_task == 1, "from now on it is the latest"


def test_a_damaged_checkpoint_is_told_before_the_training_begins(folder: RunFolder) -> None:
    state = RunState(num_tasks=3, next_task=1)
    folder.save(state, {"w": torch.ones(2)})
    for step in (5, 10):
        save_step(folder, state, step)
    path = folder.path / "state" / "task_002_step_00000010" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"step 5 of task 2 of 3, with resume=previous") as error:
        RunFolder(folder.path).load()
    assert str(path) in str(error.value)


def test_without_a_state_before_a_damaged_one_means_to_start_anew(folder: RunFolder) -> None:
    folder.save(RunState(num_tasks=2, next_task=1), {})
    (folder.path / "state" / "latest.json").write_text("{")
    for resume in ("latest", "previous"):
        with pytest.raises(UserError, match="rerun=true"):
            RunFolder(folder.path).load(resume)


def test_a_lost_pointer_is_no_new_run(folder: RunFolder) -> None:
    for task in (1, 2):
        folder.save(RunState(num_tasks=3, next_task=task), {})
    (folder.path / "state" / "latest.json").unlink()
    with pytest.raises(UserError, match=r"latest\.json is missing.*resume=previous"):
        RunFolder(folder.path).load()
    assert loaded(folder, "previous").state.next_task == 1


def test_finished_is_told_by_the_results_of_the_same_settings(folder: RunFolder) -> None:
    assert not folder.is_finished(SETTINGS)
    folder.write_results({"metrics": {"average_performance": 50.25}})
    assert folder.is_finished(SETTINGS)
    assert folder.results() == {"metrics": {"average_performance": 50.25}}
    with pytest.raises(UserError, match=r"optim\.lr: 0\.0003 there, 0\.5 now"):
        folder.is_finished(changed(lr=0.5))


def test_a_finished_run_of_other_data_is_told(folder: RunFolder) -> None:
    before = {"a": {"train": "1", "test": "2"}, "b": {"train": "3"}}
    folder.write_results({"protocol": {"data_sha256": before}})
    folder.require_same_data(before)
    for now, told in (
        ({**before, "b": {"train": "4"}}, "The data of b changed"),
        ({"a": {"train": "1"}, "c": {}}, "The data of a, b, c changed"),
        (dict(reversed(before.items())), "The order of the tasks changed"),
    ):
        with pytest.raises(UserError, match=f"{told} since.*rerun=true") as error:
            folder.require_same_data(now)
        assert str(folder.path) in str(error.value)


def test_flat() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": [1, {"f": 2}], 3: "x"}
    assert flat(nested) == {"a.b": 1, "a.c.d": None, "e": [1, {"f": 2}], "3": "x"}


def test_all_processes_wait_where_one_writes_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that see the file already: the others would wait for them for ever."""
    folder, waited, made = RunFolder(tmp_path / "run"), [], []

    def on_first(write: Callable[[], object]) -> None:
        waited.append(1)
        write()

    def record() -> dict[str, Any]:
        made.append(1)
        return {"tasks": []}

    monkeypatch.setattr(ranks, "on_first", on_first)
    folder.keep_stream(record)
    folder.keep_stream(record)
    assert (len(waited), len(made)) == (2, 1)
    assert folder.stream() == {"tasks": []}


def test_what_a_killed_write_left_is_in_nobodys_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for _ in ("killed while the config was written", "killed later"):
        leftover = folder.path / "predictions" / ".0123.tmp"
        (folder.path / "predictions").mkdir(parents=True, exist_ok=True)
        (folder.path / ".4567.tmp").write_text("half")
        (folder.path / ".89.tmp" / ".ab.tmp").mkdir(parents=True, exist_ok=True)
        if (folder.path / "config.yaml").is_file():
            leftover.write_text("half")
        else:
            (folder.path / "predictions").rmdir()
        folder.open(SETTINGS, rerun=False)
    assert list(content(folder.path)) == ["config.yaml"]
    assert [path.name for path in folder.path.rglob(".*")] == []


def test_a_damaged_task_state_under_checkpoints_is_made_good_by_the_task_before(
    folder: RunFolder,
) -> None:
    for task in (1, 2):
        state = RunState(num_tasks=3, next_task=task)
        folder.save(state, {"w": torch.full((2,), float(task))})
        for step in (5, 10):
            save_step(folder, state, step)
    (folder.path / "state" / "after_002" / "tensors.safetensors").write_text("")
    with pytest.raises(UserError, match=r"the end of task 1 of 3, with resume=previous"):
        RunFolder(folder.path).load()
    resumed = loaded(folder, "previous")
    assert (resumed.state.next_task, resumed.training) == (1, None)
    assert resumed.parts == {"w": Equal([1.0, 1.0])}


@pytest.mark.parametrize("name", ["previous.json", "earlier.json"])
def test_a_damaged_older_pointer_stops_no_run(folder: RunFolder, name: str) -> None:
    for task in (1, 2):
        folder.save(RunState(num_tasks=4, next_task=task), {"w": torch.full((2,), float(task))})
    (folder.path / "state" / name).write_text("{")
    folder.save(RunState(num_tasks=4, next_task=2, evaluated={"0": 1.0}))
    folder.save(RunState(num_tasks=4, next_task=3), {"w": torch.full((2,), 3.0)})
    assert loaded(folder).parts == {"w": Equal([3.0, 3.0])}


def stream_state(num_tasks: int, finished: int, *, learnt: bool = False) -> RunState:
    """As a run of so many tasks stands, each scored on itself alone."""
    return RunState(
        num_tasks=num_tasks,
        next_task=finished,
        learnt=learnt,
        score_matrix=[
            [50.0 + i if j == i else None for j in range(num_tasks)] for i in range(finished)
        ],
        phases=[
            {"name": f"task{i}", "seconds": {"train": i / 3}} for i in range(finished + learnt)
        ],
        data_sha256={f"task{i}": {"train": "a" * 64} for i in range(num_tasks)},
    )


def test_a_save_writes_no_more_after_many_tasks(folder: RunFolder) -> None:
    """All that a boundary writes: the pointers anew, and what is appended."""
    states = folder.path / "state"
    written = []
    for finished in range(101):
        before = (states / "finished.jsonl").stat().st_size if finished else 0
        folder.save(stream_state(200, finished, learnt=True), {"w": torch.zeros(2)})
        folder.save(stream_state(200, finished + 1))
        pointers = sum(path.stat().st_size for path in states.glob("*.json"))
        written.append(pointers + (states / "finished.jsonl").stat().st_size - before)
    assert written[100] <= written[5] + 30, "longer numbers, nothing else"
    assert loaded(folder).state == stream_state(200, 101)


def test_finished_tasks_come_back_with_the_state_that_knew_them(folder: RunFolder) -> None:
    for finished in (1, 2, 3):
        folder.save(stream_state(5, finished), {"w": torch.full((2,), float(finished))})
    (folder.path / "state" / "latest.json").write_text("{")
    again = RunFolder(folder.path)
    resumed = again.load("previous")
    assert resumed is not None
    assert resumed.state == stream_state(5, 2)
    # Another third task takes the place of the one that was given up.
    other = stream_state(5, 3)
    other.score_matrix[2][2] = 0.25
    again.save(other, {"w": torch.zeros(2)})
    assert loaded(folder).state == other


def test_a_half_written_record_is_cut_off(folder: RunFolder) -> None:
    folder.save(stream_state(5, 1), {})
    with (folder.path / "state" / "finished.jsonl").open("a") as file:
        file.write('{"phase": {"na')
    assert loaded(folder).state == stream_state(5, 1)
    folder.save(stream_state(5, 2), {})
    assert loaded(folder).state == stream_state(5, 2)


@pytest.mark.parametrize("damage", ["lost", "short", "changed"])
def test_damaged_records_are_named(folder: RunFolder, damage: str) -> None:
    folder.save(stream_state(5, 1), {"w": torch.zeros(2)})
    folder.save(stream_state(5, 2), {"w": torch.zeros(2)})
    path = folder.path / "state" / "finished.jsonl"
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(content[:-9] + (b"" if damage == "short" else b"3" * 9))
    with pytest.raises(UserError, match=r"finished\.jsonl is") as error:
        loaded(folder)
    if damage == "lost":
        assert "rerun=true" in str(error.value)
    else:
        assert "resume=previous" in str(error.value), "the first task's record is whole"
        assert loaded(folder, "previous").state == stream_state(5, 1)
