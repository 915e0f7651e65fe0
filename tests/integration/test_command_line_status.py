"""Exit statuses and messages of the two commands, as a user sees them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def call(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_a_mistake_is_one_sentence_and_status_2(tmp_path: Path) -> None:
    done = call(tmp_path, "kif_lightning", "benchmark=superni", "backbone=t5_nano")
    assert done.returncode == 2
    assert "benchmark.data_dir=FOLDER" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_failed_cell_does_not_sink_the_sweep(
    tmp_path: Path, tiny_t5: Path, toy_data: Path
) -> None:
    done = call(
        tmp_path,
        "kif_lightning",
        "-m",
        "backbone=t5_small",
        f"backbone.path={tiny_t5}",
        f"benchmark.data_dir={toy_data}",
        "benchmark.order=[colour,shape]",
        "benchmark.train_rows=0,8",
        "benchmark.test_rows=2",
        "method=kif,seq_lora",
        "logger=csv",
    )
    assert done.returncode == 1, done.stderr
    assert "2 cells of the sweep failed" in done.stderr
    assert len(list(tmp_path.glob("runs/free/*/results.json"))) == 2
    assert len(list(tmp_path.glob("runs/free/*.failed.json"))) == 2
    assert len(list(tmp_path.glob("runs/free/*/logs/**/metrics.csv"))) == 2


def test_kif_list(tmp_path: Path) -> None:
    listed = call(tmp_path, "kif_lightning.cli", "list")
    assert listed.returncode == 0
    assert "kif_static" in listed.stdout
    assert "smollm2_135m" in listed.stdout
    assert call(tmp_path, "kif_lightning.cli", "list", "nonsense").returncode == 2
