"""What processes tell each other, and what one alone finds."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import distributed

from kif_lightning import ranks
from tests.helpers.processes import in_processes


def said_by_each() -> dict[str, Any]:
    me = distributed.get_rank()
    mine = torch.tensor([1.0, 10.0]) * (me + 1)
    total = ranks.summed(mine)
    several = [torch.full((2, 2), me + 1.0), torch.tensor(0.5), torch.ones(3, dtype=torch.float64)]
    weights = torch.nn.Parameter(torch.ones(2, 3).t() * me)
    ranks.sum_([*several, weights])
    ranks.BUCKET_ELEMENTS = 3
    in_buckets = [torch.full((size,), me + 1.0) for size in (2, 2, 5, 1)]
    ranks.sum_(in_buckets)
    nobody: list[torch.Tensor] = []
    ranks.sum_(nobody)
    ranks.barrier()
    return {
        "place": (ranks.rank(), ranks.world_size(), ranks.is_first()),
        "summed": (mine.tolist(), total.tolist()),
        "sums": ([t.tolist() for t in several], [t.dtype for t in several], weights.tolist()),
        "buckets": [t.tolist() for t in in_buckets],
        "any": ranks.any_rank(False, me == 1, True),
        "gathered": ranks.gathered({"rank": me}),
        "first": ranks.from_first(f"of {me}"),
    }


def test_two_processes() -> None:
    found = in_processes(said_by_each)
    assert [each.pop("place") for each in found] == [(0, 2, True), (1, 2, False)]
    assert [each.pop("summed") for each in found] == [
        ([1.0, 10.0], [3.0, 30.0]),
        ([2.0, 20.0], [3.0, 30.0]),
    ]
    assert found[0] == found[1]
    sums = [[[3.0, 3.0], [3.0, 3.0]], 1.0, [2.0, 2.0, 2.0]]
    dtypes = [torch.float32, torch.float32, torch.float64]
    assert found[0] == {
        "sums": (sums, dtypes, [[1.0, 1.0]] * 3),
        "buckets": [[3.0] * size for size in (2, 2, 5, 1)],
        "any": (False, True, True),
        "gathered": [{"rank": 0}, {"rank": 1}],
        "first": "of 0",
    }


def waits_for_ever() -> None:
    if distributed.get_rank() == 1:
        ranks.barrier()
    time.sleep(60)


def test_a_deadlock_ends() -> None:
    with pytest.raises(AssertionError, match=r"Processes \[0, 1\] do not come to an end"):
        in_processes(waits_for_ever, seconds=0.5)


def test_one_process() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert (ranks.rank(), ranks.world_size()) == (0, 1)
    assert ranks.summed(tensor) is tensor
    ranks.sum_([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert ranks.any_rank(True, False) == (True, False)
    assert ranks.gathered("it") == ["it"]
    assert ranks.from_first("it") == "it"
    ranks.barrier()


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),  # the first of the second machine
        ({"LOCAL_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_the_first_is_known_before_they_join(
    variables: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ranks.RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_first() == first
