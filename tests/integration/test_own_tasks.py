"""A stream of the user's own files, from their description to the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from kif_lightning.errors import UserError
from kif_lightning.runner import StreamRunner
from tests.helpers.streams import composed, run_stream

TASKS = """
defaults: {answer: "{label}"}
tasks:
  colour:
    kind: classification
    train: colour.csv
    prompt: "Is this {text} ?"
    words: {0: no, 1: yes}
  shape:
    kind: multiple_choice
    train: shape.csv
    test: shape_test.csv
    prompt: "What is {text} ?\\n{choices}\\nAnswer:"
    choices: [first, second]
  talk:
    kind: dialogue_state
    train: talk.csv
    prompt: "{text}"
    answer: "{state}"
"""


def write_tasks(folder: Path) -> Path:
    """Three CSV files as a user has them."""
    files = {
        "colour": ["text,label", *(f"red {i},{i % 2}" for i in range(20))],
        "shape": [
            "text,first,second,label",
            *(f'"a, {i}",round,flat,{"AB"[i % 2]}' for i in range(6)),
        ],
        "talk": ["text,state", *(f"turn {i},colour=red; size={i}" for i in range(15))],
    }
    files["shape_test"] = files["shape"]
    for name, lines in files.items():
        (folder / f"{name}.csv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    (folder / "tasks.yaml").write_text(TASKS)
    return folder / "tasks.yaml"


def config_of(file: Path, model: Path, run_dir: Path) -> DictConfig:
    settings = [
        "backbone=t5_base",
        f"backbone.path={model}",
        "benchmark=own",
        f"benchmark.file={file}",
        "trainer.accelerator=cpu",
        "evaluation.max_new_tokens=4",
        "report=false",
        f"run_dir={run_dir}",
    ]
    return composed(*settings)


def test_three_csv_files_run_end_to_end(tiny_t5: Path, tmp_path: Path) -> None:
    file = write_tasks(tmp_path)
    results, _ = run_stream(config_of(file, tiny_t5, tmp_path / "run"))
    protocol = results["protocol"]
    assert protocol["order"] == ["colour", "shape", "talk"]
    assert protocol["metrics"] == {
        "colour": "exact_match", "shape": "exact_match", "talk": "joint_goal_accuracy"
    }  # fmt: skip
    assert protocol["rows"] == {
        "colour": {"train": 16, "test": 4},
        "shape": {"train": 6, "test": 6},
        "talk": {"train": 12, "test": 3},
    }
    assert protocol["data_source"] == {
        "source": "own", "test_held_out_of_train": {"colour": 0.2, "talk": 0.2}
    }  # fmt: skip
    assert [len(row) for row in results["score_matrix"]] == [3, 3, 3]
    told = (tmp_path / "run" / "predictions" / "after_03_talk__on_02_shape.jsonl").read_text()
    assert [json.loads(line)["reference"] for line in told.splitlines()] == list("ABABAB")


def test_what_is_wrong_with_the_file_is_told_before_anything_is_written(
    tiny_t5: Path, tmp_path: Path
) -> None:
    file = write_tasks(tmp_path)
    file.write_text(TASKS.replace("classification", "class").replace("talk.csv", "[talk.csv]"))
    with pytest.raises(UserError) as error:
        run_stream(config_of(file, tiny_t5, tmp_path / "run"))
    message = str(error.value)
    assert f"{file}, task colour: kind must be" in message
    assert f"{file}, task talk: 'train' must be a file" in message
    assert not (tmp_path / "run").exists()


def test_a_changed_description_is_not_a_finished_run(tiny_t5: Path, tmp_path: Path) -> None:
    file = write_tasks(tmp_path)
    config = config_of(file, tiny_t5, tmp_path / "run")
    run_stream(config)
    assert "Finished already" in run_stream(config)[1]
    file.write_text(TASKS.replace("Is this", "Are these"))
    with pytest.raises(UserError, match=r"The data of colour changed since .*rerun=true"):
        run_stream(config)


def test_a_finished_run_is_shown_though_its_data_are_gone(tiny_t5: Path, tmp_path: Path) -> None:
    file = write_tasks(tmp_path)
    config = config_of(file, tiny_t5, tmp_path / "run")
    results, _ = run_stream(config)
    file.unlink()
    shown, said = run_stream(config)
    assert shown == results
    assert "Whether the data are still those of the run is not known" in said
    assert str(file) in said


def test_another_order_is_not_gone_on_with(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_tasks(tmp_path)
    config = config_of(file, tiny_t5, tmp_path / "run")
    learn = StreamRunner._learn

    def interrupted(self: StreamRunner, task_index: int, state: Any) -> None:
        if task_index == 1:
            raise KeyboardInterrupt
        learn(self, task_index, state)

    monkeypatch.setattr(StreamRunner, "_learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stream(config)
    monkeypatch.undo()
    names = re.findall(r"^  (\w+):$", TASKS, flags=re.MULTILINE)
    file.write_text(f"order: [{', '.join(reversed(names))}]\n{TASKS}")
    with pytest.raises(UserError, match="The order of the tasks changed since this run began"):
        run_stream(config)
