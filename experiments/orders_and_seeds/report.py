"""Tables and figures of this study's README."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from studies import (
    AVERAGE,
    NO_RUNS,
    best_first,
    differences_table,
    groups,
    read_runs,
    spread,
    summary_table,
    table,
    usual_images,
)
from study_figures import usual_figures

RUNS = read_runs(Path(__file__).parent / "results" / "runs.json")


def orders_table() -> str:
    """AP of each method in each order, over its seeds."""
    orders = groups(RUNS, "order_name")
    if not orders:
        return NO_RUNS
    rows = [
        [
            f"`{method}`",
            *(
                spread(run.metrics[AVERAGE] for run in own if run.protocol["order_name"] == name)
                for (name,) in orders
            ),
        ]
        for method, own in best_first(RUNS).items()
    ]
    return table(["AP of method", *(name for (name,) in orders)], rows)


def blocks() -> dict[str, str]:
    return {
        "table": summary_table(RUNS),
        "orders": orders_table(),
        "figures": usual_images(RUNS),
        "from averaging": differences_table(RUNS, "mean"),
        "from replay": differences_table(RUNS, "replay"),
    }


def figures() -> dict[str, Figure]:
    return usual_figures(RUNS)
