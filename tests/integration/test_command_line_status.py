"""The command ``kif`` as a process; what a run's command does: test_bundled_parts, test_sweeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from kif_lightning.cli import app


def test_kif_list(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kif_lightning.cli", "list"]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert listed.returncode == 0
    assert "kif_static" in listed.stdout
    assert "smollm2_135m" in listed.stdout
    assert CliRunner().invoke(app, ["list", "nonsense"]).exit_code == 2
