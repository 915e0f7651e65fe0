"""Seconds and megabytes of a run's report: 15 tasks, made up at the size of a T5-large's run.

The command is a process of its own, as a user starts it: its imports are in it. A real run's folder
can be given instead.

    python experiments/benchmarks/report.py [--run FOLDER] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import entry, machine, spread, timed, write_result

ROOT = Path(__file__).parents[2]
KIF = "from kif_lightning.cli import app; app()"
TASKS, TEST_ROWS, STEPS, LAYERS, RANK = 15, 500, 625, 24, 8
"""As in +experiment=paper/long_seq_t5_large: 500 test rows a task, 5,000 train rows in batches."""


def made_up(folder: Path, *, tasks: int = TASKS, test_rows: int = TEST_ROWS) -> Path:
    """A finished run's folder, of numbers drawn."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.fake_runs import fake_run, t5_units

    units = t5_units(LAYERS, RANK)
    return fake_run(folder, num_tasks=tasks, test_rows=test_rows, steps=STEPS, unit_ids=units)


def report(run: Path) -> None:
    """As on the command line, on one core."""
    one = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KIF, "report", str(run)]
    if hasattr(os, "sched_setaffinity"):
        core = min(os.sched_getaffinity(0))
        command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}]); {KIF}"]
        command += ["report", str(run)]
    subprocess.run(  # noqa: S603
        command, env={**os.environ, **one}, check=True, stdout=subprocess.DEVNULL
    )


def measure(run: Path, rounds: int) -> list[dict[str, Any]]:
    """Lines of the table; a first round that is not counted fills the system's caches."""
    report(run)
    before = os.times()
    seconds = [timed(lambda: report(run)) for _ in range(rounds)]
    after = os.times()
    processor = after.children_user + after.children_system
    processor -= before.children_user + before.children_system
    size = (run / "report.html").stat().st_size / 1e6
    what = f"`kif report` of a run of {TASKS} tasks, imports included, on one core"
    return [
        entry(what, spread(seconds), at_most=10, unit="s"),
        entry(f"{what}: of these, at work", spread([processor / rounds]), unit="s"),
        entry("Size of that report", spread([size]), at_most=5, unit="MB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a finished run of 15 tasks; it is copied")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started_on = machine()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        if arguments.run is None:
            made_up(run)
        else:
            shutil.copytree(arguments.run, run)
        lines = measure(run, arguments.rounds)
    write_result(
        "report",
        lines,
        started_on=started_on,
        output=arguments.output,
        run="made up" if arguments.run is None else "a real one",
    )


if __name__ == "__main__":
    main()
