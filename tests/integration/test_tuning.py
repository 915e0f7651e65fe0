"""``kif tune`` and evaluation on held-out rows, on tiny models and the toy tasks."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig
from rich.console import Console
from typer.testing import CliRunner

from kif_lightning import tuning
from kif_lightning.assembly import HELD_OUT_ROWS
from kif_lightning.cli import app
from kif_lightning.errors import DivergedError, UserError
from kif_lightning.launch import Cell, run, run_path, run_settings
from kif_lightning.reporting.console import RunConsole
from kif_lightning.storage import read_json
from kif_lightning.tuning import tune
from tests.helpers import streams


@pytest.fixture
def settings(tmp_path: Path, tiny_t5: Path, toy_data: Path) -> list[str]:
    return [
        *("backbone=t5_small", f"backbone.path={tiny_t5}", f"benchmark.data_dir={toy_data}"),
        *("benchmark.order=[colour,shape]", "trainer.accelerator=cpu", "examine_data=false"),
        *("benchmark.train_rows=10", "benchmark.test_rows=2", f"run_root={tmp_path}"),
    ]


def composed(settings: list[str], *more: str) -> DictConfig:
    return streams.composed(*settings, *more)


@pytest.fixture
def console() -> RunConsole:
    return RunConsole(Console(width=200, record=True, quiet=False))


SEARCH: dict[str, Any] = {"num_trials": 2, "order": "[shape,colour]"}


def scores(file: Path) -> list[float]:
    return [trial["value"] for trial in read_json(file)["trials"]]


def test_a_search_for_two_methods(settings: list[str], console: RunConsole) -> None:
    pytest.importorskip("optuna", reason="the extra [tuning] is not installed")
    files = tune([*settings, "method=kif,seq_lora"], **SEARCH, console=console)
    first, second = (read_json(file) for file in files)
    assert [s["key"] for s in first["searched"]] == ["optim.lr", "method.rule.tau"]
    assert [s["key"] for s in second["searched"]] == ["optim.lr"], "no strength: the rate alone"
    for file, record in zip(files, (first, second), strict=True):
        assert len(record["trials"]) == 2, "of every method the same number"
        defaults, other = record["trials"]
        assert defaults["settings"] == {s["key"]: s["default"] for s in record["searched"]}
        for setting in record["searched"]:
            low, high = 0.99 * setting["low"], 1.01 * setting["high"]
            assert low <= other["settings"][setting["key"]] <= high
        pick = record["trials"][record["pick"]]
        assert pick["value"] == max(scores(file))
        assert (record["order"], record["reported_order"]) == (
            *("[shape,colour]", ["colour", "shape"]),
        )
        assert record["stand_ins"] == [HELD_OUT_ROWS]
        for trial in record["trials"]:
            results = read_json(Path(trial["run"]) / "results.json")
            assert results["metrics"]["average_performance"] == trial["value"]
            assert results["stand_ins"] == [HELD_OUT_ROWS]
            protocol = results["protocol"]
            assert protocol["evaluation_rows"] == "held_out"
            assert protocol["order"] == ["shape", "colour"]
            assert protocol["rows"] == {
                name: {"train": 8, "test": 2} for name in ("colour", "shape")
            }
        rows = list(csv.DictReader(file.with_suffix(".csv").open(encoding="utf-8")))
        assert [float(row[tuning.OBJECTIVE]) for row in rows] == scores(file)

        *command, seeds = shlex.split(record["final_command"])
        assert command[:4] == ["python", "-m", "kif_lightning", "-m"]
        final = composed(command[4:], "seed=2")
        assert seeds == "seed=1,2,3"
        assert final.method.name == record["method"]
        assert final.optim.lr == pick["settings"]["optim.lr"]
        assert final.evaluation.rows == "test"
        assert final.benchmark.order == ["colour", "shape"]

    before = {path: path.stat().st_mtime_ns for path in files[0].parent.glob("*/results.json")}
    assert len(before) == 4
    again = tune([*settings, "method=kif,seq_lora"], **SEARCH, console=console)
    assert [scores(file) for file in again] == [scores(file) for file in files]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "goes on, repeats nothing"
    assert "the pick" in console.console.export_text()


def test_a_failed_trial_does_not_end_the_search_and_the_best_is_picked(
    settings: list[str], console: RunConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="the extra [tuning] is not installed")
    ran: list[DictConfig] = []
    values = iter([10.0, None, 30.0, 30.0, 20.0])

    def faked(config: DictConfig, _: RunConsole) -> Cell:
        ran.append(config)
        value = next(values)
        if value is None:
            raise DivergedError("the loss is NaN")
        return Cell({"metrics": {"average_performance": value}}, asked_to_stop=False)

    monkeypatch.setattr(tuning, "run_cell", faked)
    exact = ["method=ewc", "optim.lr=0.00012345", "++evaluation.matrix=full", "++seed=3"]
    (file,) = tune([*settings, *exact], num_trials=5, order="[shape]", console=console)
    record = read_json(file)
    assert record["trials"][0]["settings"]["optim.lr"] == 0.00012345, "the defaults, not rounded"
    assert {config.evaluation.matrix for config in ran} == {"full"}
    assert record["ended"] == 4
    assert "the pick among 4 of 5" in console.console.export_text()
    assert record["final_command"].count("seed=") == 1
    assert scores(file) == [10.0, None, 30.0, 30.0, 20.0]
    assert record["trials"][1]["error"] == "DivergedError: the loss is NaN"
    assert record["pick"] == 2, "of equal ones the first"
    assert "optim.lr=" in record["final_command"]
    assert "method.penalty.elastic_weights.coefficient=" in record["final_command"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["plan=true"], "leave plan=true out"),
        (["+sweep=local"], "leave [+]sweep=local out"),
        (["evaluation.rows=test"], "leave evaluation.rows=test out"),
        (["seed=1,2"], "several values of 'method' alone, got seed=1,2"),
        (["benchmark.order=[shape,colour]"], "another order than is reported"),
        (["optim.lr=0"], r"optim.lr must lie in \(0, 1000\], got 0"),
        (
            ["method=ewc", "method.penalty.elastic_weights.coefficient=0"],
            r"elastic_weights.coefficient must lie in \(0, inf\], got 0",
        ),
        (["method=kif_static", "method/rule=adaptive"], "method.rule.gamma as its strength"),
        (["evaluation.matrix=diagonal"], "leave out evaluation.matrix"),
        (["optim.nothing=1"], "optim.nothing"),
        (["method=kiff"], "kiff"),
        (["a=b=[c"], "kif tune takes the overrides of a run"),
    ],
)
def test_mistakes(more: list[str], told: str, settings: list[str], console: RunConsole) -> None:
    pytest.importorskip("optuna", reason="the extra [tuning] is not installed")
    with pytest.raises(UserError, match=told):
        tune([*settings, *more], **SEARCH, console=console)


def searched_order(settings: list[str], order: str | None) -> Any:
    return tuning._searches(settings, order, 10.0)[0].base.benchmark.order


def test_two_names_of_one_sequence_are_one_order(settings: list[str]) -> None:
    listed = [text for text in settings if not text.startswith("benchmark.order")]
    names = ["+benchmark.orders.one=[colour,shape]", "+benchmark.orders.two=[colour,shape]"]
    named = [*listed, *names, "benchmark.order=one"]
    with pytest.raises(UserError, match="another order than is reported, got colour, shape"):
        searched_order(named, "two")
    assert searched_order(named, "[shape]") == ["shape"]


def test_without_an_order_the_reported_tasks_are_shuffled(settings: list[str]) -> None:
    """The benchmark holds more tasks than are reported: a drawn order of all would use them."""
    assert searched_order(settings, None) == ["shape", "colour"]
    turned = [*settings, "benchmark.order=[shape,colour]"]
    assert searched_order(turned, None) == ["colour", "shape"]
    with pytest.raises(UserError, match="of shape alone there is none: give --order other tasks"):
        searched_order([*settings, "benchmark.order=[shape]"], None)


@pytest.mark.parametrize(
    "error", [UserError("in use"), OSError(5, "Input/output error"), DivergedError("NaN")]
)
def test_only_a_trials_own_failure_is_passed_over(
    error: Exception, settings: list[str], console: RunConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="the extra [tuning] is not installed")
    asked: list[int] = []

    def faked(*_: object) -> Cell:
        asked.append(1)
        if len(asked) == 2:
            raise error
        return Cell({"metrics": {"average_performance": 1.0}}, asked_to_stop=False)

    monkeypatch.setattr(tuning, "run_cell", faked)
    search = {"num_trials": 3, "console": console}
    if isinstance(error, DivergedError):
        (file,) = tune(settings, **search)
        assert read_json(file)["ended"] == 2
        return
    with pytest.raises(type(error)):
        tune(settings, **search)
    assert not list(Path(settings[-1].partition("=")[2]).rglob("*.tuning.json"))


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        ([], [None]),
        (["method=kif"], ["kif"]),
        (["method=ablation/kif_order1,kif"], ["ablation/kif_order1", "kif"]),
        (["method=glob(kif_s*)"], ["kif_static"]),
    ],
)
def test_methods_are_named_as_in_a_sweep(given: list[str], methods: list[str | None]) -> None:
    assert tuning._split(["seed=3", *given, "+experiment=long_seq_t5"]) == (
        *(methods, ["seed=3", "+experiment=long_seq_t5"]),
    )


def test_the_command_tells_mistakes_in_a_sentence(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CliRunner().invoke(app, ["tune", *settings, "--trials", "0"])
    assert (done.exit_code, done.output) == (
        *(2, "--trials must be a whole number of at least 1, got 0.\n"),
    )
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    done = CliRunner().invoke(app, ["tune", *settings])
    assert done.exit_code == 2
    assert "pip install 'kif-lightning[tuning]'" in done.output


def test_what_the_defaults_cannot_do_ends_the_search(
    settings: list[str], console: RunConsole
) -> None:
    pytest.importorskip("optuna", reason="the extra [tuning] is not installed")
    with pytest.raises(UserError, match="epochs must"):
        tune([*settings, "optim.epochs=0"], **SEARCH, console=console)


def test_held_out_rows_beside_a_selection_by_held_out_rows(
    settings: list[str], console: RunConsole
) -> None:
    config = composed(
        settings,
        *("evaluation.rows=held_out", "evaluation.held_out_share=0.4", "method=seq_lora"),
        *("method/selection=held_out", "method.selection.held_out_share=0.5"),
        "method.selection.every_steps=1",
    )
    results = run(config, console)
    assert results is not None
    assert results["protocol"]["rows"]["colour"] == {"train": 6, "test": 4}
    answered = {
        json.loads(line)["id"]
        for path in (run_path(config) / "predictions").glob("*on_01_colour.jsonl")
        for line in path.read_text().splitlines()
    }
    source = Path(config.benchmark.data_dir) / "colour" / "train.jsonl"
    train = {json.loads(line)["id"] for line in source.read_text().splitlines()}
    assert len(answered) == 4
    assert answered <= train
    assert HELD_OUT_ROWS in console.console.export_text()


def test_runs_on_test_rows_keep_the_settings_they_had(settings: list[str]) -> None:
    plain = run_settings(composed(settings, "method=kif"))
    assert plain == run_settings(composed(settings, "method=kif", "evaluation.held_out_rows=7"))
    assert not {"rows", "held_out_rows", "held_out_share"} & plain["evaluation"].keys()
    assert "strength" not in plain["method"]
    held_out = [
        run_settings(composed(settings, "evaluation.rows=held_out", *more))
        for more in ((), ("evaluation.held_out_rows=7",))
    ]
    assert plain != held_out[0] != held_out[1]


def test_a_mistyped_choice_of_rows(settings: list[str], console: RunConsole) -> None:
    with pytest.raises(UserError, match=r"evaluation.rows must be 'test' or 'held_out', got 'dev'"):
        run(composed(settings, "evaluation.rows=dev"), console)
