"""Results that other papers print, to stand beside ours with their source, never among them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("published.yaml")
READ_FROM = {
    "paper": "the paper, or notes of it",
    "secondary": "a secondary copy: look it up before citing",
}
STANDARD = "standard"
"""How the orders of a benchmark's smaller set of tasks are called."""


def published_results(benchmarks: Sequence[str], orders: Sequence[str]) -> list[dict[str, Any]]:
    """Those on one of the benchmarks, in one of the orders or in none that the source tells.

    Args:
        benchmarks: their names, exactly: a stand-in for a benchmark is another one.
        orders: names of orders; of a mean over several, one is enough.

    Returns:
        One entry a method and source: method, model, benchmark, orders, metrics (name -> percent),
        source, read_from.
    """
    found = []
    for table in yaml.safe_load(TABLE.read_text(encoding="utf-8")):
        if table["benchmark"] not in benchmarks:
            continue
        for result in table["results"]:
            if not _asked(result.get("orders"), "tasks" in table, orders):
                continue
            told = ", ".join(result.get("orders", [])) or table.get("tasks", "not told")
            found += [
                {
                    "method": method,
                    "model": table["model"],
                    "benchmark": table["benchmark"],
                    "orders": told,
                    "metrics": {
                        name: float(value)
                        for name, value in zip(table["metrics"], values, strict=True)
                        if value is not None
                    },
                    "source": table["source"],
                    "read_from": READ_FROM[table["read_from"]],
                }
                for method, values in result["values"].items()
            ]
    return found


def _asked(of_result: Sequence[str] | None, few_tasks: bool, orders: Sequence[str]) -> bool:
    if of_result is not None:
        return bool(set(of_result) & set(orders))
    # The source does not tell the order: its tasks at least must be those of an order of ours.
    return any(order.startswith(STANDARD) == few_tasks for order in orders)
