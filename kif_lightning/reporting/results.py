"""The schema of ``results.json`` and of the importance files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from kif_lightning.metrics.transfer import FORMULAS, transfer_metrics

SCHEMA_VERSION = 2


def results_record(
    *,
    score_matrix: Sequence[Sequence[float | None]],
    untrained: Sequence[float | None] | None,
    tasks: Sequence[dict[str, Any]],
    phases: Sequence[dict[str, Any]],
    stand_ins: Sequence[str],
    data_findings: Sequence[dict[str, Any]] | None = None,
    protocol: dict[str, Any],
    cost: dict[str, Any],
    probe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``results.json``; metrics are recomputed from the matrix.

    ``tasks``: what is evaluated, the matrix's columns; ``phases``: what was trained on, its rows.
    ``stand_ins`` says which parts only stand for real ones (``stand-in data``, ``stand-in model``);
    ``data_findings``: the data doctor's errors and warnings; None: it did not look;
    ``probe``: scores and losses on rows of no task, if there were such.
    """
    metrics = transfer_metrics(score_matrix, untrained=untrained)
    return {
        "schema_version": SCHEMA_VERSION,
        "stand_ins": list(stand_ins),
        "data_findings": None if data_findings is None else list(data_findings),
        "score_matrix": [list(row) for row in score_matrix],
        "untrained": None if untrained is None else list(untrained),
        "metrics": metrics,
        "formulas": {name: FORMULAS[name] for name in metrics},
        "tasks": list(tasks),
        "phases": list(phases),
        "protocol": protocol,
        "cost": cost,
        **({} if probe is None else {"probe": probe}),
    }


def boundary_record(
    task_name: str, boundary: Mapping[str, Any], stand_ins: Sequence[str]
) -> dict[str, Any]:
    """The content of an importance file: one column a key, units in the same order in all."""
    columns = {
        key: value.tolist() if isinstance(value, Tensor) else value
        for key, value in boundary.items()
        if value is not None
    }
    return {"task": task_name, "stand_ins": list(stand_ins), **columns}


def describe_weights(counts: Mapping[str, int], trainable_names: Iterable[str]) -> str:
    """What is trainable and what frozen, in one sentence; the six commonest kinds are named."""
    names = list(trainable_names)
    kinds = Counter(".".join(name.removesuffix(".weight").split(".")[-2:]) for name in names)
    listed = ", ".join(f"{number} x {kind}" for kind, number in kinds.most_common(6))
    more = ", ..." if len(kinds) > 6 else ""
    trainable = counts["trainable_weights"]
    share = 100 * trainable / (trainable + counts["frozen_weights"])
    return (
        f"Trainable: {trainable:,} weights ({share:.2f}%) in {len(names)} tensors "
        f"({listed}{more}); frozen: {counts['frozen_weights']:,}."
    )
