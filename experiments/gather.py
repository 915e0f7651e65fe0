"""Keeps what matters of finished runs in one JSON file, one run a line.

python experiments/gather.py RUN_ROOT experiments/NAME/results/FILE.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROTOCOL = (
    "benchmark", "order_name", "order", "rows", "backbone", "weights", "prompt_and_decoding",
    "method", "method_settings", "lora", "optim", "seed", "epochs", "effective_batch", "precision",
    "device", "commit", "packages", "imported",
)  # fmt: skip


def main(root: Path, target: Path) -> None:
    lines = []
    for path in sorted(root.rglob("results.json")):
        found = json.loads(path.read_text())
        kept = {
            "stand_ins": found["stand_ins"],
            "metrics": found["metrics"],
            "score_matrix": found["score_matrix"],
            "phases": found["phases"],
            "cost": found["cost"],
            "protocol": {key: found["protocol"].get(key) for key in PROTOCOL},
        }
        lines.append(json.dumps(kept))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
