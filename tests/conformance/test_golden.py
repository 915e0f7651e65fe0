"""Golden numbers: every JSON case of the folder ``KIF_GOLDEN_DIR``, by default tests/golden.

They are facts: importance computed by the KIF authors' public code, fusion and transfer metrics by
an independent NumPy statement of the formulas, all in float64.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kif_lightning.kif import (
    AdaptiveRule,
    ImportanceTracker,
    StaticRule,
    accumulate,
    fuse_,
    lora_rank_units,
    matrix_units,
    min_max,
)
from kif_lightning.kif.fusion import threshold
from kif_lightning.metrics import FORMULAS, transfer_metrics

FOLDER = Path(os.environ.get("KIF_GOLDEN_DIR") or Path(__file__).parents[1] / "golden")
CASES = sorted(FOLDER.glob("*.json"))

Case = Mapping[str, Any]


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(got: Tensor, expected: Any, what: str, *, atol: float = 1e-9) -> None:
    want = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(
        got.detach().numpy(), want, rtol=1e-9, atol=atol, err_msg=what, strict=True
    )


def assert_scores(got: Mapping[str, float], expected: Mapping[str, float], what: str) -> None:
    """Unit scores are tiny, so only a relative tolerance means anything."""
    assert set(got) == set(expected), what
    for unit, score in expected.items():
        assert got[unit] == pytest.approx(score, rel=1e-9, abs=0.0), f"{what}, unit {unit}"


def check_importance(case: Case) -> None:
    steps = [
        {
            kind: {
                name: None if pair[kind] is None else tensor(pair[kind])
                for name, pair in step.items()
            }
            for kind in ("weight", "grad")
        }
        for step in case["steps"]
    ]
    weights = steps[0]["weight"]
    tracker = ImportanceTracker(order=case["order"], alpha1=case["alpha1"], alpha2=case["alpha2"])
    tracker.reset(weights)
    for step in steps:
        tracker.update(step["weight"], step["grad"])

    expected = case["expected"]
    for what, averages in (
        ("sensitivity", tracker.sensitivity),
        ("uncertainty", tracker.uncertainty),
    ):
        assert set(averages) == set(expected[what]), what
        for name, values in expected[what].items():
            assert_close(averages[name], values, f"{what} of {name}", atol=1e-15)
    for what, partition in (
        ("lora_unit_scores", lora_rank_units),
        ("matrix_unit_scores", matrix_units),
    ):
        if what in expected:
            units = partition(weights)
            scores = tracker.unit_scores(units).tolist()
            assert_scores(dict(zip(units.ids, scores, strict=True)), expected[what], what)


def check_fusion(case: Case) -> None:
    expected = case["expected"]
    raw_previous = tensor(case["importance"]["accumulated"])
    raw_current = tensor(case["importance"]["current"])
    previous, current = min_max(raw_previous), min_max(raw_current)
    assert_close(previous, expected["normalized_accumulated"], "normalized_accumulated")
    assert_close(current, expected["normalized_current"], "normalized_current")
    accumulated = accumulate(raw_previous, raw_current, case["beta"])
    assert_close(accumulated, expected["next_accumulated"], "next_accumulated")
    for what, scores in (("accumulated", previous), ("current", current)):
        found = tensor(threshold(scores, case["top_percent"]))
        assert_close(found, expected[f"threshold_{what}"], f"threshold_{what}")

    rules = {
        "static": StaticRule(gamma=case["gamma"], top_percent=case["top_percent"]),
        "adaptive": AdaptiveRule(tau=case["tau"]),
    }
    for rule_name, rule in rules.items():
        old, fused = (side_of(case["weights"], side) for side in ("previous", "current"))
        units = lora_rank_units(fused)
        fuse_(units, rule(previous, current), old, fused)
        for i, module in enumerate(expected[rule_name]):
            for side in ("lora_A", "lora_B"):
                what = f"{rule_name}: {side} of module {i}"
                assert_close(fused[f"layer{i}.{side}"], module[side], what)
        assert len(expected[rule_name]) == len(case["weights"]), rule_name


def side_of(modules: list[Case], side: str) -> dict[str, Tensor]:
    """The previous or the current tensors under the names of a LoRA module each."""
    return {
        f"layer{i}.{name}": tensor(module[side][name])
        for i, module in enumerate(modules)
        for name in ("lora_A", "lora_B")
    }


def check_transfer(case: Case) -> None:
    found = transfer_metrics(
        case["score_matrix"], single_task=case.get("single_task"), untrained=case.get("untrained")
    )
    told = {n: value for n, value in case["expected"].items() if value is not None}
    assert set(told) <= set(FORMULAS), f"metrics nobody knows: {sorted(set(told) - set(FORMULAS))}"
    assert found == pytest.approx(told, rel=1e-9, abs=1e-9)


CHECKS: dict[str, Callable[[Case], None]] = {
    "importance": check_importance,
    "fusion": check_fusion,
    "transfer": check_transfer,
}


def test_the_folder_has_cases() -> None:
    assert CASES, f"No golden case (*.json) in {FOLDER}: set KIF_GOLDEN_DIR to a folder with cases."


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:All .* unit scores are equal")
def test_golden(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    kind = case.get("kind")
    if kind not in CHECKS:
        pytest.fail(f"{path.name} has the kind {kind!r}; known kinds: {', '.join(CHECKS)}.")
    CHECKS[kind](case)
