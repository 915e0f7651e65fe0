"""Whole runs: what the files say together, broken steps, and interruptions within a task."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from kif_lightning import launch
from kif_lightning.backbones.seq2seq import Seq2SeqBackbone
from kif_lightning.errors import DivergedError, UserError
from kif_lightning.module import ContinualModule
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.run_record import read_run
from kif_lightning.run_state import RunFolder
from kif_lightning.runner import StreamRunner
from tests.helpers.streams import run_stream, tiny_config

CLASSES = {"task_shared", "previous_specific", "current_specific", "unimportant"}
BROKEN = "+method.penalty.broken={_target_: tests.helpers.fits.BreaksAt, calls: %s}"


@pytest.fixture
def config(tiny_t5: Path, toy_data: Path, tmp_path: Path) -> Any:
    def make(name: str, *overrides: str) -> DictConfig:
        return tiny_config(tiny_t5, toy_data, tmp_path / name, *overrides)

    return make


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(folder: Path) -> Any:
    """Everything of a run but the seconds and the memory."""
    results = json.loads((folder / "results.json").read_text())
    for task in results["phases"]:
        del task["seconds"]
    importance = {p.name: json.loads(p.read_text()) for p in (folder / "importance").iterdir()}
    for record in importance.values():
        del record["seconds"]
    kinds = ("predictions", "test_rows", "curves")
    files = {p: p.read_bytes() for kind in kinds for p in sorted((folder / kind).iterdir())}
    files = {path.relative_to(folder): content for path, content in files.items()}
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    kept = {key: results[key] for key in results if key not in ("cost", "protocol")}
    return kept, importance, files, adapter


def test_files_agree_with_each_other_and_with_the_rows(
    config: Any, toy_data: Path, tmp_path: Path
) -> None:
    options = ("evaluation.untrained=true", "evaluation.next_task=true", "lora.dropout=0")
    results, _ = run_stream(config("run", *options))
    folder, names = tmp_path / "run", ["colour", "shape"]
    labels = {"after_01_colour": results["score_matrix"][0], "untrained": results["untrained"]}
    labels["after_02_shape"] = results["score_matrix"][1]
    for label, row in labels.items():
        for j, name in enumerate(names):
            rows = read_lines(toy_data / name / "test.jsonl")
            said = read_lines(folder / "predictions" / f"{label}__on_{j + 1:02d}_{name}.jsonl")
            assert [(s["id"], s["reference"]) for s in said] == [
                (r["id"], r["output"]) for r in rows
            ]
            for line in said:
                right = line["prediction"].strip().lower() == line["reference"]
                assert line["score"] == 100.0 * right
            assert row[j] == pytest.approx(sum(s["score"] for s in said) / len(said))
    matrix, metrics = results["score_matrix"], results["metrics"]
    zero_shot = matrix[0][1] - results["untrained"][1]
    assert metrics["forward_transfer_zero_shot"] == pytest.approx(zero_shot)
    assert metrics["average_performance"] == pytest.approx(sum(matrix[1]) / 2)
    assert metrics["backward_transfer"] == pytest.approx(matrix[1][0] - matrix[0][0])
    assert [phase["optimizer_steps"] for phase in results["phases"]] == [2, 2]
    stored = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert stored == launch.run_settings(config("run", *options))


def test_a_run_keeps_its_losses_and_the_prompts_of_its_predictions(
    config: Any, toy_data: Path, tmp_path: Path
) -> None:
    results, _ = run_stream(config("run", "optim.epochs=3"))
    record = read_run(tmp_path / "run")
    assert [curve["task"] for curve in record.curves] == record.phases == ["colour", "shape"]
    assert [curve["first_step"] for curve in record.curves] == [1, 7]
    for curve, phase in zip(record.curves, results["phases"], strict=True):
        assert len(curve["loss"]) == phase["optimizer_steps"] == 6
        assert curve["loss"][-1] == phase["last_loss"]
    for index, name in enumerate(record.tasks):
        rows = read_lines(toy_data / name / "test.jsonl")
        assert record.inputs(index) == {row["id"]: row["input"] for row in rows}
    assert len(record.boundaries) == 2
    said = record.predictions(1, 0)
    assert sum(s["score"] for s in said) / len(said) == pytest.approx(record.matrix[1][0])
    assert record.predictions(0, 1) == [], "not evaluated then"


def test_steps_of_a_replay_are_on_the_axis_and_not_in_the_curves(
    config: Any, tmp_path: Path
) -> None:
    results, _ = run_stream(config("run", "method=kif_m"))
    replayed = results["phases"][1]["replay_steps"]
    assert replayed > 0
    first, second = read_run(tmp_path / "run").curves
    assert second["first_step"] == first["first_step"] + 2, "nothing to replay after the first"
    assert len(second["loss"]) == 2


def test_each_prediction_stands_at_its_row(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers(self: Any, model: Any, batch: Any, cap: int) -> list[str]:
        prompts = self.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        rows = [int(prompt.split("test ")[1][0]) for prompt in prompts]
        return ["good" if row in (0, 1, 4) else f"row {row}" for row in rows]

    monkeypatch.setattr(Seq2SeqBackbone, "generate", numbers)
    # Batches of 4, sorted by length; the right answer is good in the even rows.
    one_task = ("method=seq_lora", "benchmark.order=[colour]", "evaluation.batch_size=4")
    results, _ = run_stream(config("run", *one_task))
    said = read_lines(tmp_path / "run" / "predictions" / "after_01_colour__on_01_colour.jsonl")
    assert [line["id"] for line in said] == [f"colour-test-{i}" for i in range(6)]
    expected = ["good", "good", "row 2", "row 3", "good", "row 5"]
    assert [line["prediction"] for line in said] == expected
    assert [line["score"] for line in said] == [100, 0, 0, 0, 100, 0]
    assert results["score_matrix"] == [[pytest.approx(100 / 3)]]


def test_importance_files_hold_the_fusion(config: Any, tmp_path: Path) -> None:
    run_stream(config("run"))
    first, second = (
        json.loads((tmp_path / "run" / "importance" / f"{name}_fusion.json").read_text())
        for name in ("01_colour", "02_shape")
    )
    assert not {"previous", "weight", "classes"} & first.keys()
    assert second["previous"] == pytest.approx(first["accumulated"])
    assert set(second["classes"]) <= CLASSES
    assert len(set(second["classes"])) > 1
    pairs = zip(second["previous"], second["current"], second["weight"], strict=True)
    for past, current, weight in pairs:
        assert weight == pytest.approx(1 / (1 + math.exp((current - past) / 0.15)))


@pytest.mark.parametrize("where", ["fit", "evaluation"])
@pytest.mark.parametrize("model", ["tiny_t5", "tiny_llama"])
def test_interruption_within_a_task_changes_nothing(
    model: str,
    where: str,
    request: pytest.FixtureRequest,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def again(name: str) -> tuple[Any, str]:
        folder = request.getfixturevalue(model)
        return run_stream(
            tiny_config(folder, toy_data, tmp_path / name, "optim.micro_batch_size=4")
        )

    owner: Any = ContinualModule if where == "fit" else StreamRunner
    name = "training_step" if where == "fit" else "evaluate"
    original, calls = getattr(owner, name), []
    # fit: the last micro-batch of the second task's first step; evaluation: after its fit.
    last = 6 if where == "fit" else 2

    def interrupted(self: Any, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return original(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            again("cut")
    loaded = RunFolder(tmp_path / "cut").load()
    assert loaded is not None
    assert loaded.state.learnt == (where == "evaluation")
    assert loaded.state.next_task == len(loaded.state.score_matrix) == 1
    assert not (tmp_path / "cut" / "results.json").exists()
    _, said = again("cut")
    reached = "the end of task 1" if where == "fit" else "the evaluation after task 2"
    assert f"Resuming after {reached} of 2" in said
    again("whole")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_broken_step_is_counted_and_told(config: Any, tmp_path: Path) -> None:
    results, said = run_stream(config("run", BROKEN % "[1]"))
    assert [phase["skipped_steps"] for phase in results["phases"]] == [1, 0]
    assert [phase["optimizer_steps"] for phase in results["phases"]] == [1, 2]
    assert "colour: 1 optimizer steps skipped" in said
    assert said.count("steps skipped") == 1


def test_persisting_trouble_ends_the_run_with_its_reason(config: Any, tmp_path: Path) -> None:
    broken = config("run", BROKEN % "[3,4,5]", "optim.max_skipped_in_a_row=3", "optim.epochs=4")
    with pytest.raises(DivergedError, match="loss was not finite in 3 optimizer steps in a row"):
        run_stream(broken)
    assert not (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "state").exists()


def test_finished_run_is_shown_and_rerun_starts_anew(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = run_stream(config("run"))
    before = outcome(tmp_path / "run")
    for kind in ("predictions", "test_rows", "curves"):
        (tmp_path / "run" / kind / "stale.jsonl").write_text("{}")
    _, shown = run_stream(config("run"))
    assert "Finished already" in shown
    assert "Trainable:" in first
    assert "Trainable:" not in shown
    # Where it writes and what it shows is no setting: the folder still belongs to it.
    _, again = run_stream(config("run", "rerun=true"))
    assert "Trainable:" in again
    assert "Resuming" not in again
    assert outcome(tmp_path / "run") == before
    with pytest.raises(UserError, match=r"method\.rule\.tau: 0\.15 there, 0\.3 now"):
        run_stream(config("run", "method.rule.tau=0.3"))
    assert outcome(tmp_path / "run") == before


def test_what_is_no_truth_value_deletes_no_run(config: Any, tmp_path: Path) -> None:
    run_stream(config("run"))
    before = outcome(tmp_path / "run")
    for wrong in ("rerun=no", "rerun=nope"):
        with pytest.raises(UserError, match="rerun must be True or False, got 'no"):
            run_stream(config("run", wrong))
    with pytest.raises(UserError, match=r"plan must be .*\n.*evaluation\.untrained must be"):
        run_stream(config("run", "plan=ture", "evaluation.untrained=perhaps"))
    assert outcome(tmp_path / "run") == before


def test_what_a_finished_run_did_not_keep_is_told(config: Any) -> None:
    run_stream(config("run"))
    _, said = run_stream(config("run", "keep_boundaries=true", "logger=csv"))
    for key in ("keep_boundaries=true", "logger=csv"):
        assert f"{key} has no effect on a finished run: add rerun=true" in said
    assert "has no effect on a finished run" not in run_stream(config("run"))[1]


def test_folder_of_something_else_is_left_alone(config: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for extra in ([], ["rerun=true"]):
        with pytest.raises(UserError, match=r"holds files, but no run's config\.yaml"):
            run_stream(config("run", *extra))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


NOT_EVALUATED = {
    "full": set(),
    "final_row": {(0, 0)},
    "diagonal": {(1, 0)},
    "diagonal_and_final_row": set(),
}
LACKING = {
    "full": set(),
    "final_row": {"forgetting_rate", "backward_transfer"},
    "diagonal": {"average_performance", "forgetting_rate", "backward_transfer"},
    "diagonal_and_final_row": set(),
}


@pytest.mark.parametrize("part", NOT_EVALUATED)
def test_only_the_part_of_the_matrix_that_was_asked_for(
    part: str, config: Any, tmp_path: Path
) -> None:
    whole, _ = run_stream(config("full", "evaluation.matrix=full"))
    results, _ = run_stream(config(part, f"evaluation.matrix={part}"))
    found, expected = results["score_matrix"], whole["score_matrix"]
    for i, j in ((0, 0), (1, 0), (1, 1)):
        assert found[i][j] == (None if (i, j) in NOT_EVALUATED[part] else expected[i][j])
    assert found[0][1] is None
    left = {key: whole["metrics"][key] for key in whole["metrics"].keys() - LACKING[part]}
    assert results["metrics"] == left
    assert results["protocol"]["evaluation_matrix"] == part
    evaluated = 3 - len(NOT_EVALUATED[part])
    assert len(list((tmp_path / part / "predictions").iterdir())) == evaluated


def test_tasks_to_judge_of_longer_streams(config: Any) -> None:
    def judged(*overrides: str) -> list[list[int]]:
        runner = launch.new_runner(config("run", *overrides), RunConsole())
        runner.data.training_tasks *= 2  # four phases of the two tasks' stream
        runner.tasks = runner.data.training_tasks
        return [runner.tasks_to_judge(i) for i in range(4)]

    assert judged() == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    assert judged("evaluation.matrix=final_row") == [[], [], [], [0, 1, 2, 3]]
    assert judged("evaluation.matrix=diagonal") == [[0], [1], [2], [3]]
    both = judged("evaluation.matrix=diagonal_and_final_row")
    assert both == [[0], [1], [2], [0, 1, 2, 3]]
    zero_shot = ("evaluation.matrix=final_row", "evaluation.next_task=true")
    assert judged(*zero_shot) == [[1], [2], [3], [0, 1, 2, 3]]


@pytest.mark.parametrize("part", ["final_row", "diagonal"])
def test_tasks_learnt_at_once_are_all_newest_and_last(part: str, config: Any) -> None:
    joint = config("joint", "method=multi_task", f"evaluation.matrix={part}")
    results, _ = run_stream(joint)
    assert None not in results["score_matrix"][0]


def test_unknown_part_of_the_matrix_is_refused(config: Any) -> None:
    with pytest.raises(UserError, match=r"evaluation\.matrix must be 'full' or .*got 'half'"):
        launch.new_runner(config("run", "evaluation.matrix=half"), RunConsole())
