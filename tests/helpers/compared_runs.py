"""Folders of finished runs with chosen scores of every test row: what comparisons are made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from kif_lightning.reporting.results import results_record


def compared_run(
    folder: Path,
    rows: Mapping[str, Sequence[float]],
    *,
    method: str = "plain",
    seed: int = 1,
    first_row: int = 0,
    answers: bool = True,
    stand_ins: Sequence[str] = (),
    forgets: float = 10.0,
    cost: Mapping[str, Any] | None = None,
    **protocol: Any,
) -> Path:
    """Write ``results.json`` and the answers at the end; gives the folder.

    ``rows``: task, in the order of learning -> percent of each test row at the end. When just
    learnt a task scored ``forgets`` more (100 at most). Rows' ids count from ``first_row``.
    """
    tasks = list(rows)
    end = [mean(rows[task]) for task in tasks]
    last = len(tasks) - 1
    matrix = [
        [
            None if j > i else end[j] if i == last else min(100.0, end[j] + forgets)
            for j in range(len(tasks))
        ]
        for i in range(len(tasks))
    ]
    record = results_record(
        score_matrix=matrix,
        untrained=None,
        tasks=[{"name": task} for task in tasks],
        phases=[{"name": task} for task in tasks],
        stand_ins=stand_ins,
        protocol={
            "benchmark": "made_up",
            "order_name": "order1",
            "order": tasks,
            "data_sha256": {task: {"train": "a" * 64, "test": "b" * 64} for task in tasks},
            "rows": {task: {"train": 9, "test": len(values)} for task, values in rows.items()},
            "metrics": dict.fromkeys(tasks, "exact_match"),
            "backbone": "small",
            "weights": {"sha256": "c" * 64},
            "lora": {"r": 8},
            "optim": {"lr": 0.001},
            "prompt_and_decoding": {"limit": 9},
            "decode": dict.fromkeys(tasks, "generate"),
            "epochs": 1,
            "effective_batch": 8,
            "method": method,
            "method_settings": {},
            "seed": seed,
            **protocol,
        },
        cost={"seconds": {"total": 60.0 + seed}, "trainable_weights": 1000, **(cost or {})},
    )
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    if answers:
        (folder / "predictions").mkdir()
        for place, (task, values) in enumerate(rows.items(), 1):
            name = f"after_{len(tasks):02d}_{tasks[-1]}__on_{place:02d}_{task}.jsonl"
            lines = [
                json.dumps({"id": f"{task}-{n}", "prediction": "x", "reference": "y", "score": s})
                for n, s in enumerate(values, first_row)
            ]
            (folder / "predictions" / name).write_text("\n".join(lines))
    return folder
