"""Whole runs whose tasks are answered by their likeliest label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kif_lightning.run_state import RunFolder, RunState
from tests.helpers.streams import run_stream, tiny_config

LABELS = {"good", "bad"}
OPTIONS = ("method=seq_lora", "evaluation.batch_size=4")
RANKED = (*OPTIONS, "evaluation.decode=rank_labels")


def predictions(run: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((run / "predictions").iterdir())
    }


@pytest.mark.parametrize("family", ["tiny_t5", "tiny_llama"])
def test_every_answer_is_a_label(
    family: str, request: pytest.FixtureRequest, toy_data: Path, tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)
    results, _ = run_stream(tiny_config(model, toy_data, tmp_path / "ranked", *RANKED))
    found = predictions(tmp_path / "ranked")
    assert len(found) == 3
    for rows in found.values():
        assert len(rows) == 6
        assert {row["prediction"] for row in rows} <= LABELS
    last = found["after_02_shape__on_02_shape.jsonl"]
    correct = sum(row["prediction"] == row["reference"] for row in last)
    assert results["score_matrix"][1][1] == pytest.approx(100 * correct / 6)
    assert [task["decode"] for task in results["tasks"]] == ["rank_labels"] * 2
    assert results["protocol"]["decode"] == {"colour": "rank_labels", "shape": "rank_labels"}


def test_generation_is_the_default(tiny_t5: Path, toy_data: Path, tmp_path: Path) -> None:
    results, _ = run_stream(tiny_config(tiny_t5, toy_data, tmp_path / "run", *OPTIONS))
    assert [task["decode"] for task in results["tasks"]] == ["generate"] * 2
    # A random model says something else than labels.
    found = predictions(tmp_path / "run").values()
    assert not {row["prediction"] for rows in found for row in rows} <= LABELS


def test_a_run_cut_within_an_evaluation_goes_on(
    tiny_t5: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run_stream(tiny_config(tiny_t5, toy_data, tmp_path / "whole", *RANKED))
    save = RunFolder.save

    def power_fails(self: RunFolder, state: RunState, parts: Any = None) -> None:
        save(self, state, parts)
        if state.next_task == 1 and state.evaluated:
            raise RuntimeError("power")

    cut = tiny_config(tiny_t5, toy_data, tmp_path / "cut", *RANKED)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", power_fails)
        with pytest.raises(RuntimeError, match="power"):
            run_stream(cut)
    assert len(predictions(tmp_path / "cut")) == 2
    resumed, said = run_stream(cut)
    assert "Resuming after the evaluation" in said
    assert resumed["score_matrix"] == whole["score_matrix"]
    assert predictions(tmp_path / "cut") == predictions(tmp_path / "whole")
