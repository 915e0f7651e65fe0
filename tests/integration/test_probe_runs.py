"""Runs with a probe: what they leave, that training does not notice, and that they go on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from kif_lightning import probe as probe_module
from kif_lightning.assembly import HELD_OUT_ROWS
from kif_lightning.errors import UserError
from kif_lightning.interfaces import Row
from tests.helpers.probes import by_hand, written
from tests.helpers.streams import run_stream, tiny_backbone, tiny_config


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl")


@pytest.fixture
def config(tiny_t5: Path, toy_data: Path, tmp_path: Path, rows: Path) -> Any:
    def make(name: str, *overrides: str, probed: bool = True) -> DictConfig:
        asked = ["probe=own", f"probe.file={rows}"] if probed else []
        return tiny_config(tiny_t5, toy_data, tmp_path / name, *asked, *overrides)

    return make


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcome(folder: Path) -> Any:
    """All that training and the tasks' evaluation left, without seconds and memory."""
    results = json.loads((folder / "results.json").read_text())
    for phase in results["phases"]:
        del phase["seconds"]
    del results["protocol"]
    del results["cost"]
    importance = {p.name: json.loads(p.read_text()) for p in folder.glob("importance/*")}
    for record in importance.values():
        del record["seconds"]
    kept = {
        path.relative_to(folder): path.read_bytes()
        for pattern in ("predictions/*", "curves/*", "adapter/*.safetensors")
        for path in folder.glob(pattern)
    }
    return results, importance, kept


def test_results_files_and_stamp_tell_the_same(
    config: Any, tmp_path: Path, tiny_t5: Path, rows: Path
) -> None:
    results, said = run_stream(config("run", "logger=csv", "evaluation.batch_size=4"))
    found = results["probe"]
    assert list(found) == [*("name", "rows", "sha256", "metric", "stand_in", "untrained", "after")]
    assert (found["name"], found["rows"], found["metric"]) == ("own", 9, "exact_match")
    assert found["stand_in"] is False
    stamp = results["protocol"]["probe"]
    assert stamp == {key: found[key] for key in ("name", "rows", "sha256", "metric")}
    labels = ["untrained", "after_01_colour", "after_02_shape"]
    asked = read_lines(rows)
    for label, measured in zip(labels, [found["untrained"], *found["after"]], strict=True):
        lines = read_lines(tmp_path / "run" / "predictions" / f"{label}__on_probe.jsonl")
        assert [(line["id"], line["reference"]) for line in lines] == [
            (row["id"], row["output"]) for row in asked
        ]
        assert measured["score"] == pytest.approx(sum(line["score"] for line in lines) / 9)
        assert measured["loss"] == pytest.approx(sum(line["loss"] for line in lines) / 9)
        assert not any("stand_ins" in line for line in lines)
    inputs = read_lines(tmp_path / "run" / "test_rows" / "probe.jsonl")
    assert inputs == [{"id": row["id"], "input": row["input"]} for row in asked]
    # The untrained adapter is the pretrained model, whose loss a row at a time is this.
    examples = tiny_backbone(tiny_t5).encode_rows([Row(**row) for row in asked])
    expected = [by_hand(tiny_t5, e.prompt_ids, e.answer_ids) for e in examples]
    assert found["untrained"]["loss"] == pytest.approx(sum(expected) / 9, rel=1e-5)
    assert found["after"][0]["loss"] != found["untrained"]["loss"]
    now = [f"{found['untrained']['loss']:.2f} -> {after['loss']:.2f}" for after in found["after"]]
    told = [line for line in said.splitlines() if line.startswith("General ability (own, 9 rows)")]
    assert [change in line for change, line in zip(now, told, strict=True)] == [True, True]
    (logged,) = (tmp_path / "run" / "logs").rglob("metrics.csv")
    with logged.open() as file:
        lines = [line for line in csv.DictReader(file) if line["probe/loss"]]
    assert [float(line["task"]) for line in lines] == [0, 1, 2]
    assert [float(line["probe/loss"]) for line in lines] == pytest.approx(
        [found["untrained"]["loss"], *(after["loss"] for after in found["after"])]
    )
    # Shown again, without a run.
    _, shown = run_stream(config("run", "logger=csv", "evaluation.batch_size=4"))
    assert told[-1] in shown


@pytest.mark.parametrize(
    "method",
    [
        ("method=lfpt5",),  # draws the rows that it rehearses
        ("method=kif", "method/selection=held_out"),  # its loader draws a number a start
    ],
)
def test_training_does_not_notice(method: tuple[str, ...], config: Any, tmp_path: Path) -> None:
    settings = (*method, "optim.lr=0.01", "lora.dropout=0.1", "optim.batch_size=4")
    probed, _ = run_stream(config("with", *settings))
    plain, _ = run_stream(config("without", *settings, probed=False))
    assert "probe" not in plain
    assert "probe" not in plain["protocol"]
    results, importance, kept = outcome(tmp_path / "with")
    del results["probe"]
    asked = [name for name in kept if name.name.endswith("__on_probe.jsonl")]
    assert len(asked) == 3
    for name in asked:
        del kept[name]
    assert (results, importance, kept) == outcome(tmp_path / "without")
    assert len({measured["loss"] for measured in probed["probe"]["after"]}) == 2


@pytest.fixture(scope="module")
def whole(tiny_t5: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a run that nobody stopped leaves."""
    folder = tmp_path_factory.mktemp("whole")
    file = written(folder / "rows.jsonl")
    asked = ("probe=own", f"probe.file={file}")
    run_stream(tiny_config(tiny_t5, toy_data, folder / "run", *asked))
    return outcome(folder / "run")


@pytest.mark.parametrize("last", [1, 3])
def test_a_run_cut_before_a_measurement_ends_as_a_whole_one(
    last: int,
    config: Any,
    rows: Path,
    whole: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, asked = probe_module._measure, []

    def cut(runner: Any, probe: Any, label: str, newest: int) -> Any:
        asked.append(label)
        if len(asked) == last:
            raise KeyboardInterrupt
        return original(runner, probe, label, newest)

    with monkeypatch.context() as patch:
        patch.setattr(probe_module, "_measure", cut)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_stream(config("run"))
    if last > 1:
        written(rows, 8)
        with pytest.raises(UserError, match=r"data of probe own changed since this run began"):
            run_stream(config("run"))
        written(rows)
    run_stream(config("run"))
    assert outcome(tmp_path / "run") == whole


def test_what_has_been_measured_is_not_measured_again(
    config: Any, rows: Path, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, asked = probe_module._measure, []

    def noted(runner: Any, probe: Any, label: str, newest: int) -> Any:
        asked.append(label)
        return original(runner, probe, label, newest)

    monkeypatch.setattr(probe_module, "_measure", noted)
    say, told = probe_module.general_ability, []

    def cut(record: Any) -> str:
        told.append(1)
        if len(told) == 2:  # measured and saved, not yet counted as done
            raise KeyboardInterrupt
        return say(record)

    with monkeypatch.context() as patch:
        patch.setattr(probe_module, "general_ability", cut)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_stream(config("run"))
    run_stream(config("run"))
    assert asked == ["untrained", "after_01_colour", "after_02_shape"]
    assert outcome(tmp_path / "run") == whole
    written(rows, 8)
    with pytest.raises(UserError, match=r"The data of probe own changed since the run in .* ended"):
        run_stream(config("run"))


def test_the_bundled_probe_says_that_it_is_home_made(config: Any, tmp_path: Path) -> None:
    held_out = ("evaluation.rows=held_out", "evaluation.held_out_rows=4")
    bundled = config("run", "probe=general", "probe.rows=16", *held_out, probed=False)
    results, said = run_stream(bundled)
    assert results["probe"]["stand_in"] is True
    assert results["probe"]["rows"] == 16
    assert results["stand_ins"] == [HELD_OUT_ROWS]
    assert "16 rows of 64, a seeded draw, of the probe general" in said
    assert "(home-made, no published benchmark)" in said
    assert said.count("- on stand-in probe.") == 2
    assert run_stream(bundled)[1].count("- on stand-in probe.") == 1, "shown again"
    lines = read_lines(tmp_path / "run" / "predictions" / "untrained__on_probe.jsonl")
    assert all(line["stand_ins"] == ["stand-in probe"] for line in lines)
    # Neither is training's loss nor the importance of such rows.
    made = [p for part in ("curves", "importance") for p in (tmp_path / "run" / part).iterdir()]
    assert len(made) == 4
    assert all(json.loads(path.read_text())["stand_ins"] == [] for path in made)


@pytest.mark.parametrize(
    ("method", "used"), [("per_task", [0, 0, 1]), ("multi_task", [0, 1]), ("seq_lora", [0, 0, 1])]
)
def test_the_newest_task_answers_and_no_random_number_is_drawn(
    method: str, used: list[int], config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, newest = probe_module._measure, []

    def noted(runner: Any, probe: Any, label: str, task: int) -> Any:
        newest.append(task)
        drawn = torch.get_rng_state()
        found = original(runner, probe, label, task)
        assert torch.equal(drawn, torch.get_rng_state())
        return found

    monkeypatch.setattr(probe_module, "_measure", noted)
    results, _ = run_stream(config("run", f"method={method}", "save_model=false"))
    assert newest == used
    assert len(results["probe"]["after"]) == len(used) - 1


def test_a_plan_counts_it(config: Any) -> None:
    _, said = run_stream(config("run", "plan=true"))
    assert "General ability: 9 rows of the probe own, asked 3 times" in said
