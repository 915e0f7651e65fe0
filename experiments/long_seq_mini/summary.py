"""Gathers finished runs: a Markdown table over the seeds, and one JSON file with every run.

python experiments/long_seq_mini/summary.py RUN_ROOT results/NAME.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

METRICS = ("average_performance", "backward_transfer", "forgetting_rate")
KEPT = (
    "benchmark", "order_name", "order", "backbone", "weights", "method", "seed", "epochs",
    "effective_batch", "device", "commit",
)  # fmt: skip


def group_of(found: dict[str, Any]) -> str:
    """Runs of one task alone are one group: their mean is the per-task score."""
    single = found["protocol"]["order_name"] == "own" and len(found["tasks"]) == 1
    return "per task" if single else found["protocol"]["method"]


def just_learnt(found: dict[str, Any]) -> float:
    """Mean score on each task right after its training."""
    matrix = found["score_matrix"]
    return mean(matrix[i][i] for i in range(len(matrix)))


def spread(values: list[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main(root: Path, target: Path) -> None:
    runs = [json.loads(path.read_text()) for path in sorted(root.rglob("results.json"))]
    groups: dict[str, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for found in runs:
        groups[group_of(found)][found["protocol"]["seed"]].append(found)
    stand_ins = sorted({name for found in runs for name in found["stand_ins"]})
    print(f"On {' and '.join(stand_ins) or 'real data'}; mean ± standard deviation over seeds.\n")
    print(f"| method | seeds | just learnt | {' | '.join(METRICS)} | minutes |")
    print("|---|---|---|---|---|---|---|")
    for name, by_seed in sorted(groups.items()):
        cells = []
        for metric in METRICS:
            values = [
                mean(run["metrics"][metric] for run in found)
                for found in by_seed.values()
                if all(metric in run["metrics"] for run in found)
            ]
            cells.append(spread(values) if values else "")
        learnt = [mean(just_learnt(run) for run in found) for found in by_seed.values()]
        minutes = [sum(r["cost"]["seconds"]["total"] for r in f) / 60 for f in by_seed.values()]
        row = [name, str(len(by_seed)), spread(learnt), *cells, spread(minutes)]
        print(f"| {' | '.join(row)} |")
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                "stand_ins": found["stand_ins"],
                "metrics": found["metrics"],
                "score_matrix": found["score_matrix"],
                "protocol": {key: found["protocol"][key] for key in KEPT},
                "seconds": found["cost"]["seconds"],
            }
        )
        for found in runs
    ]
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
