"""The report at the end of a run, and from the command line."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kif_lightning import launch
from kif_lightning.cli import app
from kif_lightning.interruption import EXIT_STATUS, Interruption
from kif_lightning.launch import run_settings
from kif_lightning.reporting import run_report
from tests.helpers.fake_runs import fake_run
from tests.helpers.streams import run_stream, tiny_config

SMALL = ("benchmark.train_rows=4", "benchmark.test_rows=2", "examine_data=false", "method=seq_lora")


def test_a_run_ends_by_naming_its_report_and_never_fails_for_it(
    tiny_t5: Path,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run"
    config = tiny_config(tiny_t5, toy_data, folder, *SMALL, "report=true")
    with monkeypatch.context() as patch:

        def fails(_: Path) -> Path:
            raise ZeroDivisionError("no such number")

        patch.setattr(run_report, "write_report", fails)
        with caplog.at_level(logging.WARNING):
            results, said = run_stream(config)
    assert results["metrics"]
    assert (folder / "results.json").is_file()
    assert "Report:" not in said
    assert "ZeroDivisionError: no such number" in caplog.text
    assert f"kif report {folder}" in caplog.text

    again = run_stream(config)[1]
    report = folder / "report.html"
    assert again.splitlines()[-1] == f"Report: {report}", "made, where it was missing"
    assert "seq_lora" in report.read_text(encoding="utf-8")
    report.write_text("kept")
    assert run_stream(config)[1].splitlines()[-1] == f"Report: {report}"
    assert report.read_text() == "kept"

    anew = tiny_config(tiny_t5, toy_data, folder, *SMALL, "report=true", "rerun=true")
    assert run_stream(anew)[1].splitlines()[-1] == f"Report: {report}"
    assert "seq_lora" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("others_follow", [True, False])
def test_a_request_to_stop_while_a_report_is_made_stops_the_sweep(
    tiny_t5: Path,
    toy_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    others_follow: bool,
) -> None:
    whole = []

    def asked_at_the_end(config: Any, console: Any, interruption: Interruption) -> dict[str, Any]:
        interruption.requested = "SIGTERM"
        return {"metrics": {}}

    def noted(cell: Any, **_: Any) -> None:
        cell()
        whole.append(1)

    monkeypatch.setattr(launch, "run", asked_at_the_end)
    monkeypatch.setattr(launch, "_is_sweep", lambda: True)
    monkeypatch.setattr(launch, "_others_follow", lambda: others_follow)
    monkeypatch.setattr(launch, "run_noted", noted)
    config = tiny_config(tiny_t5, toy_data, tmp_path / "run", *SMALL)
    passed_on: list[int] = []  # as submitit would take it, to begin the job again
    before = signal.signal(signal.SIGTERM, lambda number, _: passed_on.append(number))
    try:
        if others_follow:
            with pytest.raises(SystemExit) as ended:
                launch.launch(config)
            assert ended.value.code == EXIT_STATUS
        else:
            launch.launch(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert passed_on == []
    assert whole == [1], "the cell's note is taken away: it is whole"


def test_without_it_there_is_none_and_nothing_else_changes(
    tiny_t5: Path, toy_data: Path, tmp_path: Path
) -> None:
    configs = [
        tiny_config(tiny_t5, toy_data, tmp_path / "run", *SMALL, f"report={choice}")
        for choice in ("true", "false")
    ]
    assert run_settings(configs[0]) == run_settings(configs[1])
    said = run_stream(configs[1])[1]
    assert "Report:" not in said
    assert not (tmp_path / "run" / "report.html").exists()


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_command_writes_the_report_and_the_figures(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run")
    done = call(folder, "--figures", tmp_path / "figures", "--formats", "png, svg")
    assert done.exit_code == 0, done.output
    assert (folder / "report.html").is_file()
    made = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert "score_matrix.png" in made
    assert "score_matrix.svg" in made
    assert f"Figures: {len(made)} files" in done.output


def test_the_report_is_there_where_figures_cannot_be(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", num_tasks=1)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert call(folder, "--figures", in_the_way, "--formats", "png").exit_code == 2
    assert (folder / "report.html").is_file()


def test_mistakes_are_told_in_a_sentence(tmp_path: Path) -> None:
    assert call(tmp_path).exit_code == 2
    folder = fake_run(tmp_path / "run")
    done = call(folder, "--figures", tmp_path / "figures", "--formats", "png,bmp")
    assert done.exit_code == 2
    for written in (tmp_path / "figures", folder / "report.html"):
        assert not written.exists(), "formats are looked at before anything is written"


def test_reports_do_not_wait_for_what_they_do_not_need() -> None:
    code = "import sys, kif_lightning.reporting.run_report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torchmetrics", "transformers", "lightning"} & set(done.stdout.split())
