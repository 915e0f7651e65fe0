"""The bundled stream's tasks all at once, as one task: what multi-task training reaches.

PYTHONPATH=experiments/long_seq_mini python -m kif_lightning +experiment=long_seq_t5 \
        method=seq_lora benchmark._target_=joint.joint_mini
"""

from __future__ import annotations

from typing import Any

from kif_lightning.benchmarks import MiniBenchmark
from kif_lightning.interfaces import Task


def joint_mini(**settings: Any) -> MiniBenchmark:
    """The stream with its tasks merged; every task has as many test rows, so AP is their mean."""
    benchmark = MiniBenchmark(**settings)
    tasks = benchmark.tasks
    benchmark.tasks = (
        Task(
            name="all",
            kind="classification",
            metric="exact_match",
            train=tuple(row for task in tasks for row in task.train),
            test=tuple(row for task in tasks for row in task.test),
            labels=tuple(sorted({label for task in tasks for label in task.labels})),
            sha256={f"{t.name} {split}": s for t in tasks for split, s in t.sha256.items()},
        ),
    )
    return benchmark
