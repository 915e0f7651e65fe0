"""The data doctor at work: ``kif doctor`` on files, and by itself before a training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kif_lightning import checkup, launch
from kif_lightning.checkup import RowTokens, examine_run
from kif_lightning.cli import app
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from kif_lightning.paths import cache_dir, conf_dir
from tests.helpers.streams import composed, run_stream, tiny_config


def kif(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def write(folder: Path, task: str, **splits: list[tuple[str, str]]) -> None:
    for split, rows in splits.items():
        path = folder / task / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"id": f"{split}-{i}", "input": text, "output": output})
            for i, (text, output) in enumerate(rows)
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def clean(split: str, number: int = 20) -> list[tuple[str, str]]:
    return [(f"Is {split} thing {i} round?", ("good", "bad")[i % 2]) for i in range(number)]


def describe(folder: Path, **kinds: str) -> None:
    tasks = {name: {"kind": kind, "metric": "exact_match"} for name, kind in kinds.items()}
    (folder / "manifest.json").write_text(json.dumps({"tasks": tasks}))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A clean task."""
    folder = tmp_path / "data"
    write(folder, "shape", train=clean("train"), dev=clean("dev"), test=clean("test"))
    describe(folder, shape="classification")
    return folder


def test_clean_rows_get_no_finding(data: Path, tmp_path: Path) -> None:
    found = kif("doctor", data, "--json", tmp_path / "report.json")
    assert found.exit_code == 0, found.output
    assert "0 errors, 0 warnings, 0 notes" in found.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["findings"] == []
    splits = report["tasks"][0]["splits"]
    assert {name: split["rows"] for name, split in splits.items()} == {
        "train": 20, "dev": 20, "test": 20
    }  # fmt: skip
    assert splits["train"]["classes"] == {"bad": 10, "good": 10}


def damage(data: Path) -> dict[str, bytes]:
    """A test row in train, a blank answer, a line that is no row; returns the files as they are."""
    write(data, "shape", train=[*clean("train"), clean("test")[3], ("What?", " ")])
    with (data / "shape" / "train.jsonl").open("a") as file:
        file.write('{"id": "x", "input": \n')
    return {path.name: path.read_bytes() for path in (data / "shape").iterdir()}


def test_errors_are_told_with_status_1(data: Path, tmp_path: Path) -> None:
    damage(data)
    found = kif("doctor", data, "--json", tmp_path / "report.json")
    assert found.exit_code == 1
    report = json.loads((tmp_path / "report.json").read_text())
    errors = {f["check"]: f["count"] for f in report["findings"] if f["severity"] == "error"}
    assert errors == {"train_test_overlap": 1, "blank_output": 1, "unreadable_row": 1}
    assert "train.jsonl, line 23" in found.output.replace("\n", "")


def test_fix_writes_a_copy_and_leaves_the_original(data: Path, tmp_path: Path) -> None:
    before = damage(data)
    copy = tmp_path / "copy"
    found = kif("doctor", data, "--fix", copy)
    assert found.exit_code == 1, "of the original"
    assert {path.name: path.read_bytes() for path in (data / "shape").iterdir()} == before
    assert "It is clean." in found.output
    assert kif("doctor", copy).exit_code == 0
    rows = [json.loads(line) for line in (copy / "shape" / "train.jsonl").read_text().splitlines()]
    assert [(row["input"], row["output"]) for row in rows] == clean("train")
    again = kif("doctor", data, "--fix", copy)
    assert again.exit_code == 2
    assert str(copy) in again.output.replace("\n", "")


def test_own_tasks_of_a_yaml(tmp_path: Path) -> None:
    lines = [f"Is thing {i} round?,{('good', 'bad')[i % 2]}" for i in range(40)]
    (tmp_path / "shape.csv").write_text("\n".join(["question,label", *lines, "What?,"]) + "\n")
    (tmp_path / "tasks.yaml").write_text(
        "tasks:\n  shape:\n    kind: classification\n    train: shape.csv\n"
        "    prompt: '{question}'\n    answer: '{label}'\n"
    )
    found = kif("doctor", tmp_path / "tasks.yaml")
    assert found.exit_code == 1
    assert "blank output" in found.output or "cannot be read" in found.output


def test_a_folder_with_a_yaml_names_it(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").touch()
    found = kif("doctor", tmp_path)
    assert found.exit_code == 2
    assert str(tmp_path / "tasks.yaml") in found.output.replace("\n", "")


def test_the_example_is_clean() -> None:
    example = Path(conf_dir()).parent / "examples" / "own_tasks" / "tasks.yaml"
    found = kif("doctor", example)
    assert found.exit_code == 0
    assert "0 errors, 0 warnings, 0 notes" in found.output


def test_a_folder_of_collections(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", "size", train=clean("train"), test=clean("train"))
    found = kif("doctor", tmp_path, "--json", tmp_path / "report.json")
    assert found.exit_code == 1, "test repeats train"
    report = json.loads((tmp_path / "report.json").read_text())
    assert [task["name"] for task in report["tasks"]] == ["data/shape", "other/size"]


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        (["good", "bad"], "classification"),
        ([f"an answer of its own {i}" for i in range(20)], "generation"),
        (["x" * 61, "y"], "generation"),
    ],
)
def test_a_kind_is_guessed_and_told(tmp_path: Path, outputs: list[str], kind: str) -> None:
    rows = [(f"Thing {i}?", outputs[i % len(outputs)]) for i in range(20)]
    write(tmp_path, "shape", train=rows, test=[(f"Test {text}", out) for text, out in rows])
    found = kif("doctor", tmp_path, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tasks"][0]["kind"] == kind
    assert "No manifest describes shape" in found.output.replace("\n", " ")
    told = kif("doctor", tmp_path, "--kind", "generation", "--json", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["tasks"][0]["kind"] == "generation"
    assert "No manifest" not in told.output


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere"], ["nowhere", "folder of tasks or a yaml"]),
        ([".", "--kind", "regression"], ["--kind", "'regression'", "'classification'"]),
        ([".", "--backbone", "t5_bas"], ["t5_bas", "did you mean 't5_base'"]),
    ],
)
def test_a_mistake_is_one_sentence(
    data: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], parts: list[str]
) -> None:
    monkeypatch.chdir(data)
    found = kif("doctor", *words)
    assert found.exit_code == 2
    for part in parts:
        assert part in found.output


def test_every_good_row_is_kept_however_many_are_bad(data: Path, tmp_path: Path) -> None:
    file = data / "shape" / "train.jsonl"
    bad = "\n".join(["no row"] * 1500)
    file.write_text(f"{bad}\n{file.read_text()}")
    report = tmp_path / "report.json"
    found = kif("doctor", data, "--fix", tmp_path / "copy", "--json", report)
    (finding,) = json.loads(report.read_text())["findings"]
    assert (finding["check"], finding["count"], finding["of"]) == ("unreadable_row", 1500, 1520)
    assert "1500 unreadable_row" in found.output
    copied = (tmp_path / "copy" / "shape" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["input"] for line in copied] == [text for text, _ in clean("train")]


def test_an_empty_file_of_one_task_ends_nothing(data: Path, tmp_path: Path) -> None:
    write(data, "size", train=clean("train"), test=clean("test"))
    (data / "size" / "train.jsonl").write_text("")
    found = kif("doctor", data, "--json", tmp_path / "report.json")
    assert found.exit_code == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert [task["name"] for task in report["tasks"]] == ["shape", "size"]
    (finding,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert (finding["task"], finding["check"]) == ("size", "empty_split")


def own(folder: Path, *shapes: str) -> Path:
    """A yaml of a sound task and one with these questions."""
    sound = [f"Is thing {i} round?,{('good', 'bad')[i % 2]}" for i in range(40)]
    (folder / "sound.csv").write_text("\n".join(["question,label", *sound]))
    (folder / "few.csv").write_text("\n".join(["question,label", *shapes]))
    tasks = "".join(
        f"  {name}: {{kind: classification, train: {name}.csv}}\n" for name in ("sound", "few")
    )
    defaults = "defaults: {prompt: '{question}', answer: '{label}'}"
    (folder / "tasks.yaml").write_text(f"{defaults}\ntasks:\n{tasks}")
    return folder / "tasks.yaml"


def test_own_tasks_too_small_for_a_test_split(tmp_path: Path) -> None:
    file = own(tmp_path, "One?,good", "Two?,bad")
    assert kif("doctor", file, "--json", tmp_path / "report.json").exit_code == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["tasks"][1]["splits"]["train"]["rows"] == 2
    (finding,) = [f for f in report["findings"] if f["severity"] == "error"]
    assert (finding["task"], finding["check"]) == ("few", "missing_split")
    assert "enough different inputs" in finding["message"]


def test_a_missing_file_of_own_tasks_ends_nothing(tmp_path: Path) -> None:
    file = own(tmp_path)
    (tmp_path / "few.csv").unlink()
    found = kif("doctor", file, "--json", tmp_path / "report.json")
    assert found.exit_code == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert [task["name"] for task in report["tasks"]] == ["sound", "few"]
    assert {f["task"] for f in report["findings"] if f["severity"] == "error"} == {"few"}
    assert "few.csv" in found.output.replace("\n", "")


@pytest.mark.parametrize("place", ["", "file/report.json"])
def test_a_report_that_cannot_be_written_is_told(data: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    found = kif("doctor", data, "--json", tmp_path / place)
    assert found.exit_code == 2
    told = " ".join(found.output.split())
    assert "The report cannot be written to" in told
    assert "name a file that can be" in told


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        checkup.read_tasks(tmp_path)


@pytest.mark.parametrize(
    ("kind", "answers", "metric", "closed"),
    [
        ("classification", ["good", "bad"], "exact_match", True),
        ("multiple_choice", ["A", "(b)"], "exact_match", True),
        ("multiple_choice", ["a long", "a short one"], "exact_match", False),
        ("generation", ["good", "bad"], "rouge_l", False),
        ("dialogue_state", ["size=big", "none"], "joint_goal_accuracy", False),
    ],
)
def test_a_kind_brings_its_metric(
    tmp_path: Path, kind: str, answers: list[str], metric: str, closed: bool
) -> None:
    rows = [(f"Thing {i}?", answers[i % 2]) for i in range(20)]
    write(tmp_path, "shape", train=rows, test=[(f"Test {text}", out) for text, out in rows])
    described = checkup.read_tasks(tmp_path, kind)
    (task,) = described.tasks
    assert (task.kind, task.metric, task.closed_answers) == (kind, metric, closed)
    assert described.undescribed == ["shape"]


def test_a_kind_without_effect_is_told(data: Path, tmp_path: Path) -> None:
    for path in (data, own(tmp_path, *(f"{i}?,{'ab'[i % 2]}" for i in range(20)))):
        said = " ".join(kif("doctor", path, "--kind", "generation").output.split())
        assert "--kind=generation has no effect" in said
    write(data, "size", train=clean("train"), test=clean("test"))
    assert "no effect" not in kif("doctor", data, "--kind", "generation").output


def test_a_copy_of_collections_is_described(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "data", "size", train=clean("train"), test=clean("test"))
    write(tmp_path / "other", "shape", train=clean("train"), test=clean("test"))
    copy = tmp_path.with_name(f"{tmp_path.name}_copy")
    assert kif("doctor", tmp_path, "--fix", copy).exit_code == 0
    for folder in (copy, copy / "data"):
        found = kif("doctor", folder)
        assert found.exit_code == 0
        assert "No manifest" not in found.output


def test_lengths_are_held_against_a_backbone(data: Path) -> None:
    long = [(f"{i} " + "many words " * 300, "good") for i in range(10)]
    write(data, "shape", train=[*clean("train"), *long])
    assert "long_input" not in kif("doctor", data).output
    assert "long_input" in kif("doctor", data, "--backbone", "t5_nano").output


def test_a_saved_copy_of_a_backbone(tiny_t5: Path, data: Path, tmp_path: Path) -> None:
    backbone = checkup.named_backbone(f"t5_large={tiny_t5}")
    assert (backbone.name, backbone.path) == ("t5_large", str(tiny_t5))
    assert kif("doctor", data, "--backbone", f"t5_large={tiny_t5}").exit_code == 0
    with pytest.raises(UserError, match="expected a folder with a saved model"):
        checkup.named_backbone(f"t5_large={tmp_path}")
    with pytest.raises(UserError, match="did you mean 't5_large'"):
        checkup.named_backbone(f"t5_larg={tiny_t5}")


def test_a_backbone_out_of_reach_is_told_in_the_commands_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError) as error:
        checkup.named_backbone("t5_large")
    assert "--backbone=t5_large=FOLDER" in str(error.value)
    assert "--backbone=t5_nano" in str(error.value)
    assert "backbone.path" not in str(error.value)


def test_tokens_are_counted_uncut() -> None:
    backbone = checkup.named_backbone("t5_nano")
    tokens = RowTokens(backbone)
    row = Row(id="", input="word " * 5000, output="yes")
    assert tokens.count(row)[0] > backbone.max_source_tokens == tokens.max_source_tokens
    assert len(backbone.encode(row).prompt_ids) == backbone.max_source_tokens


def overlapping(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for task in ("colour", "shape"):
        write(folder, task, train=clean("train"), test=[*clean("test", 6), clean("train")[0]])
    return folder


def test_a_run_tells_and_keeps_what_is_wrong(tiny_t5: Path, tmp_path: Path) -> None:
    data = overlapping(tmp_path)
    config = tiny_config(tiny_t5, data, tmp_path / "run", "method=seq_lora")
    results, said = run_stream(config)
    assert "1 of 7 rows of test have an input that stands in train too" in said
    assert "train_test_overlap 2 times, also in shape" in said
    assert [f["check"] for f in results["data_findings"]] == ["train_test_overlap"] * 2
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored["data_findings"] == results["data_findings"]


def test_clean_rows_are_not_spoken_of(tiny_t5: Path, data: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_t5, data, tmp_path / "run", "method=seq_lora", "benchmark.order=[shape]"
    )
    results, said = run_stream(config)
    assert results["data_findings"] == []
    assert "error" not in said
    assert "warning" not in said


def test_it_can_be_left_out(tiny_t5: Path, tmp_path: Path) -> None:
    data = overlapping(tmp_path)
    config = tiny_config(tiny_t5, data, tmp_path / "run", "method=seq_lora", "examine_data=false")
    results, said = run_stream(config)
    assert results["data_findings"] is None, "not 'nothing found'"
    assert "stands in train" not in said


@pytest.mark.parametrize(
    ("overrides", "whole"),
    [
        (["benchmark=long_sequence", "benchmark.data_dir=my/rows"], "kif doctor my/rows"),
        (["benchmark=own", "benchmark.file=tasks.yaml"], "kif doctor tasks.yaml"),
        (["benchmark=long_sequence_mini"], "data_findings in runs/one/results.json"),
        (["benchmark=superni", "benchmark.source=hub"], "data_findings in runs/one/results.json"),
    ],
)
def test_the_rest_is_where_it_is_said_to_be(overrides: list[str], whole: str) -> None:
    config = composed(*overrides, "run_dir=runs/one")
    assert launch._whole_report(config).startswith(whole)


def parts_of(model: Path, data: Path, *overrides: str) -> Any:
    from kif_lightning.assembly import build_parts

    return build_parts(tiny_config(model, data, data / "run", *overrides))


def test_the_report_is_cached_by_what_decides_it(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    data = overlapping(tmp_path)
    examined = []
    real = checkup.examine_all
    monkeypatch.setattr(checkup, "examine_all", lambda *given: examined.append(1) or real(*given))
    first = examine_run(parts_of(tiny_t5, data))
    assert examine_run(parts_of(tiny_t5, data)) == first
    assert len(examined) == 1
    for changed in (
        "benchmark.test_rows=5",
        "benchmark.train_rows=5",
        "backbone.max_source_tokens=9",
    ):
        examine_run(parts_of(tiny_t5, data, changed))
    assert len(examined) == 4
    write(data, "shape", test=clean("test", 6))
    examine_run(parts_of(tiny_t5, data))
    assert len(examined) == 5
    assert len(list((cache_dir() / "doctor").iterdir())) == 5


@pytest.mark.parametrize("split", ["train", "test", "dev"])
def test_other_texts_of_the_same_file_are_looked_at_anew(
    tiny_t5: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    parts = parts_of(tiny_t5, data, "benchmark.order=[shape]")
    assert examine_run(parts)["findings"] == []
    (task,) = parts.benchmark.tasks
    for text in ("input", "output"):
        first, *others = getattr(task, split)
        rows = (replace(first, **{text: " "}), *others)
        parts.benchmark.tasks = (replace(task, **{split: rows}),)
        assert f"blank_{text}" in [f["check"] for f in examine_run(parts)["findings"]]


@pytest.mark.parametrize("content", ["", '{"findings": [', "[]", "{}"])
def test_a_damaged_cache_counts_as_none(
    tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "cache"))
    parts = parts_of(tiny_t5, overlapping(tmp_path))
    report = examine_run(parts)
    (file,) = (cache_dir() / "doctor").iterdir()
    file.write_text(content)
    assert examine_run(parts) == report
    assert json.loads(file.read_text()) == report


def test_a_cache_that_cannot_be_written_stops_no_run(
    tiny_t5: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KIF_CACHE", str(tmp_path / "file" / "cache"))
    report = examine_run(parts_of(tiny_t5, overlapping(tmp_path)))
    assert report["counts"]["error"] == 2
    assert "set KIF_CACHE" in caplog.text


def test_what_fix_leaves_is_told(data: Path, tmp_path: Path) -> None:
    write(data, "shape", train=[(f"Is {i} round?", ("g", "good")[i % 2]) for i in range(20)])
    found = kif("doctor", data, "--fix", tmp_path / "copy")
    assert "rows dropped or changed: none" in found.output
    assert "It still has:" in found.output
    assert "1 of 2 classes of test never occur in train ('bad')" in found.output
