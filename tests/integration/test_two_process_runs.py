"""Whole runs in two processes, as the command line starts them, against a run of one process.

The processes' own dropout would differ: there is none here.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kif_lightning.reporting.console import RunConsole
from kif_lightning.whatif import Asked, what_if
from tests.helpers.chaos import differences, unreadable
from tests.helpers.streams import run_stream, tiny_config
from tests.integration.test_faults import RELEASE

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECONDS = 240.0
"""That a run may take: a deadlock ends, too."""
COMMON = (
    "method=kif_m",
    "method.memory.share=0.3",
    "+method.penalty.slow={_target_: tests.integration.test_faults.Waits}",
    "optim.batch_size=4",
    "optim.lr=0.01",
    # AdamW's usual one makes whole steps of gradients that are nothing but rounding.
    "+optim.optimizer.eps=1e-3",
    "lora.dropout=0",
    "evaluation.batch_size=4",
    "checkpoint.every_steps=1",
    "examine_data=false",
    "optim.length_grouping=none",
    "probe=general",
    "probe.rows=6",
    "logger=csv",
)
TWO = ("trainer.devices=2",)


class Runs:
    """Runs of the same settings but for the processes.

    Args:
        folder: for everything.
        model: a tiny T5 with dropout.
        data: the toy tasks.
    """

    def __init__(self, *, folder: Path, model: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.model = folder / "t5_without_dropout"
        shutil.copytree(model, self.model)
        config = self.model / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dropout_rate": 0.0}))

    def alone(self, name: str) -> Path:
        """The folder of a run in this process, whose micro-batches are those of two ranks."""
        torch.set_num_threads(1)
        settings = (*COMMON, "optim.micro_batch_size=2")
        run_stream(tiny_config(self.model, self.data, self.folder / name, *settings))
        return self.folder / name

    @contextmanager
    def command(
        self, name: str, *overrides: str, **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """The command of two processes, in a process group of its own that ends with this."""
        settings = [
            "backbone=t5_base",
            f"backbone.path={self.model}",
            f"benchmark.data_dir={self.data}",
            "benchmark.order=[colour,shape]",
            "trainer.accelerator=cpu",
            "report=false",
            f"run_dir={self.folder / name}",
            *COMMON,
            *TWO,
            *overrides,
        ]
        single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        process = subprocess.Popen(
            [sys.executable, "-m", "kif_lightning", *settings],
            cwd=ROOT,
            env=os.environ | single | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if living(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def together(self, name: str, *overrides: str) -> tuple[Path, str]:
        """The folder of a run in two processes, and what they said."""
        with self.command(name, *overrides) as process:
            said, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said
            assert ended(process.pid)
        return self.folder / name, said


def living(group: int) -> bool:
    """Whether a process group has a process, one that nobody has waited for counts."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def ended(group: int) -> bool:
    """Whether a process group comes to its end."""
    deadline = time.monotonic() + 10
    while living(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not living(group)


@pytest.fixture(scope="module")
def runs(tiny_t5: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(folder=tmp_path_factory.mktemp("runs"), model=tiny_t5, data=toy_data)


@pytest.fixture(scope="module")
def both(runs: Runs) -> tuple[Path, str]:
    return runs.together("two")


def without_times(record: Any) -> Any:
    if isinstance(record, dict):
        return {
            key: without_times(value)
            for key, value in record.items()
            if key not in ("seconds", "peak_memory_bytes")
        }
    return [without_times(value) for value in record] if isinstance(record, list) else record


def assert_near(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_near(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)
    else:
        assert found == expected


def test_two_processes_end_as_one(runs: Runs, both: tuple[Path, str]) -> None:
    alone, (two, said) = runs.alone("one"), both
    assert said.count("Run folder: ") == 1, "one process speaks"
    assert unreadable(two) == []
    assert not list(two.rglob("*.tmp"))

    found, expected = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (two, alone)
    )
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        # The same products, padded alike; sums of two gradients have no order.
        assert torch.equal(found[name], weight), name

    learnt = [float(w.abs().max()) for name, w in expected.items() if "lora_B" in name]
    assert min(learnt) > 1e-4, "B begins at 0: there is something to compare"

    names = sorted(path.name for path in (alone / "predictions").iterdir())
    assert sorted(path.name for path in (two / "predictions").iterdir()) == names
    assert len(names) == 3 + 3, "of the tasks and of the probe"
    for name in names:
        lines = [
            [json.loads(s) for s in (folder / "predictions" / name).read_text().splitlines()]
            for folder in (two, alone)
        ]
        assert set(Counter(line["id"] for line in lines[0]).values()) == {1}
        assert lines[0] == lines[1]
        assert len(lines[0]) == 6

    results = [json.loads((f / "results.json").read_text()) for f in (two, alone)]
    for key in ("score_matrix", "metrics", "tasks", "probe"):
        assert results[0][key] == results[1][key]
    assert_near(*(without_times(r["phases"]) for r in results))
    assert results[0]["phases"][1]["replay_steps"] > 0

    reports = sorted(path.name for path in (alone / "importance").iterdir())
    assert sorted(path.name for path in (two / "importance").iterdir()) == reports
    assert reports
    for name in reports:
        assert_near(
            *(
                without_times(json.loads((folder / "importance" / name).read_text()))
                for folder in (two, alone)
            )
        )


def test_one_of_two_processes_writes_the_log(runs: Runs, both: tuple[Path, str]) -> None:
    (path,) = both[0].rglob("metrics.csv")
    with path.open() as file:
        lines = list(csv.DictReader(file))
    # The probe's line comes before the first task.
    assert [line["task"] for line in lines if line["task"]] == ["0", "1", "2"]
    steps = [float(line["running_step"]) for line in lines if line["train/loss"]]
    assert steps == sorted(set(steps))


def test_one_process_fuses_again_what_two_have_kept(runs: Runs) -> None:
    position = "method.boundary.fusion.position=before_fusion"
    folder, _ = runs.together("kept", position, "keep_boundaries=true")
    found = json.loads(what_if(folder, Asked(task="2", tau="0.9"), RunConsole()).read_text())
    assert found["original_equals_run"] is True


def test_two_processes_stop_together_and_go_on(runs: Runs, both: tuple[Path, str]) -> None:
    folder, release = runs.folder / "cut", runs.folder / "release"
    deadline = time.monotonic() + SECONDS
    with runs.command("cut", **{RELEASE: str(release)}) as process:
        # Saved after the second step; the third does not end before it is released.
        while not (folder / "state" / "task_001_step_00000002").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # The main process alone: the other one learns of it at the step's end.
        process.send_signal(signal.SIGTERM)
        release.touch()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 75, said
        assert ended(process.pid), "no process is left"
    assert said.count("SIGTERM: stopping after this step") == 1
    assert "Traceback" not in said
    assert not (folder / "results.json").exists()
    assert not list(folder.glob(".owner*"))
    assert unreadable(folder) == []

    _, said = runs.together("cut")
    assert "Resuming after step 3 of task 1 of 2." in " ".join(said.split()), said
    assert differences(both[0], folder) == []
