"""Seconds of ``kif compare`` with a page, tables and figures of 200 finished runs.

The runs are made up: 10 methods, 2 backbones, 2 orders and 5 seeds, each with 15 tasks of 100 test
rows and the answers at the end, as a run leaves them; files and numbers are what a comparison
reads, so where they come from changes nothing. The command runs as a process of its own, with
paired differences of all methods from one.

    python experiments/benchmarks/comparison.py
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from side_by_side import entry, machine, spread, timed, write_result

from kif_lightning.reporting.results import results_record

METHODS, BACKBONES, ORDERS, SEEDS, TASKS, ROWS = 10, 2, 2, 5, 15, 100
"""200 runs."""
COMPARE = "import sys; from kif_lightning.cli import app; sys.argv[0] = 'kif'; app()"


def write_run(folder: Path, tasks: Sequence[str], about: dict[str, Any], rows: int) -> None:
    """A finished run's results and its answers at the end."""
    draw = random.Random(json.dumps(about))
    scores = [[100.0 * (draw.random() < 0.6) for _ in range(rows)] for _ in tasks]
    end = [sum(row) / rows for row in scores]
    last = len(tasks) - 1
    matrix = [
        [end[j] + (i < last) * draw.uniform(0, 5) if j <= i else None for j in range(len(tasks))]
        for i in range(len(tasks))
    ]
    common = {
        "benchmark": "made_up",
        "order": list(tasks),
        "data_sha256": {task: {"train": "0" * 64, "test": "1" * 64} for task in sorted(tasks)},
        "rows": {task: {"train": 1000, "test": rows} for task in tasks},
        "metrics": dict.fromkeys(tasks, "exact_match"),
        "weights": {"sha256": about["backbone"]},
        "method_settings": {},
        **{key: {} for key in ("lora", "optim", "prompt_and_decoding", "decode")},
        "epochs": 1,
        "effective_batch": 8,
    }
    record = results_record(
        score_matrix=matrix,
        untrained=None,
        tasks=[{"name": task} for task in tasks],
        phases=[{"name": task} for task in tasks],
        stand_ins=["made-up runs"],
        protocol={**common, **about},
        cost={"seconds": {"total": draw.uniform(200, 900)}, "trainable_weights": 49152},
    )
    (folder / "predictions").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(record))
    for place, (task, values) in enumerate(zip(tasks, scores, strict=True), 1):
        lines = [
            json.dumps({"id": f"{task}-{n}", "prediction": "a", "reference": "a", "score": value})
            for n, value in enumerate(values)
        ]
        name = f"after_{len(tasks):02d}_{tasks[-1]}__on_{place:02d}_{task}.jsonl"
        (folder / "predictions" / name).write_text("\n".join(lines))


def write_runs(root: Path, methods: int = METHODS, rows: int = ROWS) -> int:
    """All of them; gives their number."""
    number = 0
    for order in range(ORDERS):
        tasks = [f"task{n}" for n in range(TASKS)]
        random.Random(order).shuffle(tasks)
        for backbone in range(BACKBONES):
            for method in range(methods):
                for seed in range(SEEDS):
                    about = {
                        "method": f"method{method}",
                        "backbone": f"model{backbone}",
                        "order_name": f"order{order}",
                        "seed": seed,
                    }
                    write_run(root / f"{number:03d}", tasks, about, rows)
                    number += 1
    return number


def compare(root: Path, out: Path) -> None:
    """The command as a user runs it."""
    command = [sys.executable, "-c", COMPARE, "compare", str(root), "--out", str(out)]
    subprocess.run(  # noqa: S603
        [*command, "--baseline", "method0"], check=True, stdout=subprocess.DEVNULL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A comparison of 200 runs.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="the JSON to write")
    arguments = parser.parse_args()
    started_on = machine()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "runs"), Path(folder, "out")
        runs = write_runs(root)
        seconds = [timed(lambda: compare(root, out)) for _ in range(arguments.rounds)]
        megabytes = (out / "comparison.html").stat().st_size / 1e6
    write_result(
        "comparison",
        [
            entry(
                f"seconds of kif compare --out --baseline of {runs} runs of {TASKS} tasks",
                spread(seconds),
                at_most=30,
                unit="s",
            ),
            entry(f"its page, of {runs} runs", spread([megabytes]), unit="MB"),
        ],
        started_on=started_on,
        output=arguments.output,
        setting={"rounds": arguments.rounds, "test_rows": ROWS},
    )


if __name__ == "__main__":
    main()
