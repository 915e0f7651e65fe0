"""The example that plays the practitioner's path, as a user runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kif_lightning.continual_state import read_state

ROOT = Path(__file__).parents[2]
STORY = ROOT / "examples" / "ship_and_extend" / "story.py"
SHOWN = re.compile(r"^(mini_\w+) +([\d.]+) +([\d.]+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("story") / "machines"
    done = subprocess.run(
        [sys.executable, str(STORY), str(folder)], check=True, capture_output=True, text=True
    )
    return folder, done.stdout


def test_old_tasks_are_kept(told: tuple[Path, str]) -> None:
    folder, text = told
    shown = {name: (float(before), float(now)) for name, before, now in SHOWN.findall(text)}
    results = json.loads((folder / "machine_1" / "run" / "results.json").read_text())
    names = [task["name"] for task in results["tasks"]]
    # What kif predict answers from the state alone is what the run answered.
    assert [shown[name][0] for name in names] == pytest.approx(results["score_matrix"][-1], abs=0.1)
    before, now = (sum(pair[i] for pair in shown.values()) / len(shown) for i in (0, 1))
    assert before > 70  # the tasks were learnt: each has two answers
    assert now > before - 25  # without protection they lose fifty


def test_the_other_machine_had_no_old_row(told: tuple[Path, str]) -> None:
    folder, _ = told
    state = read_state(folder / "machine_2" / "state_4")
    assert [task.name for task in state.tasks][-1] == "tickets"
    assert state.score_matrix[-1][:3] == [None, None, None]
    assert state.parent == read_state(folder / "machine_1" / "state").digest
    assert not (folder / "machine_2" / "state" / "memory").exists()
    assert (folder / "machine_2" / "adapter" / "adapter_model.safetensors").is_file()
