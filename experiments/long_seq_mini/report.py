"""Tables and figures of this study's README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.figure import Figure
from studies import (
    AVERAGE,
    Run,
    differences_table,
    groups,
    read_runs,
    summary_table,
    table,
    usual_images,
)
from study_figures import usual_figures

RESULTS = Path(__file__).parent / "results"
STREAMS = read_runs(RESULTS / "streams.json")
ANSWERS = {
    "mnli": 3, "cb": 3, "wic": 2, "copa": 2, "qqp": 2, "boolqa": 2, "rte": 2, "imdb": 2, "yelp": 5,
    "amazon": 5, "sst2": 2, "dbpedia": 14, "agnews": 4, "multirc": 2, "yahoo": 10,
}  # fmt: skip
"""Task of the Long Sequence benchmark -> how many answers it has."""


def of_stream(how: str) -> dict[str, Any]:
    """The stream's tasks, learnt otherwise than one after another."""
    return {"order": STREAMS[0].tasks, "order_name": how}


def one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """Runs of one task each as one run a seed: their mean score is what a task alone reaches."""
    found = []
    for own in groups(runs, "seed").values():
        seconds = sum(run.cost["seconds"]["total"] for run in own)
        found.append(
            replace(
                own[0],
                method="per task",
                metrics={AVERAGE: mean(run.metrics[AVERAGE] for run in own)},
                matrix=(),
                protocol={**own[0].protocol, **of_stream("each task alone")},
                cost={"seconds": {"total": seconds}},
            )
        )
    return found


def real_rows_table() -> str:
    runs = {run.tasks[0]: run for run in read_runs(RESULTS / "real_rows.json")}
    tasks = [task for task in ANSWERS if task in runs]
    backbone = runs[tasks[0]].protocol["backbone"]
    scores = [f"{runs[task].metrics[AVERAGE]:.1f}" for task in tasks]
    chance = [f"{100 / ANSWERS[task]:.1f}" for task in tasks]
    return table(["", *tasks], [[f"`{backbone}`", *scores], ["chance", *chance]])


def blocks() -> dict[str, str]:
    alone = one_a_seed(read_runs(RESULTS / "per_task.json"))
    joint = [
        replace(run, method="multi-task", protocol={**run.protocol, **of_stream("all at once")})
        for run in read_runs(RESULTS / "multi_task.json")
    ]
    return {
        "table": summary_table(STREAMS),
        "references": summary_table([*joint, *alone]),
        "figures": usual_images(STREAMS),
        "differences": differences_table(STREAMS, "seq_lora"),
        "from averaging": differences_table(STREAMS, "mean"),
        "real rows": real_rows_table(),
    }


def figures() -> dict[str, Figure]:
    return usual_figures(STREAMS)
