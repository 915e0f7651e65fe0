"""A few runs killed with SIGKILL and resumed; ``make chaos`` kills many (tests.helpers.chaos)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.chaos import differences, unreadable

ROOT = Path(__file__).parents[2]
HERE = "-m tests.helpers.chaos --runs 6 --seed 3 --most-kills 1 --streams kif_m,ewc".split()


def test_a_killed_and_resumed_run_ends_as_the_uninterrupted_one() -> None:
    # A process of its own: it forks, which pytest's must not.
    single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(
        [sys.executable, *HERE], cwd=ROOT, env=os.environ | single, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]
    table = [line.split() for line in ended.stdout.splitlines()]
    head = next(line for line in table if line[0] == "stream")
    total = dict(zip(head, next(line for line in table if line[0] == "all"), strict=True))
    assert total["runs"] == total["identical"] == "6"
    assert int(total["kills"]) >= 5, total


def outcome(folder: Path) -> Path:
    """A run folder as the judges look at it."""
    for part in ("adapter", "predictions", "importance", "state"):
        (folder / part).mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, folder / "adapter" / "adapter_model.safetensors")
    (folder / "predictions" / "after.jsonl").write_text('{"id": "a"}\n{"id": "b"}\n')
    (folder / "importance" / "01.json").write_text('{"score": [1.0, 2.0], "seconds": 3.0}')
    phase = {"last_loss": 0.5, "seconds": {"train": 1.0}}
    results = {"score_matrix": [[50.0, None]], "phases": [phase], "cost": {"peak_memory_bytes": 1}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("seed: 1\n")
    return folder


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("adapter/adapter_model.safetensors", b"x", "adapter/adapter_model.safetensors differs"),
        ("adapter/more.json", b"{}", "adapter/more.json differs"),
        ("predictions/after.jsonl", b'{"id": "a"}\n{"id": "c"}\n', "predictions/after.jsonl"),
        ("importance/01.json", b'{"score": [1.0, 2.5], "seconds": 3}', "score.1 was 2.0, is 2.5"),
        ("results.json", b'{"score_matrix": [[50.0]]}', "score_matrix.0.1 was None, is absent"),
        ("results.json", None, "results.json is missing"),
    ],
)
def test_a_difference_is_told(tmp_path: Path, file: str, content: bytes | None, told: str) -> None:
    whole, folder = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert any(told in what for what in differences(whole, folder)), differences(whole, folder)


def test_times_and_leftovers_are_no_difference(tmp_path: Path) -> None:
    whole, folder = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    results = json.loads((whole / "results.json").read_text())
    results["phases"][0]["seconds"]["train"] = 9.0
    results["cost"]["peak_memory_bytes"] = 2
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "predictions" / ".1234.tmp").write_text("{")
    assert differences(whole, folder) == []


def test_a_file_cut_short_is_unreadable(tmp_path: Path) -> None:
    folder = outcome(tmp_path / "run")
    assert unreadable(folder) == []
    for path in sorted(folder.rglob("*.*")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 3])
        assert [what.split(" ")[0] for what in unreadable(folder)] == [
            str(path.relative_to(folder))
        ]
        path.rename(path.with_suffix(".tmp"))
        assert unreadable(folder) == []
        path.write_bytes(whole)
