"""The study of fusion variants: its parts by hand, and that its report tells runs apart."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.scripts import scripts_of


@pytest.fixture
def script() -> Iterator[Any]:
    with scripts_of("fusion_variants") as found:
        yield found


def any_share(previous: torch.Tensor, current: torch.Tensor) -> torch.Tensor:
    raise AssertionError("These fusions use no rule.")


def fusion(kind: Any, **settings: Any) -> Any:
    """A fusion at a boundary that has something to fuse."""
    found = kind(rule=any_share, units=lambda _: None, **settings)
    found.boundary = SimpleNamespace(weight=torch.zeros(1))
    return found


def test_the_most_important_weights_take_their_new_value(script: Any) -> None:
    found = fusion(script("lab_parts").WeightTop, keep=0.5)
    found.snapshot = {"a": torch.zeros(2), "b": torch.zeros(2)}
    found.scores = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0])}
    weights = {name: nn.Parameter(torch.ones(2)) for name in "ab"}
    found.fuse(weights)
    assert weights["a"].tolist() == [0.0, 1.0]
    assert weights["b"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("by_inputs", [False, True])
def test_each_task_keeps_the_outputs_on_its_own_inputs(script: Any, by_inputs: bool) -> None:
    parts = script("lab_parts")
    parts.RIDGE = 1e-9
    found = fusion(parts.RegMean, balance=10.0, by_inputs=by_inputs)
    draw = torch.Generator().manual_seed(0)
    names = ("m.lora_A.weight", "m.lora_B.weight")
    sizes = ((2, 4), (3, 2))
    old = [torch.randn(size, generator=draw) for size in sizes]
    # The new product has the columns of the old one: the fused one is of their rank.
    new = [torch.randn(2, 4, generator=draw), old[1]]
    weights = {name: nn.Parameter(w.clone()) for name, w in zip(names, new, strict=True)}
    found.snapshot = dict(zip(names, old, strict=True))
    found.hooks = []
    found.old = {"model.m": torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0])).double()}
    found.sums = {"model.m": 4 * torch.diag(torch.tensor([0.0, 0.0, 3.0, 1.0]))}
    found.counts = {"model.m": 4}
    found.fuse(weights)
    product = weights[names[1]] @ weights[names[0]]
    assert torch.allclose(product[:, :2], (old[1] @ old[0])[:, :2], atol=1e-4)
    assert torch.allclose(product[:, 2:], (new[1] @ new[0])[:, 2:], atol=1e-4)
    assert found.old["model.m"].diagonal().tolist() == [1.0, 2.0, 3.0, 1.0]


def test_a_weight_is_held_by_its_part_in_the_fall_of_the_loss(script: Any) -> None:
    parts = script("lab_parts")
    tracker = parts.SharedPathTracker()
    penalty = parts.LabElastic(coefficient=4.0)
    weights = {"w": nn.Parameter(torch.zeros(3))}
    context = SimpleNamespace(parameters=weights, logits=torch.zeros(1))
    assert penalty(context) == 0
    tracker.reset(weights)
    penalty.begin_task(weights, 0)
    # The loss falls by 2 along the first weight, rises by 1 along the second; the third stays.
    for step, gradient in (([1.0, 1.0, 0.0], [-2.0, 1.0, 5.0]), ([0.0, 0.0, 0.0], [9.0, 9.0, 9.0])):
        tracker.update(weights, {"w": torch.tensor(gradient)})
        weights["w"].data += torch.tensor(step)
    assert tracker.path["w"].tolist() == [2.0, -1.0, 0.0]
    penalty.end_task(weights, 0, None)
    assert penalty(context) == 0
    weights["w"].data += torch.tensor([0.5, 7.0, 7.0])
    assert penalty(context).item() == pytest.approx(4 / 2 * 2 / 1.001 * 0.25)


class TestReport:
    def test_settings_tell_runs_of_one_method_apart(self, script: Any) -> None:
        report = script("report")
        names = [report.variant(run) for run in report.RUNS]
        assert len(set(names)) == len(names)
        assert {"lab_replay_fitted", "lab_replay_fitted, one share"} <= set(names)

    def test_rows_stand_by_memory_then_by_ap(self, script: Any) -> None:
        report = script("report")
        rows = report.variants_table(report.RUNS).splitlines()[4:]
        cells = [row.strip("| ").split(" | ") for row in rows]
        placed = [(int(cell[2]) > 0, -float(cell[3])) for cell in cells]
        assert len(placed) == len(report.RUNS)
        assert placed == sorted(placed)

    def test_two_runs_that_would_read_the_same_are_refused(self, script: Any) -> None:
        report = script("report")
        with pytest.raises(SystemExit, match="2 times"):
            report.variants_table([*report.RUNS, report.RUNS[0]])
