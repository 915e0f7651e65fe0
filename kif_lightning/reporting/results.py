"""The schema of ``results.json`` and of the importance files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kif_lightning.metrics.transfer import FORMULAS, transfer_metrics

SCHEMA_VERSION = 1


def results_record(
    *,
    score_matrix: Sequence[Sequence[float | None]],
    untrained: Sequence[float | None] | None,
    tasks: Sequence[dict[str, Any]],
    protocol: dict[str, Any],
    cost: dict[str, Any],
) -> dict[str, Any]:
    """The content of ``results.json``; metrics are recomputed from the matrix."""
    metrics = transfer_metrics(score_matrix, untrained=untrained)
    return {
        "schema_version": SCHEMA_VERSION,
        "score_matrix": [list(row) for row in score_matrix],
        "untrained": None if untrained is None else list(untrained),
        "metrics": metrics,
        "formulas": {name: FORMULAS[name] for name in metrics},
        "tasks": list(tasks),
        "protocol": protocol,
        "cost": cost,
    }
