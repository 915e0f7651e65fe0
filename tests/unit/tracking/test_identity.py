from __future__ import annotations

from pathlib import Path
from typing import Any

from kif_lightning.tracking.identity import RunIdentity


def identity(order: Any, *stand_ins: str) -> RunIdentity:
    settings = {
        "method": {"name": "some"},
        "backbone": {"name": "small"},
        "benchmark": {"name": "bench", "order": order},
        "seed": 3,
        "experiment_name": "trial",
    }
    return RunIdentity(folder=Path("run"), settings=settings, stand_ins=stand_ins)


def test_runs_of_one_order_stand_together() -> None:
    known = identity("order2", "stand-in data")
    assert known.group == "trial/bench/order2"
    assert known.name == "some-order2-seed3"
    assert known.tags == ["some", "small", "bench", "order2", "stand-in data"]


def test_long_orders_are_cut_but_told_apart() -> None:
    tasks = [f"task_{i}" for i in range(20)]
    one, other = identity(tasks).order, identity([*tasks[:-2], *tasks[:-3:-1]]).order
    assert len(one) == len(other) == 40
    assert one[:31] == other[:31]
    assert one != other
    assert identity(["a", "b"]).order == "a-b"
