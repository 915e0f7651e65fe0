"""Keeps what matters of finished runs in one JSON file, one run a line.

python experiments/gather.py RUN_ROOT [RUN_ROOT ...] experiments/NAME/results/FILE.json

A root is a folder that is searched for results.json, or a single file of that form. Runs that the
file already holds stay in it; a run that was repeated takes the place of the older one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kif_lightning.storage import write_text

PROTOCOL = (
    "benchmark", "order_name", "order", "data_sha256", "rows", "metrics", "backbone", "weights",
    "prompt_and_decoding", "decode", "method", "method_settings", "lora", "optim", "seed", "epochs",
    "effective_batch", "length_grouping", "loss_mean", "selection", "gradient_clip", "precision",
    "evaluation_precision", "evaluation_rows", "device", "commit", "packages", "imported",
)  # fmt: skip
IDENTITY = (
    "benchmark", "order", "rows", "backbone", "weights", "prompt_and_decoding", "method",
    "method_settings", "lora", "optim", "seed", "epochs", "effective_batch", "precision",
)  # fmt: skip
"""Two runs that agree in these are the same run made twice, perhaps of other commits."""
OFTEN_ABSENT = {
    "evaluation_rows": "test",
    "evaluation_precision": None,
    "gradient_clip": None,
    "length_grouping": None,
    "loss_mean": "step_tokens",
    "selection": None,
}
"""Also part of the identity; runs of older versions do not tell them and are of these."""
NEWER_SETTINGS = {("rehearsal", "kif_lightning.memory.MemoryRehearsal", "times"): 1}
"""Slot, part and setting -> what runs of older versions, which do not tell it, are of."""
SORTED_BY = ("backbone", "benchmark", "order_name", "method")


def kept(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of one results.json that reports read; results of old versions lack some of it."""
    return {
        "stand_ins": found.get("stand_ins", []),
        "metrics": found["metrics"],
        "tasks": [{key: task.get(key) for key in ("name", "metric")} for task in found["tasks"]],
        "score_matrix": found["score_matrix"],
        "phases": found.get("phases", []),
        "cost": found["cost"],
        "protocol": {key: found["protocol"].get(key) for key in PROTOCOL},
    }


def identity(run: Mapping[str, Any]) -> str:
    """What makes it this run and no other; the commit is no part of it."""
    protocol = run["protocol"]
    decode = protocol.get("decode") or dict.fromkeys(protocol["order"], "generate")
    more = [protocol.get(key) or absent for key, absent in OFTEN_ABSENT.items()]
    settings = dict(protocol.get("method_settings") or {})
    for (slot, part, key), absent in NEWER_SETTINGS.items():
        if (told := settings.get(slot) or {}).get("_target_") == part:
            settings[slot] = {key: absent, **told}
    whole = {**protocol, "method_settings": settings}
    return json.dumps([*(whole.get(key) for key in IDENTITY), decode, *more], sort_keys=True)


def results_in(root: Path) -> list[Path]:
    """The root itself, or every results.json below it.

    Raises:
        SystemExit: there is none.
    """
    paths = [root] if root.is_file() else sorted(root.rglob("results.json"))
    if not paths:
        raise SystemExit(f"Expected finished runs in {root}, found no results.json: name another.")
    return paths


def merged(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[Any]:
    """All runs in a fixed order; of the same run made twice the last one counts."""
    runs = {identity(run): run for run in (*old, *new)}

    def place(key: str) -> tuple[Any, ...]:
        protocol = runs[key]["protocol"]
        return *(str(protocol.get(part)) for part in SORTED_BY), protocol.get("seed") or 0, key

    return [runs[key] for key in sorted(runs, key=place)]


def main(roots: Sequence[Path], target: Path) -> None:
    old = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else []
    new = [
        kept(json.loads(path.read_text(encoding="utf-8")))
        for root in roots
        for path in results_in(root)
    ]
    lines = [json.dumps(run) for run in merged(old, new)]
    write_text(target, "[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{target}: {len(lines)} runs, of them {len(new)} read now.")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(f"Expected at least one RUN_ROOT and the file to write.\n{__doc__}")
    main([Path(argument) for argument in sys.argv[1:-1]], Path(sys.argv[-1]))
