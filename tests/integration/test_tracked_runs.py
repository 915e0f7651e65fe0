"""Runs of two toy tasks, told to wandb (offline), TensorBoard and CSV at once, and read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kif_lightning import launch
from kif_lightning.dashboard import LINES, panel_plans
from kif_lightning.interruption import EXIT_STATUS, Interrupted, Interruption
from kif_lightning.reporting.console import RunConsole
from kif_lightning.reporting.figures import RunFigure
from kif_lightning.runner import StreamRunner
from kif_lightning.tracking import pictures
from tests.helpers.streams import run_stream, tiny_config
from tests.helpers.tiny import save_tiny_t5, save_toy_tasks
from tests.helpers.wandb_runs import WandbRun, wandb_runs

TASKS = ["colour", "shape"]
STEPS = 8  # 16 rows a task, 4 a step


def drawing(record: Any) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.text(0, 0, f"{len(record.matrix)} rows")
    return figure


FIGURES = (
    RunFigure(name="a_picture", title="A picture", caption="Of nothing.", draw=drawing),
    RunFigure(name="absent", title="Absent", caption="The run has none.", draw=lambda _: None),
)


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No key, no file of the user's, no network."""
    folder = tmp_path_factory.mktemp("wandb_home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(folder / "netrc"))
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder))
        patch.setattr(pictures, "RUN_FIGURES", FIGURES)
        yield folder


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toys")
    return save_tiny_t5(folder / "t5"), save_toy_tasks(folder / "data")


def config(toys: tuple[Path, Path], run_dir: Path, *overrides: str) -> Any:
    settings = ("optim.batch_size=4", "optim.epochs=1", "evaluation.max_new_tokens=4")
    return tiny_config(*toys, run_dir, *settings, *overrides)


@pytest.fixture(scope="module")
def whole(toys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A run's folder and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    probe = ("probe=general", "probe.rows=4")
    made = config(toys, folder, "method=kif", "logger=[wandb,csv,tensorboard]", *probe)
    _, said = run_stream(made)
    return folder, said


@pytest.fixture(scope="module")
def run(whole: tuple[Path, str]) -> WandbRun:
    (found,) = wandb_runs(whole[0])
    return found


@pytest.fixture(scope="module")
def results(whole: tuple[Path, str]) -> Any:
    return json.loads((whole[0] / "results.json").read_text())


def test_without_a_key_the_run_stays_here_and_says_so(whole: tuple[Path, str]) -> None:
    (line,) = [line for line in whole[1].splitlines() if line.startswith("wandb:")]
    assert "no key" in line
    assert "wandb sync" in line


def test_wandb_has_scores_and_transfer_after_each_task(run: WandbRun, results: Any) -> None:
    matrix = results["score_matrix"]
    assert run.at("score/colour", task=1) == matrix[0][0]
    assert [run.at(f"score/{name}", task=2) for name in TASKS] == matrix[1]
    assert run.at("transfer/average_performance", task=1) == matrix[0][0]
    assert run.at("transfer/average_performance", task=2) == pytest.approx(sum(matrix[1]) / 2)
    change = matrix[1][0] - matrix[0][0]
    assert run.at("transfer/backward_transfer", task=2) == pytest.approx(change)
    assert run.at("transfer/forgetting_rate", task=2) == pytest.approx(-change)
    assert not any("transfer/forgetting_rate" in x for x in run.history if x.get("task") == 1)


def test_wandb_has_the_curves_of_training_on_one_axis(
    run: WandbRun, whole: tuple[Path, str]
) -> None:
    kept = [json.loads(p.read_text())["loss"] for p in sorted((whole[0] / "curves").iterdir())]
    curve = [(x["running_step"], x["train/loss"]) for x in run.history if "train/loss" in x]
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    assert [loss for _, loss in curve] == pytest.approx([*kept[0], *kept[1]], rel=1e-6)
    assert [x["trainer/global_step"] for x in run.history if "train/loss" in x] == [*range(1, 9)]
    assert {run.axes[name] for name in ("train/*", "held_out_loss")} == {"running_step"}
    assert {run.axes[f"{name}/*"] for name in ("score", "transfer", "boundary", "cost")} == {"task"}


def test_wandb_has_the_boundary(run: WandbRun, whole: tuple[Path, str]) -> None:
    fused = json.loads((whole[0] / "importance" / "02_shape_fusion.json").read_text())
    mean = sum(fused["weight"]) / len(fused["weight"])
    assert run.at("boundary/mean_weight_of_the_past", task=2) == pytest.approx(mean)
    for kind in ("task_shared", "previous_specific", "current_specific", "unimportant"):
        assert run.at(f"boundary/units_{kind}", task=2) == fused["classes"].count(kind)
    columns, rows = run.table("importance/02_shape_fusion", task=2)
    assert columns == [
        *("unit", "module", "score", "current", "accumulated", "previous", "weight", "class")
    ]
    assert [row[0] for row in rows] == fused["unit_ids"]
    assert [row[6] for row in rows] == pytest.approx(fused["weight"])
    assert [row[7] for row in rows] == fused["classes"]
    assert len(run.table("importance/01_colour_fusion", task=1)[1]) == len(rows)
    assert run.config["tables"]["importance/02_shape_fusion"] == f"{len(rows)} units"


def test_wandb_has_the_matrix_and_the_figures(run: WandbRun, results: Any) -> None:
    columns, rows = run.table("score_matrix", task=2)
    assert columns == ["after", *TASKS]
    expected = zip(TASKS, results["score_matrix"], strict=True)
    assert rows == [[name, *row] for name, row in expected]
    picture = run.summary["figures/a_picture"]
    assert picture["caption"] == "A picture. Of nothing."
    assert (picture["width"], picture["height"]) == (300, 150)
    assert (run.folder / "files" / picture["path"]).is_file()
    assert "figures/absent" not in run.summary


def test_wandb_has_config_stamp_and_final_metrics(run: WandbRun, results: Any) -> None:
    stamp = json.loads(json.dumps(results["protocol"]))
    assert run.config["protocol"] == stamp
    assert run.config["stand_ins"] == results["stand_ins"]
    assert run.config["optim"]["batch_size"] == 4
    found = {k.removeprefix("final/"): v for k, v in run.summary.items() if k.startswith("final/")}
    assert found == results["metrics"]
    assert run.summary["final_cost"]["trainable_weights"] == results["cost"]["trainable_weights"]
    seconds = sum(sum(phase["seconds"].values()) for phase in results["phases"])
    assert run.at("cost/total_seconds", task=2) == pytest.approx(seconds)
    assert (run.summary["status"], run.exit_code) == ("success", 0)


def test_wandb_groups_by_order_and_method(run: WandbRun) -> None:
    assert run.run.run_group == "free/long_sequence/colour-shape"
    assert run.run.job_type == "kif"
    assert run.run.display_name == "kif-colour-shape-seed1"
    assert list(run.run.tags) == ["kif", "t5_base", "long_sequence", "colour-shape"]


def test_wandb_has_the_adapter(run: WandbRun, whole: tuple[Path, str], results: Any) -> None:
    (adapter,) = [artifact for artifact in run.artifacts if artifact.type == "model"]
    files = {file.path: file for file in adapter.manifest.contents}
    on_disk = {p.name: p.stat().st_size for p in (whole[0] / "adapter").iterdir()}
    assert {path: file.size for path, file in files.items()} == on_disk
    assert all(Path(file.local_path).is_absolute() for file in files.values())
    metadata = json.loads(adapter.metadata)
    assert metadata["metrics"] == results["metrics"]
    assert metadata["protocol"]["method"] == "kif"


def test_every_panel_of_the_dashboard_shows_what_a_run_logs(run: WandbRun) -> None:
    logged = {key for line in run.history for key in line} | set(run.summary)
    plans = [plan for section in panel_plans().values() for plan in section]
    lines = [plan for plan in plans if plan.kind == LINES]
    assert len(lines) >= 8
    for plan in plans:
        for key in plan.keys:
            if key == "held_out_loss" or key.startswith("figures/"):
                continue  # of runs that select a step; of whatever figures there are
            assert any(name == key or name.startswith(key) for name in logged), key
    for plan in lines:
        assert all(plan.axis in line for line in run.history if plan.keys[0] in line)


def test_tensorboard_has_scalars_figures_and_settings(
    whole: tuple[Path, str], results: Any
) -> None:
    events = EventAccumulator(str(whole[0] / "tensorboard"))
    events.Reload()
    matrix = results["score_matrix"]
    scores = [(event.step, event.value) for event in events.Scalars("score/colour")]
    assert scores == [(1, pytest.approx(matrix[0][0])), (2, pytest.approx(matrix[1][0]))]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, STEPS + 1))
    tags = events.Tags()
    assert tags["images"] == ["figures/a_picture"]
    assert not {"task", "running_step"} & set(tags["scalars"])
    final = results["metrics"]["average_performance"]
    assert events.Scalars("final/average_performance")[0].value == pytest.approx(final)
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert b"optim/lr" in plugin.content or b"optim.lr" in plugin.content
    (protocol,) = events.Tensors("protocol/text_summary")
    assert b'"method": "kif"' in protocol.tensor_proto.string_val[0]
    hparams = OmegaConf.load(whole[0] / "tensorboard" / "hparams.yaml")
    assert hparams["method.name"] == "kif"


def test_csv_has_transfer_metrics_beside_the_curves(whole: tuple[Path, str], results: Any) -> None:
    (path,) = (whole[0] / "logs").rglob("metrics.csv")
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert [line["task"] for line in lines if line["probe/loss"]] == ["0", "1", "2"]
    at_tasks = [line for line in lines if line["score/colour"]]
    assert [line["task"] for line in at_tasks] == ["1", "2"]
    last = at_tasks[-1]
    assert float(last["score/shape"]) == results["score_matrix"][1][1]
    backward = results["metrics"]["backward_transfer"]
    assert float(last["transfer/backward_transfer"]) == pytest.approx(backward)
    assert at_tasks[0]["transfer/backward_transfer"] == ""
    steps = [int(line["step"]) for line in lines if line["train/loss"]]
    assert steps == list(range(1, STEPS + 1))


def test_a_failed_run_is_closed_and_goes_on_under_the_same_id(
    toys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(toys, tmp_path / "run", "method=seq_lora", "logger=wandb", "save_model=false")
    judge = StreamRunner._judge

    def failing(self: StreamRunner, task_index: int) -> None:
        if task_index == 1:
            raise RuntimeError("the device fell off")
        judge(self, task_index)

    with monkeypatch.context() as patch:
        patch.setattr(StreamRunner, "_judge", failing)
        with pytest.raises(RuntimeError, match="fell off"):
            run_stream(made)
    results, _ = run_stream(made)
    first, second = wandb_runs(tmp_path)
    assert (first.exit_code, first.summary["status"]) == (1, "failed")
    assert first.at("score/colour", task=1) == results["score_matrix"][0][0]
    assert not any(name.startswith("final/") for name in first.summary)
    assert (second.exit_code, second.summary["status"]) == (0, "success")
    assert second.run.run_id == first.run.run_id
    assert {line["task"] for line in second.history if "score/shape" in line} == {2}
    assert not [artifact for artifact in second.artifacts if artifact.type == "model"]


def test_an_interrupted_run_says_so(toys: tuple[Path, Path], tmp_path: Path) -> None:
    made = config(toys, tmp_path / "run", "method=seq_lora", "logger=[wandb,tensorboard]")
    interruption = Interruption(lambda _: None)
    interruption.requested = "SIGTERM"
    with pytest.raises(Interrupted):
        launch.run(made, RunConsole(), interruption)
    (run,) = wandb_runs(tmp_path)
    assert (run.exit_code, run.summary["status"]) == (EXIT_STATUS, "interrupted")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"interrupted" in content
