"""The data doctor at work: ``kif doctor`` on files, and by itself before a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kif_lightning import checkup
from kif_lightning.checkup import RowTokens, examine_run
from kif_lightning.cli import app
from kif_lightning.interfaces import Row
from kif_lightning.paths import cache_dir, conf_dir
from tests.helpers.streams import run_stream, tiny_config


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


def test_lengths_are_held_against_a_backbone(data: Path) -> None:
    long = [(f"{i} " + "many words " * 300, "good") for i in range(10)]
    write(data, "shape", train=[*clean("train"), *long])
    assert "long_input" not in kif("doctor", data).output
    assert "long_input" in kif("doctor", data, "--backbone", "t5_nano").output


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
    assert results["data_findings"] == []
    assert "stands in train" not in said


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
