"""examples/foreign_project: what the added lines do to somebody else's project."""

from __future__ import annotations

import difflib
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from kif_lightning.callbacks import ContinualFusion

FOLDER = Path(__file__).parents[2] / "examples" / "foreign_project"


def lines(name: str) -> list[str]:
    return (FOLDER / name).read_text(encoding="utf-8").splitlines()


def test_at_most_five_lines_are_added_and_none_changed() -> None:
    changes = [
        line
        for line in difflib.unified_diff(lines("train.py"), lines("train_with_kif.py"), n=0)
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert 0 < len(changes) <= 5
    assert all(line.startswith("+") for line in changes)
    assert not any("kif_lightning." in line for line in lines("train.py"))
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(line[1:].strip() in told for line in changes)


def run(name: str, tasks: int = 2) -> tuple[list[dict[str, torch.Tensor]], Any]:
    """The weights that learn after each task of few rows, and the module."""
    names = runpy.run_path(str(FOLDER / name))
    for task in list(names["TASKS"])[tasks:]:
        del names["TASKS"][task]
    read = names["read"]
    names["main"].__globals__["read"] = lambda task: tuple(rows[:48] for rows in read(task))
    after: list[dict[str, torch.Tensor]] = []
    score = names["FineTuning"].score

    def record(module: Any, rows: Any) -> float:
        after.append({n: p.detach().clone() for n, p in module.named_parameters() if ".lora_" in n})
        return score(module, rows[:2])

    names["FineTuning"].score = record
    module, scores = names["main"](epochs=1, seed=1)
    assert len(scores) == tasks
    return after[tasks - 1 :: tasks], module


def test_fusion_is_what_the_rule_says_of_the_weights_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # to be put back afterwards
    (first, second), _ = run("train.py")
    (kept, fused), module = run("train_with_kif.py")
    (callback,) = [c for c in module.trainer.callbacks if isinstance(c, ContinualFusion)]
    table = callback.boundary_table()
    shares: dict[str, list[float]] = {}
    for unit, past, now in zip(table["unit"], table["previous"], table["current"], strict=True):
        share = float(1 / (1 + torch.exp(torch.tensor((now - past) / 0.15, dtype=torch.float64))))
        shares.setdefault(unit.rpartition("/rank:")[0], []).append(share)
    spread = [share for ranks in shares.values() for share in ranks]
    assert len(spread) == 8 * len(first) // 2
    assert max(spread) - min(spread) > 0.3
    assert kept.keys() == first.keys()
    for name in first:
        # The same draws: without fusion the second task ends with the weights that are fused.
        assert torch.equal(kept[name], first[name])
        layer = name.replace("base_model.model.", "").partition(".lora_")[0]
        share = torch.tensor(shares[layer])
        along = share[:, None] if ".lora_A." in name else share
        expected = along * first[name] + (1 - along) * second[name]
        torch.testing.assert_close(fused[name], expected, rtol=1e-5, atol=1e-6)
    distance = max(float((fused[name] - second[name]).abs().max()) for name in first)
    assert distance > 1e-3
