"""Results that other papers print, to stand beside ours with their source, never among them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_name("published.yaml")
READ_FROM = {
    "paper": "the paper, or notes of it",
    "secondary": "a secondary copy: look it up before citing",
}
OF_FEW_TASKS = re.compile(r"standard\d+")
"""How the orders of a benchmark's smaller set of tasks are called."""
OF_ALL_TASKS = re.compile(r"(order|random_)\d+")
"""An own order is none of them: it may hold any tasks."""


def published_results(benchmarks: Sequence[str], orders: Sequence[str]) -> list[dict[str, Any]]:
    """Those on one of the benchmarks, in one of the orders or in none that the source tells.

    Args:
        benchmarks: their names, exactly: a stand-in for a benchmark is another one.
        orders: names of orders; of a mean over several, one is enough.

    Returns:
        One entry a method and source: method, model, benchmark, orders, metrics (name -> percent),
        source, read_from, unchecked (metrics whose definition in the source was not checked).
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
                    "unchecked": list(table.get("unchecked", [])),
                }
                for method, values in result["values"].items()
            ]
    return found


def _asked(of_result: Sequence[str] | None, few_tasks: bool, orders: Sequence[str]) -> bool:
    if of_result is not None:
        return bool(set(of_result) & set(orders))
    # The source does not tell the order: its tasks at least must be those of an order of ours.
    tasks = OF_FEW_TASKS if few_tasks else OF_ALL_TASKS
    return any(tasks.fullmatch(order) for order in orders)
