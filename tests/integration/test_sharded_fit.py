"""Whole fits with the weights spread over two processes, against one process that has them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.distributed.tensor import DTensor

from kif_lightning.callbacks import KnowledgeFusion
from kif_lightning.identification import Identification
from kif_lightning.kif import AdaptiveRule, ImportanceTracker, lora_rank_units, matrix_units
from kif_lightning.sharding import ShardedStrategy
from tests.helpers.fits import TinyFit, assert_near
from tests.helpers.processes import in_processes
from tests.helpers.streams import toy_task

CASES: dict[str, Any] = {
    "full": {"full": True, "units": matrix_units, "clip": 0.5},
    "lora": {"units": lora_rank_units, "micro": 4},
    "offloaded": {"units": lora_rank_units, "offload": True},
}


def run(folder: Path, *, sharded: bool, units: Any, offload: bool = False, **options: Any) -> Any:
    """Two tasks with fusion."""
    fusion = KnowledgeFusion(rule=AdaptiveRule(), units=units, offload_snapshot=offload)
    tracker = ImportanceTracker(offload=offload)
    fit = TinyFit(
        folder,
        task=toy_task(train=13),
        callbacks=[fusion],
        module_options={"identification": Identification(tracker=tracker)},
        **options,
    )
    for _ in range(2):
        if sharded:
            fit.trainer_options = {"strategy": ShardedStrategy(), "devices": 2}
        fit.fit()
    boundary = fusion.boundary
    assert boundary is not None
    assert boundary.weight is not None
    return {
        "spread": [isinstance(p, DTensor) for p in fit.module.parameters()],
        "fused": {name: whole(p) for name, p in fit.module.trainable_parameters.items()},
        "units": {"score": boundary.score, "weight": boundary.weight},
        "losses": fit.module.counts.losses,
    }


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def on_a_rank(folder: Path) -> dict[str, Any]:
    return {name: run(folder, sharded=True, **options) for name, options in CASES.items()}


@pytest.fixture(scope="module")
def spread_runs(tiny_t5: Path) -> list[dict[str, Any]]:
    return in_processes(on_a_rank, tiny_t5, join=False)


@pytest.mark.parametrize("case", list(CASES))
def test_two_tasks_with_fusion_as_in_one_process(
    case: str, tiny_t5: Path, spread_runs: list[dict[str, Any]]
) -> None:
    expected = run(tiny_t5, sharded=False, **CASES[case])
    assert not any(expected["spread"])
    for found in (ranks[case] for ranks in spread_runs):
        assert all(found["spread"])
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        for part in ("fused", "units"):
            assert_near(found[part], expected[part], 1e-3)
