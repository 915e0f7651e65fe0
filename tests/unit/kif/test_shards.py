"""Weights spread over two ranks: importance, unit scores and fusion as of whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from kif_lightning.callbacks.replay import frozen_masks
from kif_lightning.interfaces import all_finite
from kif_lightning.kif import (
    ImportanceTracker,
    SkillUnits,
    fuse_,
    lora_rank_units,
    matrix_units,
    shards,
)
from tests.helpers.processes import in_processes
from tests.unit.kif.test_importance import Step, naive, random_steps, track

LORA = {"q.lora_A": (3, 5), "q.lora_B": (5, 3), "v.lora_A": (1, 6), "v.lora_B": (2, 1)}
OTHERS = {"wide": (5, 4), "bias": (3,), "one": (1,), "cube": (3, 2, 2)}
UNITS: dict[str, Any] = {"lora_rank": lora_rank_units, "matrix": matrix_units}
CASES: dict[str, tuple[Mapping[str, tuple[int, ...]], str, Placement, dict[str, Any]]] = {
    "ranks": (LORA, "lora_rank", Shard(0), {}),
    "ranks, other dimension": (LORA, "lora_rank", Shard(1), {}),
    "ranks, copies": (LORA, "lora_rank", Replicate(), {}),
    "ranks, bfloat16": (LORA, "lora_rank", Shard(0), {"average_dtype": "bfloat16"}),
    "ranks, offloaded": (LORA, "lora_rank", Shard(0), {"offload": True}),
    "matrices": ({**LORA, **OTHERS}, "matrix", Shard(0), {}),
    "no uncertainty": ({**LORA, **OTHERS}, "matrix", Shard(0), {"use_uncertainty": False}),
}
Found = dict[str, Any]


def steps_of(case: str) -> list[Step]:
    return random_steps(CASES[case][0])


def shares(units: SkillUnits) -> Tensor:
    return torch.linspace(0.1, 0.9, len(units), dtype=torch.float64)


def frozen(units: SkillUnits) -> Tensor:
    return torch.arange(len(units)) % 2 == 0


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of each tensor, joined from the ranks' parts."""
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in tensors.items()}


def same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def measured(tracker: ImportanceTracker, steps: list[Step], units: SkillUnits) -> Found:
    """Scores of the tracker, and the last step's weights fused with the first step's."""
    scores = tracker.unit_scores(units)
    current = steps[-1][0]
    fuse_(units, shares(units), steps[0][0], current)
    return {
        "scores": whole({"all": scores}),
        "weight_scores": whole(tracker.weight_scores()),
        "sensitivity": whole(tracker.sensitivity),
        "fused": whole(current),
        "dtypes": [t.dtype for t in tracker.sensitivity.values()],
    }


def all_cases() -> dict[str, Found]:
    """On one rank of two, every case with its weights spread."""
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Found] = {}
    for case, (_, kind, placement, settings) in CASES.items():

        def spread(tensors: Mapping[str, Any], placement: Placement = placement) -> dict[str, Any]:
            return {name: distribute_tensor(t, mesh, [placement]) for name, t in tensors.items()}

        steps: list[Step] = [(spread(w), spread(g)) for w, g in steps_of(case)]
        units = UNITS[kind](steps[0][0])
        tracker = track(steps[:2], **settings)
        resumed = ImportanceTracker(**settings)
        state = tracker.state_dict()
        for key in ("sensitivity", "uncertainty"):
            state[key] = whole(state[key])  # as from a file that every rank reads
        resumed.load_state_dict(state)
        for step in steps[2:]:
            tracker.update(*step)
            resumed.update(*step)
        masks = frozen_masks(units, frozen(units), steps[0][0])
        found[case] = {
            "spread": all(isinstance(t, DTensor) for t in tracker.sensitivity.values()),
            "resumed": whole({"all": resumed.unit_scores(units)}),
            "num_masked": {name: int(mask.sum()) for name, mask in masks.items()},
            **measured(tracker, steps, units),
        }
    bad = torch.zeros(4, 2)
    bad[0, 1] = float("inf")  # on the first rank alone
    good = distribute_tensor(torch.ones(3, 2), mesh, [Shard(0)])
    one_bad = distribute_tensor(bad, mesh, [Shard(0)])
    plain = torch.zeros(2)
    finite = [all_finite([plain, good]), all_finite([plain, good, one_bad])]
    return {**found, "finite": {"told": finite}}


@pytest.fixture(scope="module")
def on_two_ranks() -> list[dict[str, Found]]:
    return in_processes(all_cases)


@pytest.mark.parametrize("case", list(CASES))
def test_scores_and_fused_weights_as_of_whole_weights(
    case: str, on_two_ranks: list[dict[str, Found]]
) -> None:
    _, kind, _, settings = CASES[case]
    steps = steps_of(case)
    units = UNITS[kind](steps[0][0])
    expected = measured(track(steps, **settings), steps, units)
    for found in (ranks[case] for ranks in on_two_ranks):
        assert found["spread"]
        assert found["dtypes"] == expected["dtypes"]
        for name in ("scores", "weight_scores", "sensitivity", "fused"):
            same(found[name], expected[name])
        same(found["resumed"], expected["scores"])


def test_rank_scores_against_the_outer_product(on_two_ranks: list[dict[str, Found]]) -> None:
    steps = steps_of("ranks")
    s_a, s_b = (np.multiply(*naive(steps, f"q.lora_{side}")) for side in "AB")
    expected = [np.outer(s_b[:, r], s_a[r, :]).mean() for r in range(3)]
    for ranks in on_two_ranks:
        np.testing.assert_allclose(
            ranks["ranks"]["scores"]["all"][:3].numpy(), expected, rtol=1e-11
        )


@pytest.mark.parametrize("case", ["ranks", "ranks, other dimension", "matrices"])
def test_the_ranks_freeze_their_parts_of_a_unit(
    case: str, on_two_ranks: list[dict[str, Found]]
) -> None:
    weights = steps_of(case)[0][0]
    units = UNITS[CASES[case][1]](weights)
    for name, mask in frozen_masks(units, frozen(units), weights).items():
        parts = [ranks[case]["num_masked"].get(name, 0) for ranks in on_two_ranks]
        assert sum(parts) == int(mask.sum())


def test_one_rank_with_an_infinite_part_is_heard_by_all(
    on_two_ranks: list[dict[str, Found]],
) -> None:
    assert [ranks["finite"]["told"] for ranks in on_two_ranks] == [[True, False]] * 2


def test_plain_tensors_are_their_own_part() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    assert not shards.is_sharded(weight)
    assert shards.part(weight).data_ptr() == weight.data_ptr()
    assert not shards.part(weight).requires_grad
