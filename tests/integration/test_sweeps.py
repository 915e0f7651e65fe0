"""Sweeps from the command line: one failing cell, with the launchers that are installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def sweep(cwd: Path, model: Path, data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Cells of the toy tasks."""
    settings = [
        *("-m", "backbone=t5_small", f"backbone.path={model}", f"benchmark.data_dir={data}"),
        *("benchmark.order=[colour,shape]", "benchmark.train_rows=4", "benchmark.test_rows=2"),
        *("method=seq_lora", "trainer.accelerator=cpu", "examine_data=false", "report=false"),
    ]
    return subprocess.run(
        [sys.executable, "-m", "kif_lightning", *settings, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(cwd: Path) -> dict[str, int]:
    """When each finished cell's results were written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in cwd.glob("runs/free/*/results.json")}


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The closing lines about failed cells."""
    lines = done.stderr.splitlines()
    start = [n for n, line in enumerate(lines) if "of the sweep failed" in line]
    return lines[start[0] :] if start else []


def test_a_failed_cell_is_named_and_a_rerun_skips_the_others(
    tmp_path: Path, tiny_t5: Path, toy_data: Path
) -> None:
    stale = tmp_path / "runs" / "free" / "of_an_earlier_sweep.failed.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    done = sweep(tmp_path, tiny_t5, toy_data, "evaluation.batch_size=0,2,3", "logger=csv")
    assert done.returncode == 1, done.stderr
    first, *cells = told(done)
    assert first == "1 cell of the sweep failed:"
    assert len(cells) == 1
    assert cells[0].startswith("  evaluation.batch_size=0 (runs/free/")
    assert "at least 1, got 0" in cells[0]
    before = results(tmp_path)
    assert len(before) == 2
    assert not list(tmp_path.glob("runs/.sweep_*"))
    free = tmp_path / "runs" / "free"
    logs = [path.relative_to(free).parts[0] for path in free.glob("*/logs/**/metrics.csv")]
    assert sorted(logs) == sorted(before), "each cell has its own"
    assert len([path for path in free.glob("*.failed.json") if path != stale]) == 1

    others = ("evaluation.batch_size=2,3", "logger=csv", "+sweep=methods")
    again = sweep(tmp_path, tiny_t5, toy_data, *others)
    assert (again.returncode, told(again)) == (0, []), again.stderr
    assert again.stdout.count("Finished already") == 2, "the command line's method, no other"
    assert again.stdout.splitlines()[-1] == "Compare the runs: kif compare runs/free"
    assert results(tmp_path) == before


@pytest.mark.parametrize(
    ("plugin", "launcher"),
    [
        ("hydra_joblib_launcher", "+sweep=local"),
        ("hydra_submitit_launcher", "hydra/launcher=submitit_local"),
    ],
)
def test_cells_in_processes_of_their_own(
    tmp_path: Path, tiny_t5: Path, toy_data: Path, plugin: str, launcher: str
) -> None:
    pytest.importorskip(f"hydra_plugins.{plugin}", reason="the extra [sweeps] is not installed")
    done = sweep(tmp_path, tiny_t5, toy_data, launcher, "evaluation.batch_size=0,2")
    assert done.returncode == 1, done.stderr
    first, *cells = told(done)
    assert first == "1 cell of the sweep failed:"
    assert [cell.split(" (")[0] for cell in cells] == ["  evaluation.batch_size=0"]
    assert len(results(tmp_path)) == 1
