"""A run's plain settings, and the stamp that says under which conditions its numbers arose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kif_lightning.assembly import Parts
from kif_lightning.batches import LengthGrouping
from kif_lightning.interfaces import Decode, EvaluationMatrix
from kif_lightning.module import LossMean
from kif_lightning.reporting import stamp


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Plain settings of a run; the parts are objects."""

    method: str
    seed: int
    epochs: int
    batch_size: int
    micro_batch_size: int | None
    length_grouping: LengthGrouping
    gradient_clip: float | None
    max_skipped_in_a_row: int
    loss_mean: LossMean
    lr_factor: float
    evaluation_batch_size: int
    evaluation_batch_tokens: int | None
    evaluation_matrix: EvaluationMatrix
    max_new_tokens: int
    decode: Decode = "generate"
    evaluate_untrained: bool
    evaluate_next_task: bool
    save_model: bool
    evaluation_precision: str | None = None
    """Of decoding; None: as in training."""
    resume: str = "latest"
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = None
    keep_boundaries: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    """All of them, resolved."""
    method_settings: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    optim: dict[str, Any] = field(default_factory=dict)
    fused: bool | None = None
    trainer: dict[str, Any] = field(default_factory=dict)


def protocol_stamp(
    parts: Parts,
    options: RunOptions,
    micro_batch_size: int,
    device: str,
    selection: dict[str, Any] | None,
    decode: dict[str, Decode],
    fused: bool,
    computation: dict[str, Any],
) -> dict[str, Any]:
    """Everything that decides a run's numbers.

    ``device`` is the type that trained, ``selection`` says by which rows steps were selected,
    ``decode`` how each task was answered, ``fused`` whether the optimizer was a fused one (which,
    like the device, changes roundings), ``computation`` how the backbone's model computes.
    """
    tasks = parts.benchmark.tasks
    trainer = {key: options.trainer[key] for key in ("precision",) if key in options.trainer}
    return {
        "benchmark": parts.benchmark.name,
        "order_name": parts.benchmark.order_name,
        "order": [task.name for task in tasks],
        "data_source": dict(parts.benchmark.provenance),
        "data_sha256": {task.name: dict(task.sha256) for task in tasks},
        "rows": {t.name: {"train": len(t.train), "test": len(t.test)} for t in tasks},
        "metrics": {task.name: task.metric for task in tasks},
        "backbone": parts.backbone.name,
        "weights": dict(parts.backbone.provenance),
        **computation,
        "prompt_and_decoding": parts.backbone.protocol(),
        "decode": dict(decode),
        "method": options.method,
        "method_settings": options.method_settings,
        "lora": options.lora,
        "optim": options.optim,
        "fused_optimizer": fused,
        "seed": options.seed,
        "epochs": options.epochs,
        "effective_batch": options.batch_size,
        "micro_batch": micro_batch_size,
        "length_grouping": options.length_grouping,
        "evaluation_batch": options.evaluation_batch_size,
        "evaluation_batch_tokens": options.evaluation_batch_tokens,
        "evaluation_matrix": options.evaluation_matrix,
        "evaluation_rows": parts.evaluation_rows,
        "loss_mean": options.loss_mean,
        "selection": selection,
        **({} if parts.probe is None else {"probe": parts.probe.stamp()}),
        "gradient_clip": options.gradient_clip,
        **trainer,
        "evaluation_precision": options.evaluation_precision or trainer.get("precision"),
        **({} if parts.origin is None else {"continued_from": parts.origin.digest}),
        "device": stamp.device(device),
        **stamp.software(),
    }
